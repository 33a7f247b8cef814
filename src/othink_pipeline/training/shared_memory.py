"""Room for what data workers hand over: where it is full, torch waits for a batch for ever."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from othink_pipeline.core.units import describe_bytes
from othink_pipeline.training.rows import rl_rows

if TYPE_CHECKING:
    from datasets import Dataset

PLACE = Path("/dev/shm")
"""Linux's shared memory; containers have 64 MB of it unless they are given more."""

AHEAD = 2
"""Batches that each worker prepares before they are asked for: torch's default."""


def find_shortage(
    examples: Dataset, prompt: str, processor: Any, prompts_per_update: int, workers: int
) -> tuple[str, str] | None:
    """What is wrong with the room for data workers, and the remedy; None: nothing.

    Args:
        examples: of which the first stands for all.
        prompt: template with ``{question}``.
        workers: in each process.
    """
    if not workers or not PLACE.is_dir():
        return None
    made = rl_rows(examples, prompt, processor)[0]["encoded"]
    tensors = [made.ids, *made.token_fields.values(), *made.image_fields.values()]
    needed = sum(tensor.nbytes for tensor in tensors) * prompts_per_update * AHEAD * workers
    free = shutil.disk_usage(PLACE).free
    if needed <= free:
        return None
    return (
        f"compute.data_workers = {workers}: they need about {describe_bytes(needed)} of shared "
        f"memory, and {PLACE} has {describe_bytes(free)} free",
        "Give the container more (docker run --shm-size=8g), or set compute.data_workers: 0",
    )
