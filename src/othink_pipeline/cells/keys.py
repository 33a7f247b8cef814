"""What a cell is on disk: where it lives, the key of its content, and whether it is what it was.

A cell's folder is named by its content key: everything that its training depends on. What is
finished is found again by it, whatever was tried in between; what changed gets a folder of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from othink_pipeline.cells.accelerate_config import read_launcher, read_sharing
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.manifests import Training
from othink_pipeline.cells.parameters import Evaluation, Folders, Parameters
from othink_pipeline.core.blocks import SAME_ENV, ConfigurationError
from othink_pipeline.core.code import code_digest, library_versions
from othink_pipeline.core.files import MANIFEST, content_key, digest_folder, read_json
from othink_pipeline.data.manifests import Examples
from othink_pipeline.models.base_models import digest_model
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.tracking.journal import DatasetRef
from othink_pipeline.training.health import find_change
from othink_pipeline.training.parameters import RL, SFT, Health

logger = logging.getLogger(__name__)

RESUME = "resume"
"""The folder, within a cell's, with the states that an interrupted training goes on from."""

JOURNAL = "journal.jsonl"
"""The file, within a cell's folder, with all that its training recorded."""

BEGUN_BY = "begun_by"
"""The file, in the folder of a cell that was begun anew, with the token of the run that did so."""

RL_ONLY = ("share_prompts", "vllm")
"""Keys of ``compute`` that supervised fine-tuning does not look at."""


def training_code(algorithm: str) -> tuple[str, ...]:
    """The modules whose code, and all that it imports, makes a cell's checkpoints and curves."""
    return f"othink_pipeline.training.{algorithm}", "othink_pipeline.evaluation.predictions"


class Settings(NamedTuple):
    """The parameter blocks that cells share."""

    evaluation: Evaluation
    folders: Folders
    model: ModelSettings
    compute: Compute
    health: Health

    @classmethod
    def of(cls, parameters: Parameters) -> Settings:
        """Those of an environment."""
        return cls(*(getattr(parameters, name) for name in cls._fields))


def training_key(
    cell: Cell,
    parameters: SFT | RL,
    base_digest: str,
    examples: Sequence[Examples],
    settings: Settings,
) -> str:
    """The content key of a cell's training: the same key, the same weights and curves.

    Not in it is what changes nothing: names, folders, how often a state is saved; and the batch
    size of the evaluation, which in bfloat16 may change the scores of checkpoints by rounding.

    Args:
        examples: of all tasks, the cell's own among them.
    """
    train = examples_of(cell.task, examples).splits["train"]
    validation = {each.task: each.splits["validation"] for each in examples}
    return content_key(
        {
            "parameters": parameters.model_dump(),
            "seed": cell.seed,
            "base_model": base_digest,
            "train": train.digest,
            "prompt": train.prompt,
            "prompts": {task: split.prompt for task, split in validation.items()},
            "answers": {each.task: each.answers.model_dump() for each in examples},
            "validation": {task: split.digest for task, split in validation.items()},
            "max_completion_tokens": settings.evaluation.max_completion_tokens,
            **numerics(parameters, settings),
            "code": code_digest(*training_code(parameters.algorithm)),
            "libraries": library_versions(_optional_libraries(parameters, settings)),
        }
    )


def examples_of(task: str, examples: Sequence[Examples]) -> Examples:
    """Those of one task."""
    return next(each for each in examples if each.task == task)


def numerics(parameters: SFT | RL, settings: Settings) -> dict[str, dict[str, Any]]:
    """What of ``model`` and ``compute`` a cell's numbers depend on.

    Raises:
        ConfigurationError: as ``arithmetic``.
    """
    compute = {
        name: value
        for name, value in arithmetic(settings.compute).items()
        if parameters.algorithm == "rl" or name not in RL_ONLY
    }
    return {"model": settings.model.model_dump(), "compute": compute}


def arithmetic(compute: Compute) -> dict[str, Any]:
    """What of ``compute`` a training's numbers depend on.

    Raises:
        ConfigurationError: the launcher's file cannot be read.
    """
    settings = compute.model_dump(exclude={"resume_every_updates", "fresh"})
    return settings | {
        "launcher": compute.launcher and read_launcher(compute.launcher),
        "vllm": compute.vllm and compute.vllm.mode,  # where it runs makes no difference
    }


def _optional_libraries(parameters: SFT | RL, settings: Settings) -> set[str]:
    """Those of ``core.code.OPTIONAL`` that a training uses."""
    uses = {
        "bitsandbytes": parameters.optimizer != "adamw",
        "deepspeed": read_sharing(settings.compute).deepspeed,
        "flash_attn": settings.model.uses_flash_attention,
        "vllm": parameters.algorithm == "rl" and settings.compute.vllm is not None,
    }
    return {name for name, used in uses.items() if used}


def cell_folder(folders: Folders, cell: Cell, key: str) -> Path:
    """Where a cell's training with this content key is kept."""
    return Path(folders.checkpoints) / cell.task / cell.method / f"s{cell.seed}" / key


def find_finished(folder: Path, health: Health, whole: bool = True) -> Training | None:
    """The manifest of a finished training that is still what it says, else None.

    The policies for numbers that go wrong are not in the content key, for mostly nothing does:
    see ``find_change`` for which of them make the same training.

    Args:
        whole: look at every byte of the checkpoint, not just whether it is there.

    Raises:
        ConfigurationError: its manifest was written by other code, or by hand: what may be
            finished is not made again unasked.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    if read_json(file) is None:
        logger.warning("%s: no manifest of a finished training", file)
        return None
    cell = ".".join(folder.parts[-4:-1])
    training = Training.read(
        file,
        "Go on with the code that wrote it, or train the cell again: kedro run "
        f"--namespaces={cell} --params=compute.fresh=true {SAME_ENV}",
    )
    rewarded = training.parameters.algorithm == "rl"
    if key := find_change(training.health, health, training.faults, rewarded):
        logger.warning("%s: not made with health.%s = %s", folder, key, getattr(health, key))
        return None
    checkpoint = folder / training.checkpoint
    if not checkpoint.is_dir() or (whole and digest_folder(checkpoint) != training.digest):
        logger.warning("%s: missing, or changed since it was finished", checkpoint)
        return None
    return training


def place_aside(folder: Path) -> Path:
    """Where a finished training waits until the one that is to take its place is finished."""
    return folder.with_name(f".{folder.name}.old")


def find_set_aside(folder: Path, health: Health) -> Training | None:
    """As ``find_finished``, the one that was set aside: for policies that hold once more.

    None where another was asked for (``compute.fresh``): that one is gone on with.
    """
    if (folder / BEGUN_BY).exists():
        return None
    return find_finished(place_aside(folder), health)


def resume_state(folder: Path) -> int:
    """The update that an interrupted training can go on from; 0 where there is none."""
    updates = (int(path.name.split("-")[1]) for path in (folder / RESUME).glob("checkpoint-*"))
    return max(updates, default=0)


def check_model(path: str, digest: str, remedy: str, is_hubs: bool = False) -> None:
    """Refuse a model whose files are not those of its manifest.

    Args:
        is_hubs: see ``digest_model``.

    Raises:
        ConfigurationError: missing or changed files.
    """
    if not Path(path).is_dir() or digest_model(path, is_hubs) != digest:
        raise ConfigurationError(
            f"{path}: missing, or changed since its manifest was written. {remedy}"
        )


def check_examples(examples: Examples) -> None:
    """Refuse examples that have been made anew since their manifest was read.

    Raises:
        ConfigurationError: other examples are there.
    """
    folder = Path(next(iter(examples.splits.values())).path).parent
    remedy = f"Prepare them again: kedro run --pipelines=data_preparation {SAME_ENV}"
    if Examples.read(folder / MANIFEST, remedy) != examples:
        raise ConfigurationError(f"{folder}: not the examples that the catalog speaks of. {remedy}")


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


def dataset_ref(examples: Examples, split: str) -> DatasetRef:
    """A split of a task's examples, as tracking names it."""
    part = examples.splits[split]
    return DatasetRef(f"{examples.task}_{split}", part.digest, part.path, part.examples)
