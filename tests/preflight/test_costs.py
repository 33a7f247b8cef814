"""The hours that a grid still takes, by hand."""

import math
from typing import Any

import pytest

from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.core.units import describe_seconds
from othink_pipeline.preflight.costs import Speed, hours_left
from othink_pipeline.preflight.plan import Planned, State
from tests.conftest import shipped_parameters
from tests.preflight.test_memory import method

SPEED = Speed({"sft": 1.0, "rl": 60.0}, answer=0.5)


def planned(name: str, state: State = "train", done: int = 0, seconds: float = math.nan) -> Planned:
    changed = method(name, updates=10, checkpoint_every_updates=4, validation_examples=5)
    return Planned(Cell("counting", name, 0), changed, state, done, seconds)


def said(
    *cells: Planned, speed: Speed = SPEED, at_once: int | None = None, **evaluation: Any
) -> str:
    raw = shipped_parameters()
    raw["folders"] = dict.fromkeys(raw["folders"], "data")
    raw["rebuild"]["path"] = "rebuilt"
    raw["data_preparation"]["splits"] |= {"validation": 200, "test": 50}
    raw["base_model"]["path"] = ["one", "two", "three"]
    raw["evaluation"] |= evaluation
    row = hours_left(cells, Parameters.read(raw), speed, at_once)
    assert (row.check, row.outcome) == ("the grid that is left", "note")
    return row.detail


def test_updates_checkpoints_and_tests_that_are_left_take_what_one_took() -> None:
    both = planned("sft"), planned("grpo")
    # A cell: update 0, 4, 8 and 10. Tests: of two cells and three base models. Two tasks.
    answers = 2 * (2 * 4 * 5 + 5 * 50)
    assert said(*both) == (
        f"2 of 2 cells, 20 updates and {answers} answers take at most about 15 min: "
        "10 min to train, 5 min to validate and to test"
    )
    sampled = 2 * (2 * 4 * 5 + 5 * 50 * 3)
    assert f"20 updates and {sampled:,} answers" in said(*both, samples=2)


@pytest.mark.parametrize(
    ("at_once", "best"), [(1, None), (3, "at best about 10 min"), (2, "at best about 10 min")]
)
def test_side_by_side_takes_as_long_as_the_longest_cell(at_once: int, best: str | None) -> None:
    both = said(planned("sft"), planned("grpo"), at_once=at_once)  # 10 s and 10 min, 15 in all
    assert best is None or best in both
    assert ("side by side" in both) == (best is not None)


def test_side_by_side_takes_a_share_of_the_whole() -> None:
    alike = [planned("sft") for _ in range(8)]  # 80 s, and 2 * (8 * 4 * 5 + 11 * 50) answers
    assert said(*alike) == said(*alike, at_once=1)
    assert said(*alike).endswith("about 13 min: 80 s to train, 12 min to validate and to test")
    assert said(*alike, at_once=2).endswith(
        "; side by side on Ray (docs/cluster.md), 2 at a time, at best about 7 min"
    )


@pytest.mark.parametrize(
    ("done", "updates", "checkpoints"), [(0, 10, 4), (3, 7, 3), (4, 6, 2), (9, 1, 1)]
)
def test_what_a_training_has_behind_it_is_not_counted(
    done: int, updates: int, checkpoints: int
) -> None:
    answers = 2 * (checkpoints * 5 + 4 * 50)
    cell = planned("grpo", "resume" if done else "train", done)
    assert said(cell).startswith(f"1 of 1 cells, {updates} updates and {answers} answers take")


def test_finished_cells_take_nothing() -> None:
    finished = planned("grpo", "reuse", 10)
    assert said(planned("sft"), finished).startswith("1 of 2 cells, 10 updates and 440 answers")
    assert said(finished) == "nothing: all 1 cells are trained"


def test_what_was_not_measured_is_not_made_up() -> None:
    both, unknown = (planned("sft"), planned("grpo")), Speed({"sft": 1.0}, 0.5)
    assert said(*both, speed=unknown).endswith("answers; how long they take was not measured")
    assert "not measured" in said(*both, speed=SPEED._replace(answer=math.nan))
    # What finished trainings took is known, and gives way to what was measured.
    known = planned("sft", seconds=1e6), planned("grpo", seconds=1200.0)
    assert ": 20 min to train, " in said(*known, speed=unknown)


def test_durations_are_said_in_the_unit_that_suits() -> None:
    assert [describe_seconds(s) for s in (45, 720, 12_600)] == ["45 s", "12 min", "3.5 h"]
