"""The page's samples as a figure, narrow enough to be read beside Kedro-Viz's flowchart.

Matplotlib is imported inside the functions, as in ``figures``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from othink_pipeline.report.page.items import Item
from othink_pipeline.report.page.samples import Sample
from othink_pipeline.report.parameters import KnownMethods

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN, PICTURE_IN, LINE_IN, GAP_IN = 3.7, 0.8, 0.13, 0.18
"""Of a sample; two of them stand side by side."""
COLUMNS = 48
"""Characters of a line beside the picture."""
MAX_CHARS = 280
"""Of a longer text the beginning and the end are shown."""
MARKS = {True: ("✓", "#1b6e3c"), False: ("✗", "#b3261e")}


class Line(NamedTuple):
    """A line of text."""

    text: str
    color: str = "#222222"
    weight: str = "normal"
    family: str = "sans-serif"


def samples_figure(
    samples: Sequence[Sample], items: Mapping[str, Item], known: KnownMethods
) -> Figure:
    """Of each sample its picture, and beside it question, right answer and what was answered.

    Args:
        items: by id, the examples that the samples are of, with their pictures.
    """
    from matplotlib.figure import Figure

    shown = [(each, items[each.example_id]) for each in samples]
    blocks = [(item.open_picture(), _lines(each, item, known)) for each, item in shown]
    rows = [blocks[start : start + 2] for start in range(0, len(blocks), 2)]
    heights = [
        max(PICTURE_IN, LINE_IN * max(len(lines) for _, lines in row)) + GAP_IN for row in rows
    ]
    total = sum(heights) or PICTURE_IN
    figure = Figure(figsize=(2 * WIDTH_IN, total), dpi=200)
    if not rows:
        figure.text(0.5, 0.5, "No example meets a rule of the samples.", ha="center", size=9)
    top = total - GAP_IN / 2
    for row, height in zip(rows, heights, strict=True):
        for column, (picture, lines) in enumerate(row):
            _draw(figure, (column * WIDTH_IN + 0.08, top), picture, lines)
        top -= height
    return figure


def _draw(
    figure: Figure, corner: tuple[float, float], picture: Image.Image, lines: Sequence[Line]
) -> None:
    """A sample; `corner`: inches from the left and from below to its upper left one."""
    width, height = figure.get_size_inches()
    left, top = corner
    size = PICTURE_IN / width, PICTURE_IN / height
    axes = figure.add_axes((left / width, (top - PICTURE_IN) / height, *size))
    axes.imshow(picture)
    axes.axis("off")
    for number, line in enumerate(lines):
        figure.text(
            (left + PICTURE_IN + 0.1) / width,
            (top - LINE_IN * number) / height,
            line.text,
            color=line.color,
            weight=line.weight,
            family=line.family,
            size=7,
            va="top",
            parse_math=False,
        )


def _lines(sample: Sample, item: Item, known: KnownMethods) -> list[Line]:
    right, wrong = known.name(*sample.right), known.name(*sample.wrong)
    lines = [Line(f"{sample.rule.title}, {sample.eval_task}", weight="bold")]
    lines += _wrap(f"{right} right, {wrong} wrong ({sample.found} of {sample.tested} items)")
    lines += _wrap(_shorten(item.question), color="#555555")
    lines += _wrap(f"Right answer: {item.gold}", color="#555555")
    answers = sample.answers[["train_task", "method", "correct", "completion"]]
    for train_task, method, is_right, completion in answers.itertuples(index=False):
        mark, color = MARKS[bool(is_right)]
        lines.append(Line(f"{mark} {known.name(train_task, method)}", color=color))
        lines += _wrap(_shorten(str(completion)), color=color, family="monospace")
    return lines


def _wrap(text: str, **style: str) -> list[Line]:
    columns = COLUMNS if "family" not in style else COLUMNS - 6  # monospace is wider
    return [Line(part, **style) for part in textwrap.wrap(text, columns)]


def _shorten(text: str) -> str:
    half = MAX_CHARS // 2
    return text if len(text) <= MAX_CHARS else f"{text[:half]} … {text[-half:]}"
