"""Split a task's data sets by their pictures: none stands in two splits.

A source is read twice. The first time every picture is decoded, once, and told apart by its
pixels; the second time the chosen rows are written. In memory is a digest for each row.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.data.columns import SourceRow
from othink_pipeline.data.examples import open_split, read_examples, read_pixels
from othink_pipeline.data.parameters import Hub, TaskSource
from othink_pipeline.data.pictures import UnusableError, prepare
from othink_pipeline.data.sources import SourceRows, read_source
from othink_pipeline.scoring.kinds import AnswerKind

logger = logging.getLogger(__name__)

PROGRESS_ROWS = 10_000
"""A line in the log after so many rows."""


LISTED = 5
"""So many of the rows that cannot be used are named."""


class Meaning(NamedTuple):
    """What a row is told apart by.

    Attributes:
        picture: SHA-256 of its decoded pixels.
        text: of its question and answer, 8 bytes of it.
    """

    picture: bytes
    text: bytes


class Survey(NamedTuple):
    """What a task's sources hold.

    Attributes:
        sources: their rows, by ``train`` and ``test``.
        train: the number of each usable row of the training source -> what it means.
        test: the same of the first rows of the test source.
        rejected: of each row that cannot be used its place and why: ``id``, ``reason``.
        overlapping: the same of training rows whose pictures also stand in ``test``.
    """

    sources: dict[str, SourceRows]
    train: dict[int, Meaning]
    test: dict[int, Meaning]
    rejected: list[dict[str, str]]
    overlapping: list[dict[str, str]]


def survey_sources(task: str, source: TaskSource, test_rows: int, answers: AnswerKind) -> Survey:
    """Look at every row of the training source, and at the first ``test_rows`` of the test source.

    Raises:
        ConfigurationError: as ``read_source``; or a row of the test source cannot be used.
    """
    sources = _open_sources(task, source)
    rejected: list[dict[str, str]] = []
    overlapping: list[dict[str, str]] = []
    tested = sources["test"].read()
    looked = _look(task, "test", islice(tested, test_rows), rejected, answers)
    test = {number: meaning for number, _, meaning in looked}
    if next(tested, None) is not None:
        logger.warning(
            "%s: its test source has more rows than data_preparation.splits.test = %d: the first "
            "are taken. Where they are sorted by something, that is a corner of them: shuffle them",
            task,
            test_rows,
        )
    if rejected:  # of another number of items a score would be another one
        listed = "; ".join(f"{row['id']}: {row['reason']}" for row in rejected[:LISTED])
        raise ConfigurationError(
            f"data_preparation.sources.{task}.test: {len(rejected)} examples cannot be used, and "
            f"a test set is taken as it is or not at all: {listed}. Download what is missing, or "
            "mend the file."
        )
    shown = {meaning.picture for meaning in test.values()}
    train: dict[int, Meaning] = {}
    rows = sources["train"].read()
    for number, place, meaning in _look(task, "train", rows, rejected, answers):
        if meaning.picture in shown:
            overlapping.append({"id": place, "reason": "its picture is in the test split"})
        else:
            train[number] = meaning
    return Survey(sources, train, test, rejected, overlapping)


def choose_rows(
    train: Mapping[int, Meaning], sizes: Mapping[str, int], seed: int
) -> dict[str, list[int]]:
    """Which rows of a training source become ``validation`` and ``train``, at random by ``seed``.

    No picture stands in both. The order of the source does not matter: rows are taken in an order
    that the seed and their pictures decide, first ``validation``, then at most
    ``sizes["train"]`` for ``train``. What is left of the last validation picture is in neither.
    """

    def order(number: int) -> tuple[bytes, bytes, int]:
        picture, text = train[number]
        return hashlib.sha256(f"{seed}/".encode() + picture).digest(), text, number

    ordered = sorted(train, key=order)
    validation = ordered[: sizes["validation"]]
    held_out = {train[number].picture for number in validation[-1:]}
    rest = (n for n in ordered[len(validation) :] if train[n].picture not in held_out)
    return {"validation": validation, "train": list(islice(rest, sizes["train"]))}


def split_rows(
    task: str, survey: Survey, sizes: Mapping[str, int], seed: int
) -> dict[str, list[int]]:
    """The rows of every split: numbers in their source, in the order of the examples.

    Raises:
        ConfigurationError: too few usable rows.
    """
    key = f"data_preparation.sources.{task}"
    lost = f"{len(survey.rejected)} rejected, {len(survey.overlapping)} with pictures of the test"
    if not survey.test:
        raise ConfigurationError(f"{key}.test: no example that can be used ({lost}).")
    chosen = choose_rows(survey.train, sizes, seed)
    if len(chosen["validation"]) < sizes["validation"] or not chosen["train"]:
        raise ConfigurationError(
            f"{key}.train: {len(survey.train)} examples that can be used ({lost}), too few for "
            f"data_preparation.splits.validation = {sizes['validation']} and a train split of "
            "other pictures. Make it smaller, or take a larger data set."
        )
    return {**chosen, "train": sorted(chosen["train"]), "test": sorted(survey.test)}


def read_splits(
    task: str, survey: Survey, chosen: Mapping[str, list[int]], scratch: Path
) -> Iterator[dict[str, Any]]:
    """Yield the chosen examples: ``test``, ``train``, then ``validation``; see ``draw_examples``.

    Args:
        scratch: folder for the validation examples, which are in another order than their source:
            the first few are as random a choice of pictures as all, with all questions of each.
    """
    yield from _select(task, survey.sources["test"], survey.test, chosen, ("test",))
    with TemporaryDirectory(prefix=".", dir=scratch) as folder:
        held = Path(folder) / "validation.arrow"
        both = ("train", "validation")
        with open_split(held) as hold:
            for example in _select(task, survey.sources["train"], survey.train, chosen, both):
                if example["split"] == "train":
                    yield example
                else:
                    hold(example)
        yield from _sorted(held)


def peek(
    task: str, source: TaskSource, rows: int, max_rejected: int, answers: AnswerKind
) -> list[dict[str, Any]]:
    """Examples from the first few rows of each source; ``train`` and ``validation`` are the same.

    Raises:
        ConfigurationError: as ``read_source``; or one of these rows cannot be used, of the
            training source more than ``max_rejected``.
    """
    examples, rejected = [], 0
    for split, part in _open_sources(task, source).items():
        for number, row in enumerate(islice(part.read(), rows)):
            try:
                meaning = _read_meaning(row, task, split, answers)
            except UnusableError as error:
                rejected += 1
                if split == "train" and rejected <= max_rejected:
                    continue
                raise ConfigurationError(
                    f"data_preparation.sources.{task}.{split}: {row.place}: {error}"
                ) from None
            for name in ("train", "validation") if split == "train" else ("test",):
                examples.append(_example(row, task, name, number, meaning))
    return examples


def _open_sources(task: str, source: TaskSource) -> dict[str, SourceRows]:
    """By split; what is on this machine is looked at before anything is downloaded."""
    opened = {
        name: read_source(part, f"data_preparation.sources.{task}.{name}")
        for name, part in sorted(source, key=lambda named: isinstance(named[1].source, Hub))
    }
    return {name: opened[name] for name, _ in source}


def _look(
    task: str,
    split: str,
    rows: Iterable[SourceRow],
    rejected: list[dict[str, str]],
    answers: AnswerKind,
) -> Iterator[tuple[int, str, Meaning]]:
    """Number, place and meaning of each usable row; the others go to ``rejected``."""
    for number, row in enumerate(rows):
        if number and number % PROGRESS_ROWS == 0:
            logger.info("%s: %s rows of the %s source looked at", task, number, split)
        place = f"{task} {split} source, {row.place}"
        try:
            yield number, place, _read_meaning(row, task, split, answers)
        except UnusableError as error:
            rejected.append({"id": place, "reason": str(error)})


def _read_meaning(row: SourceRow, task: str, split: str, answers: AnswerKind) -> Meaning:
    if row.fault:
        raise UnusableError(row.fault)
    example = _example(row, task, split, 0, Meaning(b"", b""))
    pixels = read_pixels(example, None, answers)
    text = hashlib.sha256(f"{row.question}\0{row.answer}".encode()).digest()[:8]
    return Meaning(hashlib.sha256(pixels).digest(), text)


def _select(
    task: str,
    source: SourceRows,
    meanings: Mapping[int, Meaning],
    chosen: Mapping[str, list[int]],
    splits: tuple[str, ...],
) -> Iterator[dict[str, Any]]:
    """The examples of some splits in the order of their source."""
    wanted = {
        number: (split, place) for split in splits for place, number in enumerate(chosen[split])
    }
    for number, row in enumerate(islice(source.read(), max(wanted) + 1)):
        if number in wanted:
            yield _example(row, task, *wanted[number], meanings[number])


def _sorted(file: Path) -> Iterator[dict[str, Any]]:
    """The examples of a file in the order of their ids."""
    from datasets import Image

    examples = read_examples(file).cast_column("image", Image(decode=False))
    ids: list[str] = examples["id"][:]
    for row in sorted(range(len(ids)), key=ids.__getitem__):
        yield {**examples[row], "image": examples[row]["image"]["bytes"]}


def _example(
    row: SourceRow, task: str, split: str, number: int, meaning: Meaning
) -> dict[str, Any]:
    return {
        "id": f"{task}-{split}-{number:06d}",
        "task": task,
        "split": split,
        "key": meaning.picture.hex(),
        "form": "",
        "question": row.question,
        "answer": row.answer,
        "steps": row.steps,
        "image": prepare(row.images),
    }
