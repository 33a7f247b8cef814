"""Manifests by hand, as earlier nodes leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.manifests import Checkpoint, Training
from othink_pipeline.cells.methods import resolve_method
from othink_pipeline.core.files import MANIFEST, digest_folder
from othink_pipeline.data.manifests import Examples, Split
from othink_pipeline.models.manifests import MadeModel
from othink_pipeline.models.parameters import MiniModel as MiniModelSettings
from othink_pipeline.scoring.kinds import EXACT
from tests.conftest import PROMPT, shipped, shipped_health, tiny_rebuild

SPLITS = ("train", "validation", "test")


def examples_of(task: str, folder: str = "data", **changes: Any) -> Examples:
    """A task's examples."""
    splits = {
        split: Split(
            path=f"{folder}/{task}/{split}.arrow",
            examples=9,
            digest=f"{task} {split}",
            prompt=PROMPT,
        )
        for split in SPLITS
    }
    content = {
        "task": task,
        "seed": 0,
        "key": "k",
        "files": "f",
        "rejected": 0,
        "splits": splits,
        "digest": "d",
    }
    return Examples(**{**content, **changes})


def with_split(examples: Examples, split: str, /, **changes: Any) -> Examples:
    """Examples one split of which is another."""
    part = examples.splits[split].model_copy(update=changes)
    return examples.model_copy(update={"splits": {**examples.splits, split: part}})


def shipped_method(cell: Cell) -> Any:
    """The parameters of a cell's method in conf/base."""
    raw = {name: shipped(name) for name in ("training", "sft", "rl", "methods")}
    return resolve_method(raw, cell.method, cell.task)


def training_of(cell: Cell, **changes: Any) -> Training:
    """A finished training of four updates, in which nothing went wrong."""
    content: dict[str, Any] = {
        **cell._asdict(),
        "checkpoint": "update-000004",
        "digest": "new",
        "parameters": shipped_method(cell),
        "health": shipped_health().model_dump(),
        "faults": {},
        "data": "d",
        "answers": EXACT,
        "base_model": "digest of the base model",
        "updates": 4,
        "prompts": 8,
        "completion_tokens": 90,
        "seconds": 1.0,
        "skipped_batches": 0,
        "weights_changed": 0.1,
    }
    return Training(**{**content, **changes})


def checkpoint_of(cell: Cell, **changes: Any) -> Checkpoint:
    """Its last checkpoint."""
    own = {name: changes.pop(name) for name in list(changes) if name not in Training.model_fields}
    training = training_of(cell, **changes)
    return Checkpoint(**{**dict(training), "path": "p", "run_id": "r", "model_id": "m", **own})


def made_model(digest: str) -> MadeModel:
    """A model that the project has made."""
    rebuild = MiniModelSettings(**tiny_rebuild().model_dump(exclude={"path"}))
    return MadeModel(
        made_by="hand", code={}, rebuild=rebuild, facts={}, data={}, measured={}, digest=digest
    )


def make_model(folder: Path) -> MadeModel:
    """Write the manifest of a model that is there, as if the project had made it."""
    made = made_model(digest_folder(folder))
    made.write(folder / MANIFEST)
    return made
