"""Every question has one right answer: found again here from the key, the picture and the steps."""

import math
import re
from collections import Counter, defaultdict
from fractions import Fraction
from functools import cache
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from othink_pipeline.data.tasks import IMAGE_SIZE_PX, Problem, available_tasks, geometry, load_task
from othink_pipeline.data.tasks.counting import BACKGROUND, COLORS, FORM_WEIGHTS, SHAPES
from othink_pipeline.data.tasks.geometry import BLUE, GREEN, PURPLE, RED, RULES, Figure
from othink_pipeline.scoring.strict import parse_answer

TASKS = ("counting", "digits", "geometry")
DRAWS = 400
CELL_PX = IMAGE_SIZE_PX // 4


@cache
def draw(task: str, count: int = DRAWS) -> tuple[Problem, ...]:
    draw_problem, rng = load_task(task), Random(0)
    return tuple(draw_problem(rng) for _ in range(count))


def pixels(problem: Problem) -> np.ndarray:
    """[64 x 64 x 3], signed so that differences do not wrap around."""
    return np.asarray(problem.render()).astype(int)


def results_of(steps: str) -> list[int]:
    """The result of each step, after checking it."""
    results = []
    for step in steps.split(", "):
        match = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", step)
        assert match, f"not a step: {step!r}"
        left, right, result = (int(match[group]) for group in (1, 3, 4))
        value = {
            "+": Fraction(left + right),
            "-": Fraction(left - right),
            "*": Fraction(left * right),
            "/": Fraction(left, right) if right else None,
        }[match[2]]
        assert value == result, f"wrong: {step!r}"
        results.append(result)
    return results


def scene(key: str) -> dict[int, tuple[str, str]]:
    """Raster cell -> (shape, colour)."""
    items = [item.split(":") for item in key.split("|")]
    return {int(cell): (shape, color) for cell, shape, color in items}


def counting_answer(problem: Problem) -> int:
    items = list(scene(problem.key).values())

    def count(word: str) -> int:
        return sum(word in item for item in items)

    question = problem.question
    if match := re.fullmatch(
        r"A circle costs (\d), a square (\d), a triangle (\d)\. What do all items cost\?", question
    ):
        prices = dict(zip(("circle", "square", "triangle"), map(int, match.groups()), strict=True))
        return sum(prices[shape] for shape, _ in items)
    if match := re.fullmatch(
        r"How many more (\w+)s than (\w+)s are there in the image\?", question
    ):
        return count(match[1]) - count(match[2])
    if match := re.fullmatch(r"How many (\w+) items are there in the image\?", question):
        return count(match[1])
    assert question == "How many items are there in the image?"
    return len(items)


def geometry_values(problem: Problem) -> tuple[int, ...]:
    """The given angles: red, blue and, where there is one, purple."""
    match = re.fullmatch(
        r"The red angle is (\d+) and the blue angle is (\d+)(?: and the purple angle is (\d+))?\. "
        r"How large is the green angle\?",
        problem.question,
    )
    assert match, problem.question
    return tuple(int(value) for value in match.groups() if value)


def green_angle(rule: str, *given: int) -> float:
    """What Euclid says."""
    total = sum(given)
    return {
        "vertical": total,
        "supplementary": 180 - total,
        "complementary": 90 - total,
        "full_turn": 360 - total,
        "triangle": 180 - total,
        "exterior": total,
        "zigzag": total,
        "isosceles_base": (180 - total) / 2,
        "isosceles_apex": 180 - 2 * total,
        "inscribed": total / 2,
        "central": 2 * total,
        "quadrilateral": 360 - total,
    }[rule]


def test_the_tasks_are_the_files_of_the_package() -> None:
    assert available_tasks() == TASKS
    with pytest.raises(KeyError, match=r"'chess'; available: counting, digits, geometry"):
        load_task("chess")


@pytest.mark.parametrize(
    "steps", ["1+1=3", "5-2=4", "2*3=5", "7/2=3", "1/0=0", "1+1", "1+1=2,2+2=4", "a+1=2", ""]
)
def test_the_checker_of_steps_can_say_no(steps: str) -> None:
    with pytest.raises(AssertionError):
        results_of(steps)


@pytest.mark.parametrize("task", TASKS)
def test_steps_are_true_and_end_in_the_answer(task: str) -> None:
    for problem in draw(task):
        assert results_of(problem.steps)[-1] == int(problem.answer), problem


@pytest.mark.parametrize("task", TASKS)
def test_every_step_uses_given_or_found_numbers(task: str) -> None:
    """No number comes from nowhere: counts and angles, rule constants, or earlier results."""
    constants = {"90", "180", "360", "2"} if task == "geometry" else set(map(str, range(10)))
    for problem in draw(task):
        known = constants | set(re.findall(r"\d+", problem.question))
        for step in problem.steps.split(", "):
            *operands, result = re.findall(r"\d+", step)
            assert set(operands) <= known, (problem.question, problem.steps)
            known.add(result)


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_short_numbers_that_parse(task: str) -> None:
    for problem in draw(task):
        assert parse_answer(problem.answer) == Fraction(int(problem.answer)) >= 0
        assert problem.answer == str(int(problem.answer))


def test_counting_answers_follow_from_the_scene_and_the_question() -> None:
    for problem in draw("counting"):
        assert int(problem.answer) == counting_answer(problem), problem


def test_geometry_answers_follow_from_the_rule_and_the_values() -> None:
    for problem in draw("geometry"):
        rule, values = problem.key.split(":")
        given = geometry_values(problem)
        assert problem.form == rule
        assert tuple(map(int, values.split("+"))) == tuple(sorted(given))
        assert int(problem.answer) == green_angle(rule, *given), problem
        assert sum(value % 5 != 0 for value in given) <= 1


def test_every_form_and_rule_is_drawn() -> None:
    """As often as meant: half of the counting questions ask for prices, rules are even."""
    forms: dict[str, int] = defaultdict(int)
    for problem in draw("counting", 4000):
        forms[problem.form] += 1
    shares = {form: count / 4000 for form, count in forms.items()}
    expected = {"total": 0.2, "attribute": 0.2, "difference": 0.1, "price": 0.5}
    assert shares == pytest.approx(expected, abs=0.03)
    assert set(forms) == set(FORM_WEIGHTS)
    assert {problem.form for problem in draw("geometry")} == set(RULES)


@cache
def scans() -> Any:
    """As scikit-learn has them: ``images`` [1797 x 8 x 8], 16 is ink, and ``target``."""
    return load_digits()


def corners(key: str) -> dict[int, int]:
    """Corner -> number of the scan."""
    return {int(corner): int(scan) for corner, scan in (i.split(":") for i in key.split("|"))}


def digits_answer(problem: Problem) -> int:
    digits = {corner: int(scans().target[scan]) for corner, scan in corners(problem.key).items()}

    def add(*wanted: int) -> int:
        return sum(digits.get(corner, 0) for corner in wanted)

    question = problem.question
    lines = {"top row": (0, 1), "bottom row": (2, 3), "left column": (0, 2), "right column": (1, 3)}
    if match := re.fullmatch(r"What do the digits in the (.*) add up to\?", question):
        return add(*lines[match[1]])
    if match := re.fullmatch(
        r"Digits in the top row count (\d) times\. What do all digits add up to\?", question
    ):
        return int(match[1]) * add(0, 1) + add(2, 3)
    if match := re.fullmatch(r"How many digits are (even|odd|greater than (\d))\?", question):
        even = sum(digit in (0, 2, 4, 6, 8) for digit in digits.values())
        greater = sum(digit > int(match[2] or 9) for digit in digits.values())
        return {"even": even, "odd": len(digits) - even}.get(match[1], greater)
    if question == "How much larger is the largest digit than the smallest?":
        return max(digits.values()) - min(digits.values())
    assert question == "What do all digits add up to?"
    return sum(digits.values())


def test_digits_answers_follow_from_the_scans_and_the_question() -> None:
    for problem in draw("digits"):
        assert int(problem.answer) == digits_answer(problem), problem


def test_every_form_of_digits_is_drawn_as_often_as_meant() -> None:
    problems = draw("digits", 4000)
    shares = {form: count / 4000 for form, count in Counter(p.form for p in problems).items()}
    expected = {"total": 0.3, "line": 0.1, "difference": 0.1, "count": 0.1, "weighted": 0.4}
    assert shares == pytest.approx(expected, abs=0.03)
    assert {len(corners(problem.key)) for problem in problems} == {2, 3, 4}


def test_digits_pictures_show_the_scans_and_nothing_else() -> None:
    """In the middle of each corner that which the key names, every pixel of it 3 x 3 large."""
    for problem in draw("digits")[:60]:
        named, picture = corners(problem.key), 255 - pixels(problem)
        for corner in range(4):
            top, left = (32 * position for position in divmod(corner, 2))
            ink = picture[top : top + 32, left : left + 32, 0]
            assert ink.any() == (corner in named)
            if corner in named:
                scan = 15 * scans().images[named[corner]]
                assert (ink[5:28:3, 5:28:3] == scan).all(), problem
                ink[4:28, 4:28] = 0
                assert not ink.any(), "ink beside the scan"


def read_picture(picture: np.ndarray) -> dict[int, tuple[str, str]]:
    """Raster cell -> (shape, colour), read from the pixels alone."""
    found = {}
    for cell in range(16):
        top, left = (CELL_PX * position for position in divmod(cell, 4))
        block = picture[top : top + CELL_PX, left : left + CELL_PX]
        colors = [name for name, rgb in COLORS.items() if (block == rgb).all(axis=2).any()]
        if not colors:
            continue
        (color,) = colors
        # Smooth edges reach half a pixel further, into the next cell.
        ink = abs(block - COLORS[color]).sum(axis=2) < abs(block - BACKGROUND).sum(axis=2)
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        shape = "square" if box.mean() > 0.95 else "circle" if box.mean() > 0.7 else "triangle"
        found[cell] = (shape, color)
    return found


def test_counting_pictures_show_the_scene_and_nothing_else() -> None:
    for problem in draw("counting"):
        assert read_picture(pixels(problem)) == scene(problem.key)


def test_counting_scenes_differ_in_size_colour_and_shape() -> None:
    scenes = [scene(problem.key) for problem in draw("counting")]
    assert {len(items) for items in scenes} == set(range(2, 10))
    assert {shape for items in scenes for shape, _ in items.values()} == set(SHAPES)
    assert {color for items in scenes for _, color in items.values()} == set(COLORS)


def test_a_counting_key_ignores_jitter_and_question() -> None:
    same: dict[str, list[Problem]] = defaultdict(list)
    for problem in draw("counting", 20_000):
        same[problem.key].append(problem)
    twins = [problems for problems in same.values() if len(problems) > 1]
    assert len(twins) > 50
    assert any(a.question != b.question for a, b, *_ in twins)
    pictures = [(pixels(a), pixels(b)) for a, b, *_ in twins[:20]]
    assert all((a != b).any() for a, b in pictures)
    assert all(read_picture(a) == read_picture(b) for a, b in pictures)


def test_a_geometry_key_ignores_order_turn_and_mirror() -> None:
    same: dict[str, list[Problem]] = defaultdict(list)
    for problem in draw("geometry", 20_000):
        same[problem.key].append(problem)
    assert len(same) >= 5_000, "too few distinct problems to split by meaning"
    assert {len({problem.answer for problem in twins}) for twins in same.values()} == {1}
    swapped = [
        twins for twins in same.values() if len({geometry_values(problem) for problem in twins}) > 1
    ]
    assert len(swapped) > 100
    turned = [(a, b) for a, b, *_ in swapped if geometry_values(a) == geometry_values(b)][:20]
    assert sum((pixels(a) != pixels(b)).any() for a, b in turned) >= 18  # one in 720 is luck


def angle_deg(
    start: tuple[float, float], vertex: tuple[float, float], end: tuple[float, float]
) -> float:
    """From the first side to the second, counter-clockwise, 0 <= angle < 360."""
    first = math.atan2(start[1] - vertex[1], start[0] - vertex[0])
    second = math.atan2(end[1] - vertex[1], end[0] - vertex[0])
    return math.degrees(second - first) % 360


def misdrawn(name: str, values: tuple[int, ...]) -> list[str]:
    figure: Figure = RULES[name].sketch(*values)
    given = dict(zip((RED, BLUE, PURPLE), values, strict=False))
    expected = {**given, GREEN: green_angle(name, *values)}
    assert [color for *_, color in figure.angles].count(GREEN) == 1
    assert {color for *_, color in figure.angles} == set(expected)
    return [
        f"{values}: colour {color} is {angle_deg(start, vertex, end):.3f}, not {expected[color]}"
        for start, vertex, end, color in figure.angles
        if abs(angle_deg(start, vertex, end) - expected[color]) > 1e-6
    ]


@pytest.mark.parametrize("name", RULES)
def test_angles_are_drawn_to_size(name: str) -> None:
    values = {geometry_values(p) for p in draw("geometry", 20_000) if p.form == name}
    faults = [fault for given in sorted(values) for fault in misdrawn(name, given)]
    assert len(values) > 150
    assert not faults, f"{len(faults)} angles of {len(values)} figures, first: {faults[:3]}"


def count_pixels(picture: np.ndarray, rgb: tuple[int, int, int]) -> int:
    """Pixels that are nearly of this colour: edges are smooth."""
    return int((abs(picture - rgb).sum(axis=2) < 120).sum())


@pytest.mark.parametrize("name", RULES)
def test_every_angle_can_be_seen(name: str) -> None:
    """But for the narrowest, whose two sides meet over them."""
    for problem in [problem for problem in draw("geometry", 3000) if problem.form == name]:
        sizes = dict(zip((RED, BLUE, PURPLE), geometry_values(problem), strict=False))
        picture = pixels(problem)
        for color, size in {**sizes, GREEN: int(problem.answer)}.items():
            assert size < 25 or count_pixels(picture, color) >= 3, (problem, color)
        assert PURPLE in sizes or not (picture == PURPLE).all(axis=2).any()


def test_sectors_are_as_large_as_their_angles() -> None:
    """On a straight line the sectors share half a disc: their pixels divide as the degrees do."""
    compared = 0
    for problem in draw("geometry", 3000):
        sizes = (*geometry_values(problem), int(problem.answer))
        if problem.form == "supplementary" and min(sizes) >= 35:  # lines hide much of a narrow one
            areas = [count_pixels(pixels(problem), color) for color in (RED, BLUE, GREEN)]
            for size, area in zip(sizes, areas, strict=True):
                assert area / sum(areas) == pytest.approx(size / 180, abs=0.15), problem
            compared += 1
    assert compared > 50


def test_every_rule_bounds_what_is_given() -> None:
    for problem in draw("geometry", 20_000):
        rule, given = RULES[problem.form], geometry_values(problem)
        assert all(rule.low <= value <= rule.high for value in given)
        assert rule.total_low <= sum(given) <= rule.total_high
        assert len(given) == (3 if problem.form == "quadrilateral" else 2)


@pytest.mark.parametrize("task", TASKS)
def test_rendering_draws_no_random_numbers(task: str) -> None:
    """Else a split would change with which pictures are needed."""
    rng = Random(0)
    problem = load_task(task)(rng)
    before = rng.getstate()
    first: Image.Image = problem.render()
    assert rng.getstate() == before
    assert problem.render().tobytes() == first.tobytes()


def test_geometry_sketches_leave_the_picture_free_of_the_values() -> None:
    """The question gives the values and the picture the rule: neither answers alone."""
    answers: dict[tuple[int, ...], set[str]] = defaultdict(set)
    for problem in draw("geometry", 20_000):
        answers[geometry_values(problem)].add(problem.answer)
    ambiguous = sum(len(found) > 1 for given, found in answers.items() if len(given) == 2)
    assert ambiguous > 0.5 * sum(len(given) == 2 for given in answers)
    assert geometry.IMAGE_SIZE_PX == 64
