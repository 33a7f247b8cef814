"""The manifest of a task's examples."""

from __future__ import annotations

from pydantic import Field

from othink_pipeline.core.blocks import Block, Count, Name
from othink_pipeline.core.manifests import FolderManifest
from othink_pipeline.scoring.kinds import EXACT, AnswerKind


class Split(Block):
    """One split of a task."""

    path: str
    """Its Arrow file."""
    examples: Count
    digest: str
    """SHA-256 over fields and decoded pixels."""
    prompt: str
    """The template that its questions are asked with."""


class Examples(FolderManifest):
    """What ``prepare_splits`` has published."""

    task: Name
    seed: Count
    key: str
    """The content key."""
    files: str
    """That of the files alone: what the key is of but for the prompts."""
    rejected: Count
    """Examples that cannot be used."""
    overlapping: Count = 0
    """Training examples that were left out, their pictures being in the test split."""
    near_duplicates: Count | None = None
    """Test examples whose pictures are almost one of the other splits; None: not looked for."""
    answers: AnswerKind = EXACT
    """How they are judged."""
    sources: dict[str, dict[str, str | None]] = Field(default_factory=dict)
    """Of a data set by split where it was read from, with the hub's commit."""
    splits: dict[str, Split]
