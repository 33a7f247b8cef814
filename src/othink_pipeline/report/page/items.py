"""Test examples as the page shows them: a question, its answer, a small picture."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from PIL import Image

PICTURE_PX = 256
"""The longer side of a picture at most; a smaller one stays as it is."""
QUALITY = 75
MAX_PICTURE_BYTES = 16_000_000
"""Of all pictures together, about: those of the examples after that are left out."""


class Item(NamedTuple):
    """A test example."""

    example_id: str
    task: str
    form: str
    question: str
    gold: str
    picture: str
    """A data URI; empty where there is no room for it."""

    def open_picture(self) -> Image.Image:
        """The picture, where there is one."""
        return Image.open(io.BytesIO(base64.b64decode(self.picture.partition(",")[2])))


def make_items(
    examples: Iterable[Mapping[str, Any]],
    decode: Callable[[bytes], Image.Image],
    shown: Mapping[str, str] | None = None,
    wanted: Collection[str] = (),
    room_bytes: int = MAX_PICTURE_BYTES,
) -> list[Item]:
    """Test examples in their order.

    Args:
        examples: with id, task, form, question, answer (str) and image (encoded bytes).
        decode: makes of such bytes the picture that models see.
        shown: by example, the one whose picture the models saw instead of its own; None: its own.
        wanted: examples whose pictures are not left out.
        room_bytes: for the pictures: those of the examples after that are left out.
    """
    own = []
    wanted = {shown[name] for name in wanted if name in shown} if shown else wanted
    for example in examples:
        has_picture = room_bytes > 0 or example["id"] in wanted
        picture = _small_picture(decode(example["image"])) if has_picture else ""
        room_bytes -= len(picture)
        own.append(
            Item(
                example_id=example["id"],
                task=example["task"],
                form=example["form"],
                question=example["question"],
                gold=example["answer"],
                picture=picture,
            )
        )
    if shown is None:
        return own
    pictures = {item.example_id: item.picture for item in own}
    return [item._replace(picture=pictures[shown[item.example_id]]) for item in own]


def _small_picture(picture: Image.Image) -> str:
    """A picture as the data URI of a WebP, whichever of its two ways is the smaller one."""
    small = picture.copy()
    small.thumbnail((PICTURE_PX, PICTURE_PX))
    made = []
    for lossless in (False, True):
        file = io.BytesIO()
        small.save(file, "WEBP", quality=QUALITY, lossless=lossless)
        made.append(file.getvalue())
    content = base64.b64encode(min(made, key=len)).decode()
    return f"data:image/webp;base64,{content}"
