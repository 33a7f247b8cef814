"""Examples: one table a split, an Arrow file that is mapped into memory, pictures as they came.

A drawn problem's meaning decides its split (``split_of``), so no two splits can share a problem,
whatever the seed; ``source_splits`` does as much for data sets. Digests cover fields and decoded
pixels, never PNG or Arrow bytes, which change with the versions of their encoders.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from PIL import Image

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.data.tasks import load_task
from othink_pipeline.scoring.answers import read

if TYPE_CHECKING:
    from datasets import Dataset

SPLIT_SHARES = {"base": 50, "train": 20, "validation": 6, "test": 24}
"""Percent of all meanings. ``base`` is what the base model is trained on."""

MAX_MISSES = 100_000
"""So many problems in a row that fill no split: there are no more."""

BATCH_EXAMPLES = 1000
"""So many examples wait in memory to be written together."""

BATCH_BYTES = 32_000_000
"""Or as many as have so many bytes of pictures, the last one apart."""

FORMATS = ("PNG", "JPEG", "WEBP")
"""What is opened. Pillow hands an EPS over to Ghostscript, a program that runs what it reads."""

MAX_PIXELS = 25_000_000
"""A larger picture is refused by its header: decoded it would take 75 MB and more."""

MAX_ASPECT = 200
"""Qwen's processors refuse pictures that are longer than so many times their width."""

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


class UnusableError(ValueError):
    """Why an example cannot be used."""


def read_pixels(example: Mapping[str, Any], size_px: int | None = None) -> bytes:
    """Check an example and decode its picture, once: the pixels, RGB, row by row.

    Args:
        size_px: the width and height that the picture must have; None: any.

    Raises:
        UnusableError: a field that is missing or no text, an empty question, an answer that the
            scorer cannot read, or a picture that cannot be used.
    """
    for name in TEXT_FIELDS:
        if not isinstance(example.get(name), str):
            raise UnusableError(f"field {name!r} is {type(example.get(name)).__name__}, not text")
    if not example["question"].strip():
        raise UnusableError("the question is empty")
    if read(example["answer"]) is None:
        raise UnusableError(f"the answer {example['answer']!r} does not parse")
    if not isinstance(example.get("image"), bytes):
        raise UnusableError(f"field 'image' is {type(example.get('image')).__name__}, not bytes")
    try:
        with _open(example["image"]) as image:
            _check_size(*image.size, size_px)  # from the header: a huge picture is never decoded
            return _on_white(image).tobytes()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, UnusableError):
            raise
        raise UnusableError(f"the image does not decode: {error}") from error


def _on_white(image: Image.Image) -> Image.Image:
    """As models see it: transformers lays what is transparent on white."""
    if image.mode != "RGB":
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def find_fault(example: Mapping[str, Any], size_px: int | None = None) -> str | None:
    """Why ``example`` cannot be used, or None if it can; see ``read_pixels``."""
    try:
        read_pixels(example, size_px)
    except UnusableError as error:
        return str(error)
    return None


def _check_size(width: int, height: int, size_px: int | None) -> None:
    found = f"the image is {width} x {height}"
    if size_px is not None and (width, height) != (size_px, size_px):
        raise UnusableError(f"{found}, not {size_px} x {size_px}")
    if width * height > MAX_PIXELS:
        raise UnusableError(f"{found}: more than {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnusableError(f"{found}: more than {MAX_ASPECT} times as long as wide")


def _open(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture), formats=FORMATS)


def picture_size(picture: bytes) -> tuple[int, int]:
    """Width and height, from the header alone."""
    with _open(picture) as image:
        return image.size


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
