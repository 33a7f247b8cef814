"""Examples: one table a split, an Arrow file that is mapped into memory, pictures as they came.

A drawn problem's meaning, or what it is made of, decides its split (``tasks.split_of``), so no two
splits can share a problem, whatever the seed; ``source_splits`` does as much for data sets. Digests
cover fields and decoded pixels, never PNG or Arrow bytes, which change with the versions of their
encoders.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.data.pictures import UnusableError, decode, shown
from othink_pipeline.data.tasks import Problem, load_task, split_of
from othink_pipeline.scoring.kinds import EXACT, AnswerKind

if TYPE_CHECKING:
    from datasets import Dataset

MAX_MISSES = 100_000
"""So many problems in a row that fill no split: there are no more."""

BATCH_EXAMPLES = 1000
"""So many examples wait in memory to be written together."""

BATCH_BYTES = 32_000_000
"""Or as many as have so many bytes of pictures, the last one apart."""

TEXT_FIELDS = ("id", "task", "split", "key", "form", "question", "answer", "steps")

ASKED_FIELDS = ("question", "answer", "steps")
"""Those that a model is shown, or is taught to say."""

_SPECIAL = re.compile(
    r"<\|[a-z_]+\|>|<(?:image|video|fake_token_around_image|global-img|end_of_utterance)>"
)
"""Tokens of the families with a meaning of their own."""


def draw_examples(task: str, sizes: Mapping[str, int], seed: int) -> Iterator[dict[str, Any]]:
    """Yield examples until every split in ``sizes`` is full.

    No meaning stands twice in ``train``, ``validation`` or ``test``. Fields: ``TEXT_FIELDS`` (all
    str) and ``image`` (PNG bytes).

    Raises:
        ConfigurationError: a split stays short: the task has too few distinct problems.
        ValueError: a problem is made of parts that belong to several splits: a fault of the task.
    """
    draw_problem = load_task(task)
    rng = Random(f"{task}/{seed}")
    left = dict(sizes)
    seen: set[str] = set()
    misses = 0
    while any(left.values()):
        problem = draw_problem(rng)
        split = _split_of_problem(task, problem)
        if not left.get(split) or problem.key in seen:
            misses += 1
            if misses > MAX_MISSES:
                short = {name: count for name, count in left.items() if count}
                raise ConfigurationError(
                    f"task {task!r} has too few distinct problems, still missing: {short}. "
                    "Make these smaller in data_preparation.splits."
                )
            continue
        misses = 0
        if split != "base":  # repeats among the base model's own examples harm nobody
            seen.add(problem.key)
        number = sizes[split] - left[split]
        left[split] -= 1
        png = io.BytesIO()
        problem.render().save(png, "PNG", compress_level=1)
        yield {
            "id": f"{task}-{split}-{number:06d}",
            "task": task,
            "split": split,
            "key": problem.key,
            "form": problem.form,
            "question": problem.question,
            "answer": problem.answer,
            "steps": problem.steps,
            "image": png.getvalue(),
        }


def _split_of_problem(task: str, problem: Problem) -> str:
    splits = {split_of(task, name) for name in problem.parts or (problem.key,)}
    if len(splits) > 1:
        raise ValueError(
            f"task {task!r}: the parts of problem {problem.key!r} belong to several splits "
            f"({', '.join(sorted(splits))}): draw all of them from one, see tasks.split_of"
        )
    return splits.pop()


def read_pixels(example: Mapping[str, Any], size_px: int | None, answers: AnswerKind) -> bytes:
    """Check an example and decode its picture, once: the pixels, RGB, row by row.

    Args:
        size_px: the width and height that the picture must have; None: any.
        answers: the kind that the answer must be of.

    Raises:
        UnusableError: a field that is missing, no text, or text that no model can be asked; an
            empty question, an answer that the scorer cannot read, or a picture that cannot be used.
    """
    for name in TEXT_FIELDS:
        _check_text(name, example.get(name))
    if not example["question"].strip():
        raise UnusableError("the question is empty")
    if not answers.read_golds(example["answer"]):
        kind = "" if answers == EXACT else f" as {answers.kind}"
        raise UnusableError(f"the answer {shown(example['answer'])} does not parse{kind}")
    if not isinstance(example.get("image"), bytes):
        raise UnusableError(f"field 'image' is {type(example.get('image')).__name__}, not bytes")
    return decode(example["image"], size_px).tobytes()


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise UnusableError(f"field {name!r} is {type(text).__name__}, not text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UnusableError(f"field {name!r} holds half a character: {error.reason}") from None
    if name in ASKED_FIELDS and (token := _SPECIAL.search(text)):
        raise UnusableError(
            f"field {name!r} holds {token[0]!r}, which models take for a picture or a turn's end: "
            "take it out, the picture comes first by itself"
        )


def find_fault(example: Mapping[str, Any], answers: AnswerKind) -> str | None:
    """Why ``example`` cannot be used, or None if it can; see ``read_pixels``."""
    try:
        read_pixels(example, None, answers)
    except UnusableError as error:
        return str(error)
    return None


def update_digest(digest: hashlib._Hash, example: Mapping[str, Any], pixels: bytes) -> None:
    """Feed one example's fields and decoded pixels to ``digest``."""
    fields = [example[name].encode() for name in TEXT_FIELDS]
    for part in (*fields, pixels):
        digest.update(len(part).to_bytes(8))
        digest.update(part)


@contextmanager
def open_split(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A new Arrow file that ``datasets`` maps, with an Image column; yields what adds an example.

    Holds fewer than ``BATCH_EXAMPLES`` examples and ``BATCH_BYTES`` at a time.
    """
    import pyarrow as pa
    from datasets import Features, Image, Value

    features = Features({name: Value("string") for name in TEXT_FIELDS} | {"image": Image()})
    schema = features.arrow_schema
    batch: list[dict[str, Any]] = []
    waiting_bytes = 0
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as file:

        def write_batch() -> None:
            nonlocal waiting_bytes
            file.write_batch(pa.RecordBatch.from_pylist(batch, schema))
            batch.clear()
            waiting_bytes = 0

        def add(example: Mapping[str, Any]) -> None:
            nonlocal waiting_bytes
            batch.append({**example, "image": {"bytes": example["image"], "path": None}})
            waiting_bytes += len(example["image"])
            if len(batch) == BATCH_EXAMPLES or waiting_bytes >= BATCH_BYTES:
                write_batch()

        yield add
        if batch:
            write_batch()


def read_examples(path: str | Path) -> Dataset:
    """Read one split, memory-mapped, images decoded on access."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return Dataset.from_file(str(path))
