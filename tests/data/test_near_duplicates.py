"""Near-duplicates: a copy of another size, quality or edge is found, what only resembles it not."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from othink_pipeline.data import near_duplicates
from othink_pipeline.data.near_duplicates import Gallery, NearDuplicates


def photograph(seed: int) -> Image.Image:
    """Something with large and small parts: no two seeds have much in common."""
    rng = np.random.default_rng(seed)
    layers = [rng.uniform(0, 255, (side, side, 3)).astype(np.uint8) for side in (4, 9, 30)]
    grown = [Image.fromarray(a).resize((200, 150), Image.Resampling.BICUBIC) for a in layers]
    return Image.blend(Image.blend(grown[0], grown[1], 0.4), grown[2], 0.2)


def ball(color: str) -> Image.Image:
    image = Image.new("RGB", (200, 150), "white")
    ImageDraw.Draw(image).ellipse((120, 40, 180, 100), fill=color)
    return image


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def example(split: str, number: int, picture: bytes, key: str = "") -> dict[str, Any]:
    name = f"{split}-{number}"
    return {"id": name, "split": split, "key": key or name, "image": picture}


def found(*examples: dict[str, Any]) -> NearDuplicates:
    gallery = Gallery()
    passed: Iterator[Any] = gallery.watch(examples)
    assert list(passed) == list(examples)
    return gallery.find()


@pytest.mark.parametrize(
    "change",
    [
        lambda image: encode(image.resize((100, 75))),
        lambda image: encode(image.resize((500, 400))),
        lambda image: encode(image, "JPEG", quality=25),
        lambda image: encode(image.crop((1, 1, 199, 149))),
    ],
    ids=["half", "larger, and squeezed", "JPEG", "its edge cut"],
)
def test_a_copy_is_found(change: Callable[[Image.Image], bytes]) -> None:
    others = [example("test", n, encode(photograph(n))) for n in range(4)]
    ours = [
        example("train", 0, encode(photograph(9))),
        example("validation", 1, change(photograph(2))),
    ]
    near = found(*others, *ours)
    assert near.pairs[["id", "like"]].to_numpy().tolist() == [["validation-1", "test-2"]]
    assert 0 <= near.pairs["bits"][0] <= 20
    assert near.test_examples == 1


def test_what_has_another_colour_is_another_picture() -> None:
    red, grey, dark = (encode(ball(color)) for color in ("red", "gray", "darkred"))
    assert found(example("test", 0, red), example("train", 0, grey)).test_examples == 0
    assert found(example("test", 0, dark), example("train", 0, dark)).test_examples == 1


def test_pictures_are_counted_once_and_every_question_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The nearest one of several is named; whatever the blocks."""
    monkeypatch.setattr(near_duplicates, "BLOCK_PICTURES", 2)
    same, copy = encode(photograph(0)), encode(photograph(0), "JPEG", quality=20)
    tests = [example("test", n, same, key="one") for n in range(3)]
    tests += [example("test", 3, copy), example("test", 4, encode(photograph(5)))]
    ours = [example("train", n, encode(photograph(n + 20))) for n in range(4)]
    ours += [example("train", n, copy, key="two") for n in (7, 8)]
    near = found(*tests, *ours)
    assert near.pairs.to_numpy().tolist() == [["train-7", "test-3", 0]]
    assert near.test_examples == 4


def test_nothing_to_compare_is_nothing_found() -> None:
    near = found(example("test", 0, encode(photograph(0))))
    assert (len(near.pairs), near.test_examples) == (0, 0)
    assert list(near.pairs) == ["id", "like", "bits"]
