"""Visual counting, in the manner of CLEVR-70k-Counting and SuperCLEVR.

A scene holds 2 to 9 coloured shapes on a jittered 4 x 4 raster. Four question forms ask for one
count (the paper's own question among them) or for several counts and arithmetic on them::

    Q: A circle costs 5, a square 2, a triangle 4. What do all items cost?
    steps: 3*5=15, 2*2=4, 1*4=4, 15+4=19, 19+4=23
    A: 23
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw

from othink_pipeline.data.tasks import IMAGE_SIZE_PX, Problem

SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 88, 200),
    "yellow": (240, 190, 20),
}
RASTER = 4
ITEMS = range(2, 10)
PRICES = range(2, 6)
FORM_WEIGHTS = {"total": 2, "attribute": 2, "difference": 1, "price": 5}
BACKGROUND = (235, 235, 235)
SCALE = 2  # drawn at twice the size, then averaged down: smooth edges, integer arithmetic


class Item(NamedTuple):
    """One shape: raster cell 0..15, offset from the cell's centre in px, radius in px."""

    cell: int
    shape: str
    color: str
    dx: int
    dy: int
    radius: int


def draw_problem(rng: Random) -> Problem:
    """Draw a scene and a question about it."""
    items = _draw_scene(rng)
    form = rng.choices(tuple(FORM_WEIGHTS), weights=tuple(FORM_WEIGHTS.values()))[0]
    question, steps, answer = {
        "total": _ask_total,
        "attribute": _ask_attribute,
        "difference": _ask_difference,
        "price": _ask_price,
    }[form](rng, items)
    key = "|".join(f"{item.cell}:{item.shape}:{item.color}" for item in items)
    return Problem(key, form, question, str(answer), steps, partial(_render, items))


def _draw_scene(rng: Random) -> tuple[Item, ...]:
    cells = sorted(rng.sample(range(RASTER * RASTER), rng.choice(ITEMS)))
    return tuple(
        Item(
            cell,
            rng.choice(SHAPES),
            rng.choice(tuple(COLORS)),
            rng.randint(-2, 2),
            rng.randint(-2, 2),
            rng.randint(4, 6),
        )
        for cell in cells
    )


def _count(items: tuple[Item, ...], shape: str | None = None, color: str | None = None) -> int:
    return sum(
        (shape is None or item.shape == shape) and (color is None or item.color == color)
        for item in items
    )


def _ask_total(rng: Random, items: tuple[Item, ...]) -> tuple[str, str, int]:
    circles, squares, triangles = (_count(items, shape) for shape in SHAPES)
    steps = f"{circles}+{squares}={circles + squares}, "
    steps += f"{circles + squares}+{triangles}={len(items)}"
    return "How many items are there in the image?", steps, len(items)


def _ask_attribute(rng: Random, items: tuple[Item, ...]) -> tuple[str, str, int]:
    color = rng.choice(tuple(COLORS))
    circles, squares, triangles = (_count(items, shape, color) for shape in SHAPES)
    total = circles + squares + triangles
    steps = f"{circles}+{squares}={circles + squares}, {circles + squares}+{triangles}={total}"
    return f"How many {color} items are there in the image?", steps, total


def _ask_difference(rng: Random, items: tuple[Item, ...]) -> tuple[str, str, int]:
    first, second = rng.sample(SHAPES, 2)
    many, few = _count(items, first), _count(items, second)
    if many < few:
        first, second, many, few = second, first, few, many
    question = f"How many more {first}s than {second}s are there in the image?"
    return question, f"{many}-{few}={many - few}", many - few


def _ask_price(rng: Random, items: tuple[Item, ...]) -> tuple[str, str, int]:
    prices = [rng.choice(PRICES) for _ in SHAPES]
    counts = [_count(items, shape) for shape in SHAPES]
    costs = [count * price for count, price in zip(counts, prices, strict=True)]
    products = ", ".join(
        f"{count}*{price}={cost}" for count, price, cost in zip(counts, prices, costs, strict=True)
    )
    subtotal = costs[0] + costs[1]
    steps = f"{products}, {costs[0]}+{costs[1]}={subtotal}, {subtotal}+{costs[2]}={sum(costs)}"
    question = (
        f"A circle costs {prices[0]}, a square {prices[1]}, a triangle {prices[2]}. "
        "What do all items cost?"
    )
    return question, steps, sum(costs)


def _render(items: tuple[Item, ...]) -> Image.Image:
    size = IMAGE_SIZE_PX * SCALE
    pitch = size // RASTER
    image = Image.new("RGB", (size, size), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for item in items:
        row, column = divmod(item.cell, RASTER)
        x = column * pitch + pitch // 2 + item.dx * SCALE
        y = row * pitch + pitch // 2 + item.dy * SCALE
        r = item.radius * SCALE
        color = COLORS[item.color]
        if item.shape == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill=color)
        elif item.shape == "square":
            draw.rectangle((x - r, y - r, x + r, y + r), fill=color)
        else:
            draw.polygon(((x, y - r), (x + r, y + r), (x - r, y + r)), fill=color)
    return image.reduce(SCALE)
