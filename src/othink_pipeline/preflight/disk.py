"""What a run writes, and whether the disk has room for it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.safetensors import Weights
from othink_pipeline.core.units import describe_bytes
from othink_pipeline.data.parameters import Hub, Jsonl, TaskSource
from othink_pipeline.models.parameters import ModelSettings
from othink_pipeline.preflight.weights import checkpoint_bytes, state_bytes
from othink_pipeline.training.parameters import RL, SFT

OTHER_BYTES = 2 * 1024**3
"""Drawn examples, predictions, reports and MLflow's records."""

STATES = 3
"""A training keeps two states to go on from while it writes the third."""


def needed_disk_bytes(
    weights: Weights, cells: Sequence[SFT | RL], settings: ModelSettings, at_once: int = 1
) -> int:
    """What a run writes below ``folders.checkpoints`` at most, and 2 GiB for all the rest.

    Each cell keeps a checkpoint every ``checkpoint_every_updates`` updates and one of the last.
    The cells at work have states to resume from, too.

    Args:
        weights: of the largest base model.
        cells: the parameters of each cell that is still to be trained.
        settings: say in which dtype checkpoints are.
        at_once: so many cells are trained side by side.
    """
    kept = sum(
        -(-cell.updates // cell.checkpoint_every_updates)
        * checkpoint_bytes(weights, cell, settings)
        for cell in cells
    )
    states = sorted(state_bytes(weights, cell, settings) for cell in cells)
    return kept + STATES * sum(states[-at_once:]) + OTHER_BYTES


def source_bytes(sources: Mapping[str, TaskSource], tasks: Sequence[str]) -> int:
    """The copy that data preparation makes of the pictures of tasks that are read, at most.

    A data set of the hub counts nothing: its size is not known before it is there.
    """
    read = [split.source for task in tasks if task in sources for _, split in sources[task]]
    folders = {
        Path(source.images if isinstance(source, Jsonl) else source.path)
        for source in read
        if not isinstance(source, Hub)
    }
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def check_disk(folder: Path, needed_bytes: int = OTHER_BYTES) -> None:
    """Check that the disk of a folder, which need not be there yet, has room.

    Raises:
        ConfigurationError: with the folder, what is free and what is needed.
    """
    free_bytes = shutil.disk_usage(nearest(folder.absolute())).free
    if free_bytes < needed_bytes:
        raise ConfigurationError(
            f"{folder}: {describe_bytes(free_bytes)} free, a run needs "
            f"{describe_bytes(needed_bytes)}. Free some space, move "
            "the project or the folder, or take fewer checkpoints "
            "(training.checkpoint_every_updates), smaller ones (model.dtype: bfloat16) or adapters "
            "alone (training.lora with merge: false)."
        )


def nearest(folder: Path) -> Path:
    """The folder itself or, while it is not there, the one that it will be made in."""
    return next(place for place in (folder, *folder.parents) if place.exists())
