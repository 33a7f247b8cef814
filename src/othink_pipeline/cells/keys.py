"""What a cell is on disk: where it lives, the key of its content, and how it may have failed.

A cell's folder is named by its content key: everything that its training depends on. What is
finished is found again by it, whatever was tried in between; what changed gets a folder of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from othink_pipeline.cells.accelerate_config import read_launcher
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.parameters import Evaluation, Folders
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.code import code_digest, library_versions
from othink_pipeline.core.files import MANIFEST, content_key, digest_folder, read_json
from othink_pipeline.models.base_models import digest_model
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.tracking.journal import DatasetRef
from othink_pipeline.training.parameters import RL, SFT, Health

logger = logging.getLogger(__name__)

SAME_ENV = "(with the --env of this run)"
"""Without it a command would change the results of conf/base."""

RESUME = "resume"
"""The folder, within a cell's, with the states that an interrupted training goes on from."""

FAILED = "failed"
"""Key of a manifest that holds why there is nothing else in it."""

RL_ONLY = ("share_prompts", "vllm")
"""Keys of ``compute`` that supervised fine-tuning does not look at."""

_NEEDED = {"checkpoint", "digest", "updates", "faults", "health"}


def training_code(algorithm: str) -> tuple[str, ...]:
    """The modules whose code, and all that it imports, makes a cell's checkpoints and curves."""
    return f"othink_pipeline.training.{algorithm}", "othink_pipeline.evaluation.predictions"


def training_key(
    cell: Cell,
    parameters: SFT | RL,
    base_digest: str,
    examples: Sequence[dict[str, Any]],
    evaluation: Evaluation,
    model: ModelSettings,
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
            "prompt": own["splits"]["train"]["prompt"],
            "prompts": {
                manifest["task"]: manifest["splits"]["validation"]["prompt"]
                for manifest in examples
            },
            "validation": {
                manifest["task"]: manifest["splits"]["validation"]["digest"]
                for manifest in examples
            },
            "max_completion_tokens": evaluation.max_completion_tokens,
            "model": model.model_dump(),
            "compute": {
                name: value
                for name, value in arithmetic(compute).items()
                if parameters.algorithm == "rl" or name not in RL_ONLY
            },
            "code": code_digest(*training_code(parameters.algorithm)),
            "libraries": library_versions(),
        }
    )


def arithmetic(compute: Compute) -> dict[str, Any]:
    """What of ``compute`` a training's numbers depend on.

    Raises:
        ConfigurationError: the launcher's file cannot be read.
    """
    settings = compute.model_dump(exclude={"data_workers", "resume_every_updates", "fresh"})
    return settings | {
        "launcher": compute.launcher and read_launcher(compute.launcher),
        "vllm": compute.vllm and compute.vllm.mode,  # where it runs makes no difference
    }


def cell_folder(folders: Folders, cell: Cell, key: str) -> Path:
    """Where a cell's training with this content key is kept."""
    return Path(folders.checkpoints) / cell.task / cell.method / f"s{cell.seed}" / key


def find_finished(folder: Path, health: Health, whole: bool = True) -> dict[str, Any] | None:
    """The manifest of a finished training that is still what it says, else None.

    The policies for numbers that go wrong are not in the content key, for mostly nothing does.
    Where something did, only the same policies for it make the same training.

    Args:
        whole: look at every byte of the checkpoint, not just whether it is there.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    manifest = read_json(file)
    if manifest is None or not manifest.keys() >= _NEEDED:
        logger.warning("%s: no manifest of a finished training", file)
        return None
    for fault in manifest["faults"]:
        if manifest["health"][fault] != (policy := getattr(health, fault)):
            logger.warning("%s: not made with health.%s = %s", folder, fault, policy)
            return None
    checkpoint = folder / manifest["checkpoint"]
    if not checkpoint.is_dir() or (whole and digest_folder(checkpoint) != manifest["digest"]):
        logger.warning("%s: missing, or changed since it was finished", checkpoint)
        return None
    return {**manifest, "path": str(checkpoint)}


def resume_state(folder: Path) -> int:
    """The update that an interrupted training can go on from; 0 where there is none."""
    updates = (int(path.name.split("-")[1]) for path in (folder / RESUME).glob("checkpoint-*"))
    return max(updates, default=0)


def check_files(model: dict[str, Any], remedy: str) -> None:
    """Refuse a base model whose files are not those of its manifest.

    Raises:
        ConfigurationError: missing or changed files.
    """
    folder = Path(model["path"])
    if not folder.is_dir() or digest_model(model) != model["digest"]:
        raise ConfigurationError(
            f"{folder}: missing, or changed since its manifest was written. {remedy}"
        )


def check_examples(manifest: dict[str, Any]) -> None:
    """Refuse examples that have been made anew since the manifest was read.

    Raises:
        ConfigurationError: other examples are there.
    """
    folder = Path(manifest["splits"]["train"]["path"]).parent
    if read_json(folder / MANIFEST) != manifest:
        raise ConfigurationError(
            f"{folder}: not the examples that the catalog speaks of. "
            f"Prepare them again: kedro run --pipelines=data_preparation {SAME_ENV}"
        )


def check_code(*modules: str) -> None:
    """Refuse to go on with code that was edited after its digest went into a content key.

    To be called once the modules are imported: what was read then is what runs.

    Raises:
        ConfigurationError: it was.
    """
    if code_digest.__wrapped__(*modules) != code_digest(*modules):
        raise ConfigurationError(
            "the code in src/othink_pipeline was edited after this run began. Run it again: what "
            "is finished is reused, the rest is made with the code as it is now."
        )


def dataset_ref(manifest: dict[str, Any], split: str) -> DatasetRef:
    """A split of a task's examples, as tracking names it."""
    part = manifest["splits"][split]
    return DatasetRef(f"{manifest['task']}_{split}", part["digest"], part["path"], part["examples"])
