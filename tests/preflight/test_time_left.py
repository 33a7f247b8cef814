"""The time that a run still takes."""

import math

import pytest

from othink_pipeline.cells.grid import Cell
from othink_pipeline.preflight.plan import Planned
from othink_pipeline.preflight.time_left import TimeLeft
from tests.support.manifests import shipped_method


def planned(method: str, seed: int, done: int, seconds: float, state: str = "train") -> Planned:
    cell = Cell("counting", method, seed)
    return Planned(cell, shipped_method(cell), state, done, seconds)  # type: ignore[arg-type]


def test_what_was_measured_in_this_run_takes_the_place_of_what_was_known() -> None:
    updates = shipped_method(Cell("counting", "grpo", 0)).updates
    left = TimeLeft(
        [
            planned("grpo", 0, 0, 100.0),
            planned("grpo", 1, updates // 2, 50.0),
            planned("grpo", 2, updates, 0.0, "reuse"),
            planned("sft", 0, 0, 10.0),
        ]
    )
    assert left.seconds == 160
    left.finish(Cell("counting", "grpo", 2), 0.1)  # it was there
    assert left.seconds == 160
    assert left.seconds_of(Cell("counting", "grpo", 1)) == 50
    left.finish(Cell("counting", "grpo", 0), 200.0)
    assert left.seconds == 100 + 10
    assert left.seconds_of(Cell("counting", "grpo", 1)) == 100
    assert left.seconds_of(Cell("counting", "grpo", 0)) == 0  # it is trained


def test_a_cell_that_failed_at_once_tells_nothing_of_the_others() -> None:
    left = TimeLeft([planned("grpo", seed, 0, 100.0) for seed in range(3)])
    left.finish(Cell("counting", "grpo", 0), None)
    assert left.seconds == 200


def test_what_nothing_is_known_of_leaves_the_whole_unknown() -> None:
    left = TimeLeft([planned("grpo", 0, 0, math.nan), planned("sft", 0, 0, 10.0)])
    assert math.isnan(left.seconds)
    left.finish(Cell("counting", "grpo", 0), 3.0)
    assert left.seconds == 10


def test_it_is_the_median_of_what_was_measured() -> None:
    left = TimeLeft([planned("grpo", seed, 0, 1.0) for seed in range(6)])
    for seed, seconds in enumerate((300.0, 100.0, 120.0)):
        left.finish(Cell("counting", "grpo", seed), seconds)
    assert left.seconds == pytest.approx(3 * 120)
    left.finish(Cell("counting", "grpo", 3), 400.0)
    assert left.seconds == pytest.approx(2 * 210)
