"""Make, validate, split and publish the examples of a task: drawn, or read from data sets."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.code import code_digest
from othink_pipeline.core.files import MANIFEST, content_key, publish
from othink_pipeline.core.locks import lock, say_busy
from othink_pipeline.data.examples import draw_examples, open_split, read_pixels, update_digest
from othink_pipeline.data.fingerprints import fingerprint
from othink_pipeline.data.manifests import Examples, Split
from othink_pipeline.data.near_duplicates import Gallery
from othink_pipeline.data.parameters import DataPreparation
from othink_pipeline.data.pictures import UnusableError
from othink_pipeline.data.source_splits import read_splits, split_rows, survey_sources
from othink_pipeline.data.tasks import IMAGE_SIZE_PX

logger = logging.getLogger(__name__)

CELL_SPLITS = ("train", "validation", "test")

PROGRESS_EXAMPLES = 10_000
"""A line in the log after so many examples."""


def prepare_splits(
    data_preparation: DataPreparation, task: str, splits: tuple[str, ...], folder: Path
) -> Examples:
    """Publish some splits of a task in ``folder``, unless they stand there already.

    A prompt is no part of the files: where nothing else is another, it is replaced in the manifest.

    Examples go to their files as they are drawn or read: memory does not grow with their number,
    but for what ``draw_examples`` and ``survey_sources`` must remember of each.

    Raises:
        ConfigurationError: too few distinct problems or pictures, data sets that cannot be read,
            or more rejected examples than ``max_rejected``; those are in
            ``<folder>_rejected.csv``.
    """
    if task in data_preparation.sources and "base" in splits:
        raise ConfigurationError(
            f"task {task!r} is read from data sets, and only drawn tasks have examples for a base "
            f"model made here. Leave out data_preparation.sources.{task}, or set base_model to a "
            "model that is there."
        )
    sizes = data_preparation.sizes_of(task, splits)
    files = _files_key(data_preparation, task, splits)
    busy = say_busy(f"{task}: another run prepares its examples")
    with lock(folder.with_name(f".{folder.name}.lock"), busy):
        finished = _find_finished(folder, files)
        if finished:
            if finished.rejected > data_preparation.max_rejected:
                raise ConfigurationError(
                    f"{task}: {finished.rejected} examples were rejected when {folder} was made. "
                    f"All reasons: {_rejected_file(folder)}. Mend the source, or raise "
                    f"data_preparation.max_rejected (now {data_preparation.max_rejected})."
                )
            count = sum(split.examples for split in finished.splits.values())
            logger.info("%s: %s examples reused from %s", task, count, folder)
            return _with_prompts(finished, data_preparation, folder)
        return _make_splits(data_preparation, task, sizes, folder, files)


def _make_splits(
    data_preparation: DataPreparation, task: str, sizes: dict[str, int], folder: Path, files: str
) -> Examples:
    source = data_preparation.sources.get(task)
    with publish(folder) as scratch:
        if source is None:
            facts: dict[str, Any] = {}
            rejected: list[dict[str, str]] = []
            drawn = _draw(task, sizes, data_preparation, rejected)
            parts = _write_splits(task, drawn, sizes, scratch)
            _refuse_rejects(task, rejected, [], data_preparation.max_rejected, folder)
        else:
            answers = data_preparation.answers_of(task)
            survey = survey_sources(task, source, sizes["test"], answers)
            rejected = survey.rejected
            _refuse_rejects(
                task, rejected, survey.overlapping, data_preparation.max_rejected, folder
            )
            if survey.overlapping:
                logger.warning(
                    "%s: %d training examples are left out: their pictures are in the test split",
                    task,
                    len(survey.overlapping),
                )
            chosen = split_rows(task, survey, sizes, data_preparation.seed)
            sizes = {split: len(chosen[split]) for split in sizes}
            gallery = Gallery()
            read = gallery.watch(read_splits(task, survey, chosen, scratch))
            parts = _write_splits(task, ((example, b"") for example in read), sizes, scratch)
            facts = {
                "overlapping": len(survey.overlapping),
                "near_duplicates": _list_near_duplicates(task, gallery, sizes["test"], folder),
                "sources": {name: part.facts for name, part in survey.sources.items()},
            }
        manifest = Examples.write_folder(
            scratch,
            task=task,
            seed=data_preparation.seed,
            key=_add_prompts(files, data_preparation, task, sizes),
            files=files,
            rejected=len(rejected),
            answers=data_preparation.answers_of(task),
            splits={
                split: Split(
                    path=str(folder / f"{split}.arrow"),
                    examples=count,
                    digest=digest,
                    prompt=data_preparation.prompt_of(task, split),
                )
                for split, (count, digest) in parts.items()
            },
            **facts,
        )
    count = sum(split.examples for split in manifest.splits.values())
    logger.info("%s: %s examples, %s rejected -> %s", task, count, len(rejected), folder)
    return manifest


def _refuse_rejects(
    task: str,
    rejected: list[dict[str, str]],
    overlapping: list[dict[str, str]],
    max_rejected: int,
    folder: Path,
) -> None:
    """List what is left out, with reasons, beside ``folder``, and stop if too much is rejected."""
    file = _rejected_file(folder)
    pd.DataFrame([*rejected, *overlapping], columns=["id", "reason"]).to_csv(file, index=False)
    if len(rejected) > max_rejected:
        raise ConfigurationError(
            f"{task}: {len(rejected)} examples rejected, the first: {rejected[0]['id']}: "
            f"{rejected[0]['reason']}. "
            f"All reasons: {file}. Mend the source, or raise "
            f"data_preparation.max_rejected (now {max_rejected})."
        )


def _rejected_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}_rejected.csv")


def _list_near_duplicates(task: str, gallery: Gallery, tests: int, folder: Path) -> int:
    """List beside ``folder`` what is near the test split; how many test examples it concerns.

    Of data sets alone: what is drawn is split by its meaning, and a picture that is nearly the same
    with another meaning is what such a task asks about.
    """
    found = gallery.find()
    file = folder.with_name(f"{folder.name}_near_duplicates.csv")
    found.pairs.to_csv(file, index=False)
    if found.test_examples:
        logger.warning(
            "%s: %d of %d test examples show almost the same picture as one of training or "
            "validation. They are kept; see %s",
            *(task, found.test_examples, tests, file),
        )
    return found.test_examples


def examples_key(data_preparation: DataPreparation, task: str, splits: tuple[str, ...]) -> str:
    """The content key of some splits of a task: the same key, the same examples.

    Raises:
        ConfigurationError: a data set is not where its source says.
    """
    files = _files_key(data_preparation, task, splits)
    return _add_prompts(files, data_preparation, task, splits)


def _add_prompts(
    files: str, data_preparation: DataPreparation, task: str, splits: Iterable[str]
) -> str:
    prompts = {split: data_preparation.prompt_of(task, split) for split in splits}
    return content_key([files, prompts])


def _files_key(data_preparation: DataPreparation, task: str, splits: tuple[str, ...]) -> str:
    source = data_preparation.sources.get(task)
    if source is None:
        code = code_digest("othink_pipeline.data.examples", f"othink_pipeline.data.tasks.{task}")
        content = None
    else:
        code = code_digest("othink_pipeline.data.source_splits")
        home = f"data_preparation.sources.{task}"
        content = [
            source.model_dump(exclude={"train": {"prompt"}, "test": {"prompt"}}),
            *(fingerprint(part, f"{home}.{name}") for name, part in source),
        ]
    sizes = data_preparation.sizes_of(task, splits)
    answers = data_preparation.answers_of(task).model_dump()
    settings = [task, data_preparation.seed, sizes, answers]
    return content_key([*settings, content, code])


def _draw(
    task: str, sizes: dict[str, int], settings: DataPreparation, rejected: list[dict[str, str]]
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Draw examples, each with its decoded pixels; those that cannot be used go to ``rejected``."""
    answers = settings.answers_of(task)
    for example in draw_examples(task, sizes, settings.seed):
        try:
            yield example, read_pixels(example, IMAGE_SIZE_PX, answers)
        except UnusableError as error:
            rejected.append({"id": str(example.get("id")), "reason": str(error)})


def _write_splits(
    task: str,
    examples: Iterable[tuple[dict[str, Any], bytes]],
    sizes: dict[str, int],
    folder: Path,
) -> dict[str, tuple[int, str]]:
    """Write examples into a file a split; returns how many they are, and their digest.

    Args:
        examples: each with its decoded pixels, or nothing where its key stands for them.
    """
    counts = dict.fromkeys(sizes, 0)
    digests = {split: hashlib.sha256() for split in sizes}
    with ExitStack() as files:
        add = {split: files.enter_context(open_split(folder / f"{split}.arrow")) for split in sizes}
        for number, (example, pixels) in enumerate(examples, start=1):
            if number % PROGRESS_EXAMPLES == 0:
                logger.info("%s: %s of %s examples made", task, number, sum(sizes.values()))
            split = example["split"]
            update_digest(digests[split], example, pixels)
            add[split](example)
            counts[split] += 1
    return {split: (counts[split], digests[split].hexdigest()) for split in sizes}


def _with_prompts(examples: Examples, settings: DataPreparation, folder: Path) -> Examples:
    """The same examples, asked with the prompts of ``settings``: its manifest says so."""
    key = _add_prompts(examples.files, settings, examples.task, examples.splits)
    if key == examples.key:
        return examples
    splits = {
        name: split.model_copy(update={"prompt": settings.prompt_of(examples.task, name)})
        for name, split in examples.splits.items()
    }
    asked = examples.model_copy(update={"key": key, "splits": splits})
    asked.write(folder / MANIFEST)
    return asked


def _find_finished(folder: Path, files: str) -> Examples | None:
    """The manifest in ``folder`` if it is whole and made from the same content."""
    try:
        manifest = Examples.read_folder(folder, "It is made anew.")
    except ConfigurationError as error:
        if folder.exists():
            logger.warning("%s", error.message)
        return None
    return manifest if manifest.files == files else None
