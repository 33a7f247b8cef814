"""Pictures: found where a data set has them, and made what a model sees: upright, 8 bits, on white.

What is in memory is one picture at a time.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from os.path import abspath, isabs, normpath, relpath
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
"""What is opened. Pillow hands an EPS over to Ghostscript, a program that runs what it reads."""

OTHERS = {
    b"\x89PNG": "a PNG that is cut short",
    b"\xff\xd8": "a JPEG that is cut short",
    b"RIFF": "a WEBP that is cut short, or a video or sound",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"%PDF": "a PDF",
    b"\0\0\0": "a HEIC, AVIF or video file",
    b"<svg": "an SVG",
    b"<?xml": "an SVG or other XML",
    b"<!": "an HTML page: what was downloaded is an error message",
    b"<html": "an HTML page: what was downloaded is an error message",
    b"version https://git-lfs": "a git-lfs pointer: run git lfs pull",
}
"""How files begin that are found in the place of pictures."""

MAX_PIXELS = 25_000_000
"""A larger picture is refused by its header: decoded it would take 75 MB and more."""

MAX_ASPECT = 200
"""Qwen's processors refuse pictures that are longer than so many times their width."""

GAP_PX = 8
"""White between pictures that are laid side by side."""

SHOWN_CHARACTERS = 200

SCHEME_CHARACTERS = 16
"""``https://`` and its like stand within so many."""

_BASE64 = ("iVBORw0KGgo", "/9j/", "UklGR")
"""How a PNG, a JPEG and a WEBP begin in base64."""


class UnusableError(ValueError):
    """Why an example cannot be used."""


def shown(value: Any) -> str:
    """A value for a message, shortened."""
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def find_pictures(value: Any, folder: Path | None) -> tuple[bytes, ...]:
    """The pictures, not decoded, that a value of a data set stands for, in their order.

    Args:
        value: bytes, base64, a data URL, a path below ``folder``, a mapping with ``bytes`` or
            ``path`` (as ``datasets`` stores a picture), or a list of these.

    Raises:
        UnusableError: it stands for none.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return (value,)
    if isinstance(value, list) and value:
        return tuple(picture for each in value for picture in find_pictures(each, folder))
    if not isinstance(value, str):
        raise UnusableError(f"no picture, but {type(value).__name__}")
    header, comma, rest = value.partition(",")
    if comma and header.lower().startswith("data:") and header.lower().endswith(";base64"):
        return (_decode_base64(rest),)
    if value.startswith(_BASE64):
        return (_decode_base64(value),)
    if "://" in value[:SCHEME_CHARACTERS]:
        raise UnusableError(f"the picture {shown(value)} is an address: download it, name its file")
    file = find_file(value, folder)
    if file is None:
        raise UnusableError(f"the picture {shown(value)} is not in the data set's folder")
    try:
        if file.is_file():
            return (file.read_bytes(),)
    except OSError as error:  # no permission, a faulty disk, too long a name
        fault = f"the picture {shown(str(file))} cannot be read: {error.strerror}"
        raise UnusableError(fault) from None
    raise UnusableError(f"the picture {shown(str(file))} is not there")


def find_file(path: str, folder: Path | None) -> Path | None:
    """The file below ``folder`` that a data set means; None where it would lie elsewhere."""
    if folder is None or "\0" in path:
        return None
    inside = relpath(path, abspath(folder)) if isabs(path) else normpath(path)
    return None if inside.split("/")[0] == ".." else folder / inside


def _decode_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnusableError(f"the picture {shown(text)} is no base64 ({error})") from None


def decode(picture: bytes, size_px: int | None = None) -> Image.Image:
    """A picture as models see it: upright, RGB, what is transparent laid on white.

    Args:
        size_px: the width and height that it must have; None: any.

    Raises:
        UnusableError: it cannot be read, is too large, or has another size.
    """
    try:
        with _open(picture) as image:
            _check_size(*image.size, size_px)  # from the header: a huge picture is never decoded
            ImageOps.exif_transpose(image, in_place=True)  # as `datasets` does
            return _on_white(_in_8_bits(image))
    except UnusableError:
        raise
    except UnidentifiedImageError:
        start = picture[:64].lstrip().lower()
        kinds = (kind for begin, kind in OTHERS.items() if start.startswith(begin.lower()))
        what = next(kinds, f"begins with {picture[:16]!r}")
        raise UnusableError(
            f"the image does not decode: {what}. Read are {', '.join(FORMATS)}"
        ) from None
    except Exception as error:  # damaged data: whatever Pillow's many readers raise
        raise UnusableError(f"the image does not decode: {error}") from error


def prepare(pictures: Sequence[bytes]) -> bytes:
    """The one picture that is kept of a question's: as it came, where that shows the same to all.

    Several are laid side by side. More than 8 bits a channel are made 8: readers clip them.

    Raises:
        UnusableError: as ``decode``.
    """
    if len(pictures) > 1:
        return _encode(_side_by_side([decode(picture) for picture in pictures]))
    try:
        with _open(pictures[0]) as image:
            is_deep = _is_deep(image)
    except Exception:  # it is told what is wrong where it is decoded
        return pictures[0]
    return _encode(decode(pictures[0])) if is_deep else pictures[0]


def picture_size(picture: bytes) -> tuple[int, int]:
    """Width and height, from the header alone."""
    with _open(picture) as image:
        return image.size


def _open(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture), formats=FORMATS)


def _check_size(width: int, height: int, size_px: int | None = None) -> None:
    found = f"the image is {width} x {height}"
    if size_px is not None and (width, height) != (size_px, size_px):
        raise UnusableError(f"{found}, not {size_px} x {size_px}")
    if width * height > MAX_PIXELS:
        raise UnusableError(f"{found}: more than {MAX_PIXELS:,} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnusableError(f"{found}: more than {MAX_ASPECT} times as long as wide")


def _is_deep(image: Image.Image) -> bool:
    return image.mode[0] in "IF"


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits and more, scaled: Pillow's own conversion makes all above 255 white.

    White is the largest value of as many bits as the picture uses: scanners put 12 into 16.
    """
    if not _is_deep(image):
        return image
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all() or values.min() < 0:
        raise UnusableError(f"the image has values below 0 or not finite (mode {image.mode})")
    white = (1 << max(8, int(values.max()).bit_length())) - 1
    return Image.fromarray(np.rint(values * (255 / white)).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    """As transformers lays what is transparent on white, a transparent colour included."""
    if image.mode != "RGB" or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    width = sum(image.width for image in images) + GAP_PX * (len(images) - 1)
    height = max(image.height for image in images)
    _check_size(width, height)
    joined = Image.new("RGB", (width, height), "white")
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + GAP_PX
    return joined


def _encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()
