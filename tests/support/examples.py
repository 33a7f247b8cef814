"""Examples as the tests write and look at them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from othink_pipeline.data.examples import open_split


def write_examples(examples: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write one split, as data preparation does."""
    with open_split(path) as add:
        for example in examples:
            add(example)


def transparent() -> bytes:
    """A picture of nothing, which models see as white."""
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(file, "PNG")
    return file.getvalue()


def decode(picture: bytes) -> Image.Image:
    """Decode image bytes fully, as RGB."""
    return Image.open(io.BytesIO(picture)).convert("RGB")
