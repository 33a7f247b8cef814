"""Weights by hand: the first, a middle and the last update."""

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from othink_pipeline.kl import Constant, KLSchedule, Linear

RISING = Linear(schedule="linear", start=0.02, end=0.10)


@pytest.mark.parametrize(
    ("update", "weight"), [(0, 0.02), (1, 0.04), (2, 0.06), (3, 0.08), (4, 0.10)]
)
def test_linear_weights_of_five_updates(update: int, weight: float) -> None:
    assert RISING.weight_at(update, 5) == pytest.approx(weight, rel=1e-12)


def test_linear_weights_may_fall() -> None:
    falling = Linear(schedule="linear", start=0.3, end=0.1)
    assert [falling.weight_at(update, 3) for update in range(3)] == pytest.approx([0.3, 0.2, 0.1])


def test_one_update_gets_the_start() -> None:
    assert RISING.weight_at(0, 1) == 0.02


def test_two_updates_get_the_start_and_the_end() -> None:
    assert [RISING.weight_at(update, 2) for update in (0, 1)] == pytest.approx([0.02, 0.10])


def test_a_constant_weight_is_constant() -> None:
    constant = Constant(schedule="constant", weight=0.04)
    assert {constant.weight_at(update, 60) for update in range(60)} == {0.04}


def test_the_schedule_chooses_the_class() -> None:
    adapter: TypeAdapter[Constant | Linear] = TypeAdapter(KLSchedule)
    assert adapter.validate_python({"schedule": "constant", "weight": 1}) == Constant(
        schedule="constant", weight=1.0
    )
    assert adapter.validate_python({"schedule": "linear", "start": 0.02, "end": 0.1}) == RISING


@pytest.mark.parametrize("weight", [0, -0.1, float("nan"), float("inf"), True, "0.1", None])
def test_weights_are_finite_numbers_above_zero(weight: object) -> None:
    with pytest.raises(ValidationError):
        Constant(schedule="constant", weight=weight)  # type: ignore[arg-type]
    for key in ("start", "end"):
        with pytest.raises(ValidationError):
            Linear(**{"schedule": "linear", "start": 0.1, "end": 0.2, key: weight})


def test_a_schedule_never_changes_and_has_no_other_keys() -> None:
    with pytest.raises(ValidationError):
        RISING.start = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Linear(schedule="linear", start=0.1, end=0.2, weight=0.3)  # type: ignore[call-arg]


def test_pure_modules_import_no_framework() -> None:
    code = (
        "import sys; from othink_pipeline import kl, scoring, statistics; "
        "sys.exit(str([m for m in ('torch', 'kedro', 'mlflow', 'trl') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
