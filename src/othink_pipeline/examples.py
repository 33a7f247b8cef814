"""Examples: one table a split, written and read as ``datasets`` parquet with real PNG bytes.

A problem's meaning decides its split (``split_of``), so no two splits can share a problem, whatever
the seed. Digests cover fields and decoded pixels, never PNG or parquet bytes, which change with
the versions of their encoders.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from PIL import Image

from othink_pipeline.scoring import parse_answer
from othink_pipeline.tasks import IMAGE_SIZE_PX, load_task
from othink_pipeline.validation import ConfigurationError

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_SHARES = {"base": 50, "train": 20, "validation": 6, "test": 24}
"""Percent of all meanings. ``base`` is what the base model is trained on."""

MAX_MISSES = 100_000
"""So many problems in a row that fill no split: there are no more."""

BATCH_EXAMPLES = 1000
"""So many examples wait in memory to be written together, as one row group."""

TEXT_FIELDS = ("id", "task", "split", "key", "form", "question", "answer", "steps")


def split_of(task: str, key: str) -> str:
    """The one split in which a problem that means ``key`` may stand."""
    point = int.from_bytes(hashlib.sha256(f"{task}/{key}".encode()).digest()[:8]) % 100
    for split, share in SPLIT_SHARES.items():
        if point < share:
            return split
        point -= share
    raise AssertionError("shares of the splits add up to 100")


def draw_examples(task: str, sizes: Mapping[str, int], seed: int) -> Iterator[dict[str, Any]]:
    """Yield examples until every split in ``sizes`` is full.

    No meaning stands twice in ``train``, ``validation`` or ``test``. Fields: ``TEXT_FIELDS`` (all
    str) and ``image`` (PNG bytes).

    Raises:
        ConfigurationError: a split stays short: the task has too few distinct problems.
    """
    draw_problem = load_task(task)
    rng = Random(f"{task}/{seed}")
    left = dict(sizes)
    seen: set[str] = set()
    misses = 0
    while any(left.values()):
        problem = draw_problem(rng)
        split = split_of(task, problem.key)
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


def find_fault(example: Mapping[str, Any]) -> str | None:
    """Why ``example`` cannot be used, or None if it can."""
    for name in TEXT_FIELDS:
        if not isinstance(example.get(name), str):
            return f"field {name!r} is {type(example.get(name)).__name__}, not text"
    if not example["question"].strip():
        return "the question is empty"
    if parse_answer(example["answer"]) is None:
        return f"the answer {example['answer']!r} does not parse"
    if not isinstance(example.get("image"), bytes):
        return f"field 'image' is {type(example.get('image')).__name__}, not bytes"
    try:
        with _open(example["image"]) as image:
            width, height = image.size  # from the header: a huge picture is never decoded
            if (width, height) != (IMAGE_SIZE_PX, IMAGE_SIZE_PX):
                return f"the image is {width} x {height}, not {IMAGE_SIZE_PX} x {IMAGE_SIZE_PX}"
            image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"the image does not decode: {error}"
    return None


def _open(png: bytes) -> Image.Image:
    # Nothing but PNG: Pillow hands an EPS over to Ghostscript, a program that runs what it reads.
    return Image.open(io.BytesIO(png), formats=("PNG",))


def decode(png: bytes) -> Image.Image:
    """Decode image bytes fully, as RGB."""
    with _open(png) as image:
        return image.convert("RGB")


def update_digest(digest: hashlib._Hash, example: Mapping[str, Any]) -> None:
    """Feed one example's fields and decoded pixels to ``digest``."""
    fields = [example[name].encode() for name in TEXT_FIELDS]
    for part in (*fields, decode(example["image"]).tobytes()):
        digest.update(len(part).to_bytes(8))
        digest.update(part)


@contextmanager
def open_split(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A new parquet file that ``datasets`` reads with an Image column; yields what adds an example.

    Holds fewer than ``BATCH_EXAMPLES`` examples at a time: the file takes them as a row group.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, Value

    features = Features({name: Value("string") for name in TEXT_FIELDS} | {"image": Image()})
    schema = features.arrow_schema
    batch: list[dict[str, Any]] = []
    with pq.ParquetWriter(
        path,
        schema,
        # Not the pictures: compressed already, rarely there twice, no use as smallest and largest.
        compression=dict.fromkeys(TEXT_FIELDS, "snappy"),
        use_dictionary=list(TEXT_FIELDS),
        write_statistics=list(TEXT_FIELDS),
    ) as file:

        def write_batch() -> None:
            file.write_table(pa.Table.from_pylist(batch, schema))
            batch.clear()

        def add(example: Mapping[str, Any]) -> None:
            batch.append({**example, "image": {"bytes": example["image"], "path": None}})
            if len(batch) == BATCH_EXAMPLES:
                write_batch()

        yield add
        if batch:
            write_batch()


def write_examples(examples: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write one split as parquet; see ``open_split``."""
    with open_split(path) as add:
        for example in examples:
            add(example)


def read_examples(path: str | Path) -> Dataset:
    """Read one split, memory-mapped, images decoded on access."""
    import pyarrow.parquet as pq
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    return Dataset(pq.read_table(path, memory_map=True))
