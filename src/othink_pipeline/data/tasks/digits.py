"""Arithmetic on real handwriting: 2 to 4 scanned digits, each in a corner of the picture.

Five question forms ask for the sum of all digits or of one line, for the extremes, for a count, or
for a sum that weighs rows::

    Q: Digits in the top row count 3 times. What do all digits add up to?
    picture: 5 4 above, 7 below          steps: 5+4=9, 3*9=27, 7+0=7, 27+7=34     A: 34

All scans have one size and stand in the middle of their corners: at changing places and sizes the
mini model did not learn to read them (after 2,800 updates 12 % of them, where guessing has 10).

A problem *means* which scan stands in which corner. No two splits share a scan: a model is tested
on digits that it never saw. They may share a writer; the data set does not say who wrote what.

The scans are the 1,797 of ``sklearn.datasets.load_digits``, 8 x 8 pixels in 17 shades, by 13
writers: the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits"
(1998), UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from random import Random
from typing import NamedTuple

from PIL import Image

from othink_pipeline.data.tasks import IMAGE_SIZE_PX, Problem, split_of

CORNER_PX = IMAGE_SIZE_PX // 2
SIDE_PX = 24  # of a scan in the picture
DIGITS = range(2, 5)
LINES = {"top row": (0, 1), "bottom row": (2, 3), "left column": (0, 2), "right column": (1, 3)}
FACTORS = range(2, 5)
FORM_WEIGHTS = {"total": 3, "line": 1, "difference": 1, "count": 1, "weighted": 4}


class Scan(NamedTuple):
    """One digit that somebody wrote: 8 x 8 bytes, row by row, from 15 (ink) to 255 (paper)."""

    number: int
    digit: int
    pixels: bytes

    @property
    def name(self) -> str:
        """What decides its split."""
        return f"scan {self.number}"


def draw_problem(rng: Random) -> Problem:
    """Draw scans of one split, their places and a question about them."""
    pools = _scans_by_split()
    (pool,) = rng.choices(pools, weights=[len(pool) for pool in pools])
    corners = sorted(rng.sample(range(4), rng.choice(DIGITS)))  # in reading order
    scans = dict(zip(corners, rng.sample(pool, len(corners)), strict=True))
    digits = [scans[corner].digit if corner in scans else None for corner in range(4)]
    form = rng.choices(tuple(FORM_WEIGHTS), weights=tuple(FORM_WEIGHTS.values()))[0]
    question, steps, answer = {
        "total": _ask_total,
        "line": _ask_line,
        "difference": _ask_difference,
        "count": _ask_count,
        "weighted": _ask_weighted,
    }[form](rng, digits)
    key = "|".join(f"{corner}:{scan.number}" for corner, scan in scans.items())
    parts = tuple(scan.name for scan in scans.values())
    return Problem(key, form, question, str(answer), steps, partial(_render, scans), parts)


@cache
def _scans_by_split() -> tuple[tuple[Scan, ...], ...]:
    """All scans, those of each split together."""
    from sklearn.datasets import load_digits  # takes seconds, and most runs draw no digits

    found = load_digits()
    pools: dict[str, list[Scan]] = {}
    for number, (digit, ink) in enumerate(zip(found.target, found.data, strict=True)):
        pixels = bytes(255 - 15 * int(shade) for shade in ink)
        scan = Scan(number, int(digit), pixels)
        pools.setdefault(split_of("digits", scan.name), []).append(scan)
    return tuple(tuple(pools[split]) for split in sorted(pools))


def _add(left: int, right: int) -> str:
    return f"{left}+{right}={left + right}"


def _ask_total(rng: Random, digits: list[int | None]) -> tuple[str, str, int]:
    a, b, c, d = (digit or 0 for digit in digits)
    steps = f"{_add(a, b)}, {_add(c, d)}, {_add(a + b, c + d)}"
    return "What do all digits add up to?", steps, a + b + c + d


def _ask_line(rng: Random, digits: list[int | None]) -> tuple[str, str, int]:
    filled = [
        name for name, line in LINES.items() if any(digits[corner] is not None for corner in line)
    ]
    name = rng.choice(filled)
    a, b = (digits[corner] or 0 for corner in LINES[name])
    return f"What do the digits in the {name} add up to?", _add(a, b), a + b


def _ask_difference(rng: Random, digits: list[int | None]) -> tuple[str, str, int]:
    there = [digit for digit in digits if digit is not None]
    most, least = max(there), min(there)
    question = "How much larger is the largest digit than the smallest?"
    return question, f"{most}-{least}={most - least}", most - least


def _ask_count(rng: Random, digits: list[int | None]) -> tuple[str, str, int]:
    bound = rng.randint(2, 6)
    kinds: dict[str, Callable[[int], bool]] = {
        "even": lambda digit: digit % 2 == 0,
        "odd": lambda digit: digit % 2 == 1,
        f"greater than {bound}": lambda digit: digit > bound,
    }
    kind = rng.choice(tuple(kinds))
    top, bottom = (
        sum(digit is not None and kinds[kind](digit) for digit in row)
        for row in (digits[:2], digits[2:])
    )
    return f"How many digits are {kind}?", _add(top, bottom), top + bottom


def _ask_weighted(rng: Random, digits: list[int | None]) -> tuple[str, str, int]:
    factor = rng.choice(FACTORS)
    a, b, c, d = (digit or 0 for digit in digits)
    top, bottom = factor * (a + b), c + d
    steps = f"{_add(a, b)}, {factor}*{a + b}={top}, {_add(c, d)}, {_add(top, bottom)}"
    question = f"Digits in the top row count {factor} times. What do all digits add up to?"
    return question, steps, top + bottom


def _render(scans: dict[int, Scan]) -> Image.Image:
    image = Image.new("RGB", (IMAGE_SIZE_PX, IMAGE_SIZE_PX), (255, 255, 255))
    for corner, scan in scans.items():
        row, column = divmod(corner, 2)
        shown = Image.frombytes("L", (8, 8), scan.pixels).convert("RGB")
        shown = shown.resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR)
        margin = (CORNER_PX - SIDE_PX) // 2
        image.paste(shown, (column * CORNER_PX + margin, row * CORNER_PX + margin))
    return image
