"""Examples as the tests write and look at them."""

from __future__ import annotations

import io
import struct
import zlib
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


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds 100,000 bytes, whatever it says."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    content = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    return b"\x89PNG\r\n\x1a\n" + header + content + chunk(b"IEND", b"")


def transparent() -> bytes:
    """A picture of nothing, which models see as white."""
    file = io.BytesIO()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(file, "PNG")
    return file.getvalue()


def decode(picture: bytes) -> Image.Image:
    """Decode image bytes fully, as RGB."""
    return Image.open(io.BytesIO(picture)).convert("RGB")
