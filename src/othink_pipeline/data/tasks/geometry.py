"""Geometry reasoning, in the manner of GEOQA.

The question gives the values, the picture alone tells which rule they enter::

    Q: The red angle is 47 and the blue angle is 65. How large is the green angle?
    picture: a triangle                 steps: 47+65=112, 180-112=68     A: 68
    picture: two crossing lines         steps: 47+65=112                 A: 112

A problem *means* its rule and its values (in any order: every rule is symmetric in them); the
figure is drawn to scale, turned and mirrored at random. All values but one are multiples of five:
arithmetic that a model of a million weights can learn, and still thousands of problems.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import NamedTuple

from PIL import Image, ImageDraw

from othink_pipeline.data.tasks import IMAGE_SIZE_PX, Problem

Point = tuple[float, float]

RED, BLUE, PURPLE, GREEN = (225, 60, 50), (70, 120, 235), (170, 80, 200), (60, 180, 75)
INK, BACKGROUND = (25, 25, 25), (255, 255, 255)
SCALE = 2  # drawn at twice the size, then averaged down: smooth edges, integer arithmetic
MARGIN_PX = 5
SECTOR_RADIUS_PX = 11
SECTOR_CORNERS = 12
SHORTEST_SIDE = 0.3  # of a quadrilateral's base


@dataclass
class Figure:
    """Lines, circles, equal-length ticks and coloured angles in free coordinates, y upwards."""

    lines: list[tuple[Point, Point]] = field(default_factory=list)
    circles: list[tuple[Point, float]] = field(default_factory=list)
    ticks: list[tuple[Point, Point]] = field(default_factory=list)
    angles: list[tuple[Point, Point, Point, tuple[int, int, int]]] = field(default_factory=list)
    """(point on the first side, vertex, point on the second side, colour), counter-clockwise."""


class Rule(NamedTuple):
    """What a picture says about its angles.

    Attributes:
        low, high: bounds of each given angle, degrees.
        total_low, total_high: bounds of their sum, degrees.
        even: whether their sum must be even.
        solve: sum of the given angles -> (the step after the sum or "", the answer).
        sketch: the given angles -> the figure.
    """

    low: int
    high: int
    total_low: int
    total_high: int
    even: bool
    solve: Callable[[int], tuple[str, int]]
    sketch: Callable[..., Figure]


def draw_problem(rng: Random) -> Problem:
    """Draw a rule, its values and the figure."""
    name = rng.choice(tuple(RULES))
    rule = RULES[name]
    values = _draw_values(rng, rule, 3 if name == "quadrilateral" else 2)
    total = sum(values)
    steps = f"{values[0]}+{values[1]}={values[0] + values[1]}"
    if len(values) == 3:
        steps += f", {values[0] + values[1]}+{values[2]}={total}"
    second_step, answer = rule.solve(total)
    if second_step:
        steps += f", {second_step}"
    third = f" and the purple angle is {values[2]}" if len(values) == 3 else ""
    question = (
        f"The red angle is {values[0]} and the blue angle is {values[1]}{third}. "
        "How large is the green angle?"
    )
    key = f"{name}:{'+'.join(str(value) for value in sorted(values))}"
    turn_deg, mirrored = rng.randrange(360), rng.random() < 0.5
    render = partial(_render, rule.sketch, values, turn_deg, mirrored)
    return Problem(key, name, question, str(answer), steps, render)


def _draw_values(rng: Random, rule: Rule, count: int) -> tuple[int, ...]:
    while True:
        values = [5 * rng.randint(-(-rule.low // 5), rule.high // 5) for _ in range(count)]
        values[rng.randrange(count)] = rng.randint(rule.low, rule.high)
        total = sum(values)
        if rule.total_low <= total <= rule.total_high and not (rule.even and total % 2):
            return tuple(values)


def _polar(angle_deg: float, radius: float = 1.0) -> Point:
    angle = math.radians(angle_deg)
    return radius * math.cos(angle), radius * math.sin(angle)


def _intersect(p: Point, p_deg: float, q: Point, q_deg: float) -> Point:
    """Where the ray from ``p`` in direction ``p_deg`` meets the line through ``q``."""
    (ux, uy), (vx, vy) = _polar(p_deg), _polar(q_deg)
    t = ((q[0] - p[0]) * vy - (q[1] - p[1]) * vx) / (ux * vy - uy * vx)
    return p[0] + t * ux, p[1] + t * uy


ORIGIN = (0.0, 0.0)


def _fan(a: int, b: int, green: tuple[float, float], rays: tuple[float, ...]) -> Figure:
    """Red and blue side by side at the origin, green between two directions, all its rays."""
    return Figure(
        lines=[(ORIGIN, _polar(ray)) for ray in rays],
        angles=[
            (_polar(0), ORIGIN, _polar(a), RED),
            (_polar(a), ORIGIN, _polar(a + b), BLUE),
            (_polar(green[0]), ORIGIN, _polar(green[1]), GREEN),
        ],
    )


def _vertical(a: int, b: int) -> Figure:
    return _fan(a, b, (180, 180 + a + b), (0, a, a + b, 180, 180 + a + b))


def _supplementary(a: int, b: int) -> Figure:
    return _fan(a, b, (a + b, 180), (0, a, a + b, 180))


def _complementary(a: int, b: int) -> Figure:
    figure = _fan(a, b, (a + b, 90), (0, a, a + b, 90))
    figure.lines += [((0.5, 0.0), (0.5, 0.5)), ((0.5, 0.5), (0.0, 0.5))]
    return figure


def _full_turn(a: int, b: int) -> Figure:
    return _fan(a, b, (a + b, 360), (0, a, a + b))


def _triangle(a: int, b: int) -> Figure:
    left, right = ORIGIN, (1.0, 0.0)
    top = _intersect(left, a, right, 180 - b)
    return Figure(
        lines=[(left, right), (right, top), (top, left)],
        angles=[(right, left, top, RED), (top, right, left, BLUE), (left, top, right, GREEN)],
    )


def _exterior(a: int, b: int) -> Figure:
    left, right = ORIGIN, (1.0, 0.0)
    top = _intersect(left, a, right, 180 - (180 - a - b))
    beyond = (1.6, 0.0)
    return Figure(
        lines=[(left, beyond), (right, top), (top, left)],
        angles=[(right, left, top, RED), (left, top, right, BLUE), (beyond, right, top, GREEN)],
    )


def _zigzag(a: int, b: int) -> Figure:
    """Two parallel rays to the right, joined by a bend that lies to their right."""
    top, bottom = _polar(180 - a), _polar(180 + b)
    reach = max(top[0], bottom[0], 0.0) + 0.7
    top_end, bottom_end = (reach, top[1]), (reach, bottom[1])
    return Figure(
        lines=[(top, top_end), (bottom, bottom_end), (top, ORIGIN), (ORIGIN, bottom)],
        angles=[
            (ORIGIN, top, top_end, RED),
            (bottom_end, bottom, ORIGIN, BLUE),
            (top, ORIGIN, bottom, GREEN),
        ],
    )


def _isosceles(base_deg: float) -> tuple[Point, Point, Point]:
    """Left, right and top of a triangle with two equal base angles."""
    left, right = ORIGIN, (1.0, 0.0)
    return left, right, _intersect(left, base_deg, right, 180 - base_deg)


def _isosceles_base(a: int, b: int) -> Figure:
    """The apex angle is split into red and blue, green is an angle at the base."""
    left, right, top = _isosceles((180 - a - b) / 2)
    foot = _intersect(top, 180 + (180 - a - b) / 2 + a, left, 0)
    return Figure(
        lines=[(left, right), (right, top), (top, left), (top, foot)],
        ticks=[(left, top), (right, top)],
        angles=[(left, top, foot, RED), (foot, top, right, BLUE), (top, right, left, GREEN)],
    )


def _isosceles_apex(a: int, b: int) -> Figure:
    """An angle at the base is split into red and blue, green is the apex angle."""
    left, right, top = _isosceles(a + b)
    foot = _intersect(left, a, right, 180 - (a + b))
    return Figure(
        lines=[(left, right), (right, top), (top, left), (left, foot)],
        ticks=[(left, top), (right, top)],
        angles=[(right, left, foot, RED), (foot, left, top, BLUE), (left, top, right, GREEN)],
    )


def _on_circle(arc_deg: float) -> tuple[Point, Point, Point]:
    """Both ends of an arc around the bottom of the unit circle, and the point opposite."""
    return _polar(270 - arc_deg / 2), _polar(270 + arc_deg / 2), _polar(90)


def _inscribed(a: int, b: int) -> Figure:
    """The central angle is split into red and blue, green is the inscribed angle."""
    left, right, top = _on_circle(a + b)
    between = _polar(270 - (a + b) / 2 + a)
    return Figure(
        lines=[(ORIGIN, left), (ORIGIN, right), (ORIGIN, between), (top, left), (top, right)],
        circles=[(ORIGIN, 1.0)],
        angles=[
            (left, ORIGIN, between, RED),
            (between, ORIGIN, right, BLUE),
            (left, top, right, GREEN),
        ],
    )


def _central(a: int, b: int) -> Figure:
    """The inscribed angle is split into red and blue, green is the central angle."""
    left, right, top = _on_circle(2 * (a + b))
    between = _polar(270 - (a + b) + 2 * a)
    return Figure(
        lines=[(ORIGIN, left), (ORIGIN, right), (top, between), (top, left), (top, right)],
        circles=[(ORIGIN, 1.0)],
        angles=[
            (left, top, between, RED),
            (between, top, right, BLUE),
            (left, ORIGIN, right, GREEN),
        ],
    )


def _quadrilateral(a: int, b: int, c: int) -> Figure:
    """A kite-like quadrilateral: red left, blue right, purple on top of the right side.

    Its right side is shorter than its base, unless too little would be left of the left side.
    """
    left, right = ORIGIN, (1.0, 0.0)
    for side in (0.8, 1.0):
        top_right = (1.0 + side * _polar(180 - b)[0], side * _polar(180 - b)[1])
        top_left = _intersect(left, a, top_right, 360 - b - c)
        along = _polar(a)
        if top_left[0] * along[0] + top_left[1] * along[1] > SHORTEST_SIDE:
            break
    return Figure(
        lines=[(left, right), (right, top_right), (top_right, top_left), (top_left, left)],
        angles=[
            (right, left, top_left, RED),
            (top_right, right, left, BLUE),
            (top_left, top_right, right, PURPLE),
            (left, top_left, top_right, GREEN),
        ],
    )


def _sum(total: int) -> tuple[str, int]:
    return "", total


def _rest_of(whole: int) -> Callable[[int], tuple[str, int]]:
    return lambda total: (f"{whole}-{total}={whole - total}", whole - total)


def _half(total: int) -> tuple[str, int]:
    return f"{total}/2={total // 2}", total // 2


def _double(total: int) -> tuple[str, int]:
    return f"2*{total}={2 * total}", 2 * total


def _half_of_rest(total: int) -> tuple[str, int]:
    rest = 180 - total
    return f"180-{total}={rest}, {rest}/2={rest // 2}", rest // 2


def _rest_of_double(total: int) -> tuple[str, int]:
    return f"2*{total}={2 * total}, 180-{2 * total}={180 - 2 * total}", 180 - 2 * total


RULES: dict[str, Rule] = {
    "vertical": Rule(10, 95, 30, 160, False, _sum, _vertical),
    "supplementary": Rule(10, 95, 30, 160, False, _rest_of(180), _supplementary),
    "complementary": Rule(10, 70, 20, 80, False, _rest_of(90), _complementary),
    "full_turn": Rule(20, 99, 60, 190, False, _rest_of(360), _full_turn),
    "triangle": Rule(20, 95, 50, 155, False, _rest_of(180), _triangle),
    "exterior": Rule(20, 95, 50, 150, False, _sum, _exterior),
    "zigzag": Rule(20, 80, 40, 160, False, _sum, _zigzag),
    "isosceles_base": Rule(10, 95, 30, 130, True, _half_of_rest, _isosceles_base),
    "isosceles_apex": Rule(10, 65, 30, 80, False, _rest_of_double, _isosceles_apex),
    "inscribed": Rule(15, 95, 40, 170, True, _half, _inscribed),
    "central": Rule(10, 70, 25, 85, False, _double, _central),
    "quadrilateral": Rule(60, 99, 220, 290, False, _rest_of(360), _quadrilateral),
}


def _render(
    sketch: Callable[..., Figure], values: tuple[int, ...], turn_deg: int, mirrored: bool
) -> Image.Image:
    figure = sketch(*values)
    size = IMAGE_SIZE_PX * SCALE
    corners = [point for line in figure.lines for point in line]
    corners += [
        (x + dx * r, y + dy * r)
        for (x, y), r in figure.circles
        for dx, dy in (_polar(degree) for degree in range(0, 360, 30))
    ]

    cos, sin = _polar(turn_deg)
    flip = -1 if mirrored else 1

    def turn(point: Point) -> Point:
        x, y = flip * point[0], point[1]
        return cos * x - sin * y, sin * x + cos * y

    turned = [turn(point) for point in corners]
    (left, right), (low, high) = (
        (min(values), max(values)) for values in zip(*turned, strict=True)
    )
    zoom = (size - 2 * MARGIN_PX * SCALE) / max(right - left, high - low)

    def place(point: Point) -> tuple[int, int]:
        """Pixel of a point; rounded twice so that the last bit of a cosine cannot move it."""
        x, y = turn(point)
        return (
            round(round(size / 2 + (x - (left + right) / 2) * zoom, 6)),
            round(round(size / 2 - (y - (low + high) / 2) * zoom, 6)),
        )

    image = Image.new("RGB", (size, size), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for start, vertex, end, color in figure.angles:
        radius = min(
            SECTOR_RADIUS_PX * SCALE / zoom,
            0.9 * math.dist(start, vertex),
            0.9 * math.dist(end, vertex),
        )
        first = math.degrees(math.atan2(start[1] - vertex[1], start[0] - vertex[0]))
        last = math.degrees(math.atan2(end[1] - vertex[1], end[0] - vertex[0]))
        extent = (last - first) % 360
        sector = [vertex]
        for corner in range(SECTOR_CORNERS + 1):
            dx, dy = _polar(first + extent * corner / SECTOR_CORNERS, radius)
            sector.append((vertex[0] + dx, vertex[1] + dy))
        draw.polygon([place(point) for point in sector], fill=color)
    for (x, y), r in figure.circles:
        ring = [place((x + dx * r, y + dy * r)) for dx, dy in map(_polar, range(0, 365, 5))]
        draw.line(ring, fill=INK, width=SCALE)
    for start, end in figure.lines:
        draw.line((place(start), place(end)), fill=INK, width=SCALE)
    for start, end in figure.ticks:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        across = math.degrees(math.atan2(end[1] - start[1], end[0] - start[0])) + 90
        dx, dy = _polar(across, 4 * SCALE / zoom)
        draw.line(
            (place((middle[0] - dx, middle[1] - dy)), place((middle[0] + dx, middle[1] + dy))),
            fill=INK,
            width=SCALE,
        )
    return image.reduce(SCALE)
