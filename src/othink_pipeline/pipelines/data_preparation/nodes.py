"""Make, validate, split and publish the examples of a task."""

from __future__ import annotations

import hashlib
import logging
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from othink_pipeline.data_parameters import DataPreparation
from othink_pipeline.examples import draw_examples, find_fault, open_split, update_digest
from othink_pipeline.locks import lock
from othink_pipeline.parameters import Folders
from othink_pipeline.reuse import content_key, publish, read_manifest, write_manifest
from othink_pipeline.source import code_digest
from othink_pipeline.validation import ConfigurationError

logger = logging.getLogger(__name__)

CELL_SPLITS = ("train", "validation", "test")

PROGRESS_EXAMPLES = 10_000
"""A line in the log after so many examples."""


def prepare_examples(
    data_preparation: DataPreparation, folders: Folders, *, task: str
) -> dict[str, Any]:
    """Train, validation and test examples of ``task``; see ``prepare_splits``."""
    return prepare_splits(data_preparation, task, CELL_SPLITS, Path(folders.examples) / task)


def prepare_splits(
    data_preparation: DataPreparation, task: str, splits: tuple[str, ...], folder: Path
) -> dict[str, Any]:
    """Publish some splits of a task in ``folder``, unless they stand there already.

    Examples go to their files as they are drawn: memory does not grow with their number, but for
    the keys that ``draw_examples`` must remember.

    Returns:
        The manifest: task, seed, prompt, content key, and for each split its path, size and digest.

    Raises:
        ConfigurationError: too few distinct problems, or more rejected examples than
            ``max_rejected``; those are in ``<folder>_rejected.csv``.
    """
    sizes = {split: getattr(data_preparation.splits, split) for split in splits}
    key = examples_key(data_preparation, task, splits)
    with lock(folder.with_name(f".{folder.name}.lock"), partial(_say_busy, task)):
        finished = _find_finished(folder, key)
        if finished:
            count = sum(split["examples"] for split in finished["splits"].values())
            logger.info("%s: %s examples reused from %s", task, count, folder)
            return finished
        return _make_splits(data_preparation, task, sizes, folder, key)


def _make_splits(
    data_preparation: DataPreparation, task: str, sizes: dict[str, int], folder: Path, key: str
) -> dict[str, Any]:
    with publish(folder) as scratch:
        parts, rejected = _write_splits(task, sizes, data_preparation.seed, scratch)
        rejects_file = folder.with_name(f"{folder.name}_rejected.csv")
        pd.DataFrame(rejected, columns=["id", "reason"]).to_csv(rejects_file, index=False)
        if len(rejected) > data_preparation.max_rejected:
            raise ConfigurationError(
                f"{task}: {len(rejected)} examples rejected, the first: {rejected[0]['reason']}. "
                f"All reasons: {rejects_file}. Mend the source, or raise "
                f"data_preparation.max_rejected (now {data_preparation.max_rejected})."
            )
        manifest = write_manifest(
            scratch,
            {
                "task": task,
                "seed": data_preparation.seed,
                "prompt": data_preparation.prompt,
                "key": key,
                "rejected": len(rejected),
                "splits": {
                    split: {"path": str(folder / f"{split}.parquet"), **part}
                    for split, part in parts.items()
                },
            },
        )
    count = sum(part["examples"] for part in parts.values())
    logger.info("%s: %s examples, %s rejected -> %s", task, count, len(rejected), folder)
    return manifest


def _say_busy(task: str, holder: str) -> None:
    logger.info("%s: another run prepares its examples (%s); waiting", task, holder)


def examples_key(data_preparation: DataPreparation, task: str, splits: tuple[str, ...]) -> str:
    """The content key of some splits of a task: the same key, the same examples."""
    sizes = {split: getattr(data_preparation.splits, split) for split in splits}
    code = code_digest("othink_pipeline.examples", f"othink_pipeline.tasks.{task}")
    return content_key([task, data_preparation.seed, data_preparation.prompt, sizes, code])


def _write_splits(
    task: str, sizes: dict[str, int], seed: int, folder: Path
) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """Draw examples into a file a split; returns its size and digest, and what was rejected."""
    counts = dict.fromkeys(sizes, 0)
    digests = {split: hashlib.sha256() for split in sizes}
    rejected: list[dict[str, str]] = []
    with ExitStack() as files:
        add = {
            split: files.enter_context(open_split(folder / f"{split}.parquet")) for split in sizes
        }
        for number, example in enumerate(draw_examples(task, sizes, seed), start=1):
            if number % PROGRESS_EXAMPLES == 0:
                logger.info("%s: %s of %s examples drawn", task, number, sum(sizes.values()))
            fault = find_fault(example)
            if fault:
                rejected.append({"id": str(example.get("id")), "reason": fault})
                continue
            split = example["split"]
            update_digest(digests[split], example)
            add[split](example)
            counts[split] += 1
    parts = {
        split: {"examples": counts[split], "digest": digests[split].hexdigest()} for split in sizes
    }
    return parts, rejected


def _find_finished(folder: Path, key: str) -> dict[str, Any] | None:
    """The manifest in ``folder`` if it is whole and made from the same content."""
    try:
        manifest = read_manifest(folder, "It is made anew.")
    except ConfigurationError as error:
        if folder.exists():
            logger.warning("%s", error.message)
        return None
    return manifest if manifest.get("key") == key else None
