"""Pictures: found wherever a data set has them; the digest and the model see the same."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from othink_pipeline.data.examples import TEXT_FIELDS, read_examples
from othink_pipeline.data.pictures import UnusableError, decode, find_pictures, prepare
from tests.support.examples import write_examples


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep(values: Any) -> bytes:
    """A 16-bit grey PNG."""
    return encode(Image.fromarray(np.array(values, dtype=np.uint16)))


def seen(picture: bytes, folder: Path) -> Image.Image:
    """What a model is shown of an example that is prepared."""
    example = {**dict.fromkeys(TEXT_FIELDS, "x"), "image": prepare([picture])}
    write_examples([example], folder / "x.arrow")
    shown: Image.Image = read_examples(folder / "x.arrow")[0]["image"]
    return shown.convert("RGBA")


@pytest.mark.parametrize(
    ("values", "grey"),
    [
        ([[0, 65535], [32768, 257]], [0, 255, 128, 1]),
        ([[0, 4095], [2048, 16]], [0, 255, 128, 1]),  # 12 bits of a scanner, which look black
        ([[0, 255], [128, 1]], [0, 255, 128, 1]),
    ],
)
def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path, values: Any, grey: list[int]) -> None:
    picture = deep(values)
    assert list(decode(picture).tobytes()[::3]) == grey
    assert list(seen(picture, tmp_path).tobytes()[::4]) == grey


def test_two_pictures_of_16_bits_are_two() -> None:
    assert len({decode(deep([[300, level]])).tobytes() for level in (400, 500, 30_000)}) == 3


def test_a_transparent_colour_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    picture = encode(image, transparency=(255, 0, 0))
    assert decode(picture).tobytes() == bytes([255, 255, 255, 0, 0, 255])
    assert seen(picture, tmp_path).getpixel((0, 0))[3] == 0  # transformers lays it on white


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_photograph_is_upright_for_digest_and_model(tmp_path: Path, orientation: int) -> None:
    pixels = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 12) * 10).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = encode(pixels, exif=exif)
    assert decode(picture).size == ((2, 12) if orientation in (6, 8) else (12, 2))
    assert seen(picture, tmp_path).convert("RGB").tobytes() == decode(picture).tobytes()


def test_a_picture_that_shows_alike_is_kept_as_it_came() -> None:
    for mode in ("RGB", "L", "P", "RGBA", "1", "LA"):
        picture = encode(Image.new(mode, (3, 2)))
        assert prepare([picture]) is picture


def test_several_pictures_lie_side_by_side() -> None:
    red, blue = Image.new("RGB", (3, 2), "red"), Image.new("RGB", (4, 5), "blue")
    joined = decode(prepare([encode(red), encode(blue)]))
    assert joined.size == (3 + 8 + 4, 5)
    assert [joined.getpixel(at) for at in ((2, 1), (2, 3), (7, 0), (11, 4))] == [
        *((255, 0, 0), (255, 255, 255), (255, 255, 255), (0, 0, 255))
    ]


@pytest.mark.parametrize(
    ("picture", "what"),
    [
        (encode(Image.new("L", (9, 9)), "GIF"), "a GIF"),
        (encode(Image.new("L", (9, 9)), "TIFF"), "a TIFF"),
        (encode(Image.new("L", (9, 9)), "BMP"), "a BMP"),
        (b"<!DOCTYPE html><p>404", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a git-lfs pointer: run git lfs pull"),
        (b"%PDF-1.7", "a PDF"),
        (b"hello", "begins with b'hello'"),
    ],
)
def test_what_is_no_picture_is_told_by_its_kind(picture: bytes, what: str) -> None:
    with pytest.raises(UnusableError) as error:
        decode(picture)
    assert what in str(error.value)
    assert str(error.value).endswith("Read are PNG, JPEG, WEBP")


def test_every_way_to_hold_a_picture(tmp_path: Path) -> None:
    picture = encode(Image.new("RGB", (3, 2)))
    (tmp_path / "a.png").write_bytes(picture)
    text = base64.b64encode(picture).decode()
    ways: list[Any] = [
        picture,
        {"bytes": picture, "path": None},
        {"bytes": None, "path": "a.png"},
        "a.png",
        str(tmp_path / "a.png"),  # absolute, and inside
        text,
        f"data:image/png;base64,{text}",
        f"DATA:image/png;charset=utf-8;BASE64,{text}",
        [picture],
        [{"bytes": picture, "path": "elsewhere.png"}],
        ["a.png"],
    ]
    assert [find_pictures(way, tmp_path) for way in ways] == [(picture,)] * len(ways)
    jpeg = encode(Image.new("RGB", (3, 2)), "JPEG")
    assert find_pictures(base64.b64encode(jpeg).decode(), tmp_path) == (
        jpeg,
    )  # begins with a slash
    assert find_pictures(["a.png", picture], tmp_path) == (picture, picture)


@pytest.mark.parametrize(
    "value", ["A" * 5000, "iVBORw0KGgo" + "!" * 5000, "data:image/png;base64,é", [], None, 3, [[]]]
)
def test_what_holds_none_is_told_shortly(tmp_path: Path, value: Any) -> None:
    with pytest.raises(UnusableError) as error:
        find_pictures(value, tmp_path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("address", ["https://example.org/a.png", "s3://bucket/a.png", "file:///a"])
def test_nothing_is_downloaded(tmp_path: Path, address: str) -> None:
    with pytest.raises(UnusableError, match="is an address: download it, name its file"):
        find_pictures(address, tmp_path)


def test_a_picture_that_cannot_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(file))

    (tmp_path / "a.png").touch()
    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(UnusableError, match=r"a\.png' cannot be read: Permission denied$"):
        find_pictures("a.png", tmp_path)
