"""Test examples as the page shows them: a question, its answer, a small picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from PIL import Image

PICTURE_PX = 256
"""The longer side of a picture at most; a smaller one stays as it is."""
QUALITY = 75
MAX_PICTURE_BYTES = 16_000_000
"""Of all pictures together: those of the examples after that are left out."""


class Item(NamedTuple):
    """A test example."""

    example_id: str
    task: str
    form: str
    question: str
    gold: str
    picture: str
    """A data URI; empty where there is no room for it."""


def make_items(
    examples: Iterable[Mapping[str, Any]], shown: Mapping[str, str] | None = None
) -> list[Item]:
    """Test examples in their order.

    Args:
        examples: with id, task, form, question, answer (str) and image (encoded bytes).
        shown: by example, the one whose picture the models saw instead of its own; None: its own.
    """
    examples_read, pictures, room_bytes = [], {}, MAX_PICTURE_BYTES
    for example in examples:
        picture = _small_picture(example["image"])
        room_bytes -= len(picture)
        pictures[example["id"]] = picture if room_bytes >= 0 else ""
        examples_read.append([example[key] for key in ("id", "task", "form", "question", "answer")])
    seen = shown or {}
    return [Item(*texts, pictures[seen.get(texts[0], texts[0])]) for texts in examples_read]


def _small_picture(encoded: bytes) -> str:
    """A picture as the data URI of a WebP, whichever of its two ways is the smaller one."""
    with Image.open(io.BytesIO(encoded)) as image:
        small = image.convert("RGB")
    small.thumbnail((PICTURE_PX, PICTURE_PX))
    made = []
    for lossless in (False, True):
        file = io.BytesIO()
        small.save(file, "WEBP", quality=QUALITY, lossless=lossless)
        made.append(file.getvalue())
    content = base64.b64encode(min(made, key=len)).decode()
    return f"data:image/webp;base64,{content}"
