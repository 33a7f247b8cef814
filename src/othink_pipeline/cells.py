"""What a cell is on disk: where it lives, the key of its content, and how it may have failed.

A cell's folder is named by its content key: everything that its training depends on. What is
finished is found again by it, whatever was tried in between; what changed gets a folder of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from othink_pipeline.grid import Cell
from othink_pipeline.parameters import RL, SFT, Compute, Evaluation, Folders, Health
from othink_pipeline.reuse import MANIFEST, content_key, digest_folder, read_json
from othink_pipeline.source import code_digest, library_versions
from othink_pipeline.tracking import DatasetRef
from othink_pipeline.validation import ConfigurationError

logger = logging.getLogger(__name__)

SAME_ENV = "(with the --env of this run)"
"""Without it a command would change the results of conf/base."""

RESUME = "resume"
"""The folder, within a cell's, with the states that an interrupted training goes on from."""

FAILED = "failed"
"""Key of a manifest that holds why there is nothing else in it."""

_NEEDED = {"path", "digest", "updates", "skipped_batches", "health"}


def training_key(
    cell: Cell,
    parameters: SFT | RL,
    base_digest: str,
    examples: Sequence[dict[str, Any]],
    evaluation: Evaluation,
    compute: Compute,
) -> str:
    """The content key of a cell's training: the same key, the same weights and curves.

    Not in it is what changes nothing: names, folders, batch sizes of the evaluation, how often a
    state is saved.

    Args:
        examples: the manifests of all tasks, the cell's own among them.
    """
    own = next(manifest for manifest in examples if manifest["task"] == cell.task)
    return content_key(
        {
            "parameters": parameters.model_dump(),
            "seed": cell.seed,
            "base_model": base_digest,
            "train": own["splits"]["train"]["digest"],
            "prompts": {manifest["task"]: manifest["prompt"] for manifest in examples},
            "validation": {
                manifest["task"]: manifest["splits"]["validation"]["digest"]
                for manifest in examples
            },
            "max_completion_tokens": evaluation.max_completion_tokens,
            "share_prompts": compute.share_prompts,
            "code": code_digest(
                f"othink_pipeline.{parameters.algorithm}_training", "othink_pipeline.evaluation"
            ),
            "libraries": library_versions(),
        }
    )


def cell_folder(folders: Folders, cell: Cell, key: str) -> Path:
    """Where a cell's training with this content key is kept."""
    return Path(folders.checkpoints) / cell.task / cell.method / f"s{cell.seed}" / key


def find_finished(folder: Path, health: Health) -> dict[str, Any] | None:
    """The manifest of a finished training that is still what it says, else None.

    The policies for numbers that go wrong are not in the content key, for mostly nothing does.
    Where batches were skipped by them, only the same policies make the same training.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    manifest = read_json(file)
    if manifest is None or not manifest.keys() >= _NEEDED:
        logger.warning("%s: no manifest of a finished training; made anew", file)
        return None
    if manifest["skipped_batches"] and manifest["health"] != health.model_dump():
        logger.warning("%s: batches were skipped by other policies of 'health'; made anew", folder)
        return None
    checkpoint = Path(manifest["path"])
    if checkpoint.is_dir() and digest_folder(checkpoint) == manifest["digest"]:
        return manifest
    logger.warning("%s: missing, or changed since it was finished; made anew", checkpoint)
    return None


def resume_state(folder: Path) -> int:
    """The update that an interrupted training can go on from; 0 where there is none."""
    updates = (int(path.name.split("-")[1]) for path in (folder / RESUME).glob("checkpoint-*"))
    return max(updates, default=0)


def failure(error: Exception) -> str:
    """Why something failed, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:500]


def check_files(model: dict[str, Any], remedy: str) -> None:
    """Refuse a model folder whose files are not those of its manifest.

    Raises:
        ConfigurationError: missing or changed files.
    """
    folder = Path(model["path"])
    if not folder.is_dir() or digest_folder(folder) != model["digest"]:
        raise ConfigurationError(
            f"{folder}: missing, or changed since its manifest was written. {remedy}"
        )


def dataset_ref(manifest: dict[str, Any], split: str) -> DatasetRef:
    """A split of a task's examples, as tracking names it."""
    part = manifest["splits"][split]
    return DatasetRef(f"{manifest['task']}_{split}", part["digest"], part["path"], part["examples"])
