"""The manifests of cells and of their tests: what they have made, or why they have failed."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from othink_pipeline.core.blocks import Count, Positive
from othink_pipeline.core.manifests import Figure, Manifest
from othink_pipeline.scoring.kinds import AnswerKind
from othink_pipeline.training.parameters import RL, SFT


class Training(Manifest):
    """A finished training: in the cell's folder, written last of all."""

    task: str
    method: str
    seed: int
    checkpoint: str
    """Folder of the last checkpoint, which is the one that counts, beside the manifest."""
    digest: str
    """Of that checkpoint."""
    parameters: Annotated[SFT | RL, Field(discriminator="algorithm")]
    numerics: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """What of ``model`` and ``compute`` they depend on; of earlier trainings nothing is known."""
    health: dict[str, str | int | float]
    """The policies for numbers that go wrong; they are in no content key. Not ``Health``: a key
    that is added to it must not make what was finished before unreadable."""
    faults: dict[str, Count]
    """How often each fault occurred."""
    data: str
    """Digest of the examples that were trained on."""
    answers: AnswerKind
    """How the reward judged."""
    base_model: str
    """Digest of the base model."""
    updates: Positive
    prompts: Count
    completion_tokens: Count
    """Tokens that the loss was taken over."""
    seconds: float
    skipped_batches: Count
    weights_changed: Figure
    """See ``training.loop.Trained``."""


class Checkpoint(Training):
    """The last checkpoint of a cell, as it is tested and reported."""

    path: str
    run_id: str
    model_id: str
    base_path: str | None = None
    """The model that it belongs on, where it holds adapters alone."""
    base_is_hubs: bool = False
    """The base model lies in the hub's cache."""

    @property
    def base_digest(self) -> str:
        """The digest of the base model that it comes from."""
        return self.base_model


class FailedCell(Manifest):
    """Why a cell has no checkpoint."""

    task: str
    method: str
    seed: int
    failed: str


class _Test(Manifest):
    """A cell, or a base model (``none``, ``base``, None), on one task's test split."""

    train_task: str
    method: str
    seed: int | None
    base_model: Count
    """The number of the base model that it started from, or is."""
    eval_task: str


class Predictions(_Test):
    """A finished test: a table with a row for each test example."""

    key: str
    """The content key."""
    path: str
    checkpoint: str
    """Digest of what was tested."""


class FailedTest(_Test):
    """Why there are no predictions: of the test itself or of the training before it."""

    failed: str


class CollectedTests(Manifest):
    """All tests of a method that was trained on one task, or of the base models."""

    tests: tuple[Predictions | FailedTest, ...]
