"""Weights by hand: the first, a middle and the last update; what bounds them; what is kept."""

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from othink_pipeline.training.kl import (
    CEILING,
    FLOOR,
    Accuracy,
    Adaptive,
    Constant,
    Cosine,
    ExploreExploit,
    Exponential,
    KLController,
    KLSchedule,
    Linear,
    Seen,
    Step,
)

LINEAR = Linear(schedule="linear", start=0.02, end=0.10)
ADAPTIVE = Adaptive(schedule="adaptive", start=1.0, target=0.1, gain=0.5, low=0.8, high=1.2)
ACCURACY = Accuracy(schedule="accuracy", weight=0.02)
COUNTING = ExploreExploit(schedule="explore_exploit", low=0.04, high=0.1, explore_share=0.3)
GEOMETRY = ExploreExploit(schedule="explore_exploit", low=0.0, high=0.02, explore_share=0.3)
ALL: list[KLSchedule] = [
    Constant(schedule="constant", weight=0.04),
    LINEAR,
    Cosine(schedule="cosine", start=0.02, end=0.10),
    Exponential(schedule="exponential", start=0.01, end=0.16),
    Step(schedule="step", weights=(0.1, 0.2)),
    ADAPTIVE,
    ACCURACY,
    COUNTING,
]


def weights(schedule: KLSchedule, updates: int) -> list[float]:
    controller = KLController(schedule, updates)
    return [controller.next_weight(update, accuracy=0.5) for update in range(updates)]


@pytest.mark.parametrize(
    ("schedule", "by_hand"),
    [
        (Constant(schedule="constant", weight=0.04), [0.04, 0.04, 0.04, 0.04, 0.04]),
        (LINEAR, [0.02, 0.04, 0.06, 0.08, 0.10]),
        (Linear(schedule="linear", start=0.3, end=0.1), [0.3, 0.25, 0.2, 0.15, 0.1]),
        # cos(pi / 4) = 0.70711: half of 1 - 0.70711 of the way, half of it, half of 1.70711.
        (
            Cosine(schedule="cosine", start=0.02, end=0.10),
            [0.02, 0.03171573, 0.06, 0.08828427, 0.10],
        ),
        # STILL-3 falls, from 1e-3 to 0, for which the floor stands.
        (
            Cosine(schedule="cosine", start=1e-3, end=0.0),
            [1e-3, 8.5355339e-4, 5e-4, 1.4644661e-4, FLOOR],
        ),
        (Constant(schedule="constant", weight=0.0), [FLOOR] * 5),
        # Progress 0.25 is 5/6 of the way from 0.07 down to 0.04; 0.5 is 2/7 of that up to 0.1.
        (COUNTING, [0.07, 0.045, 0.04 + 0.06 * 2 / 7, 0.04 + 0.06 * 4.5 / 7, 0.1]),
        (Exponential(schedule="exponential", start=0.01, end=0.16), [0.01, 0.02, 0.04, 0.08, 0.16]),
        (Step(schedule="step", weights=(0.1, 0.2)), [0.1, 0.1, 0.2, 0.2, 0.2]),
        (Step(schedule="step", weights=(0.3, 0.1, 0.2)), [0.3, 0.3, 0.1, 0.2, 0.2]),
    ],
    ids=lambda value: getattr(value, "schedule", ""),
)
def test_the_weights_of_five_updates(schedule: KLSchedule, by_hand: list[float]) -> None:
    assert weights(schedule, 5) == pytest.approx(by_hand, rel=1e-6)


def test_one_update_gets_the_start() -> None:
    assert weights(LINEAR, 1) == [LINEAR.start]


@pytest.mark.parametrize(
    ("kl", "weight"),
    [
        (0.10, 1.0),  # on target
        (0.11, 1.05),  # 10 % above it: 1 + 0.5 x 0.1
        (0.09, 0.95),
        (0.12, 1.1),  # 20 %: the most that counts
        (50.0, 1.1),
        (math.inf, 1.1),
        (0.0, 0.9),
    ],
)
def test_adaptive_corrects_by_the_relative_error(kl: float, weight: float) -> None:
    seen = Seen(progress=0.5, accuracy=0.0, kl=kl)
    assert ADAPTIVE.next_weight(seen, previous=1.0) == pytest.approx(weight, rel=1e-12)


def test_adaptive_stays_within_its_bounds_and_comes_back() -> None:
    controller = KLController(ADAPTIVE, 10)
    applied = []
    for update, kl in enumerate([9.0, 9.0, 9.0, 0.0, 0.0, 0.0, 0.0, 0.1]):
        applied.append(controller.next_weight(update, accuracy=0.0))
        controller.measured(kl)
    # Each x 1.1 up to 1.2, then each x 0.9 down to 0.8.
    assert applied == pytest.approx([1.0, 1.1, 1.2, 1.2, 1.08, 0.972, 0.8748, 0.8])


@pytest.mark.parametrize(
    ("schedule", "by_hand"),
    [
        # 11 updates: progress in tenths, update 3 stands at the end of the exploration itself.
        (COUNTING, [0.07, 0.06, 0.05, 0.04, 0.04 + 0.06 / 7]),
        (GEOMETRY, [0.01, 0.02 / 3, 0.01 / 3, FLOOR, 0.02 / 7]),
    ],
    ids=["counting", "geometry"],
)
def test_the_weight_dips_at_the_end_of_the_exploration(
    schedule: ExploreExploit, by_hand: list[float]
) -> None:
    applied = weights(schedule, 11)
    assert applied[:5] == pytest.approx(by_hand, rel=1e-9)
    assert applied[-1] == pytest.approx(schedule.high, rel=1e-12)
    assert applied[3:] == sorted(applied[3:])
    # The paper's training is long: the mean of a continuous curve, piece by piece.
    middle = (schedule.low + schedule.high) / 2
    mean = 0.3 * (middle + schedule.low) / 2 + 0.7 * middle
    assert mean == pytest.approx({0.04: 0.0655, 0.0: 0.0085}[schedule.low])
    assert sum(weights(schedule, 10_001)) / 10_001 == pytest.approx(mean, rel=1e-3)


@pytest.mark.parametrize(
    ("accuracy", "weight"),
    [
        (0.0, 0.01),
        (0.5, 0.01 * 1.4621171573),  # tanh 0.5 = (e - 1) / (e + 1)
        (1.0, 0.01 * 1.7615941560),  # (e^2 - 1) / (e^2 + 1)
    ],
)
def test_accuracy_sets_the_weight_of_its_own_batch(accuracy: float, weight: float) -> None:
    controller = KLController(ACCURACY, 10)
    controller.next_weight(0, accuracy=0.9)  # another batch, which must not matter
    assert controller.next_weight(1, accuracy=accuracy) == pytest.approx(weight, rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (ALL[0], "0.04"),
        # 31 updates with a mean of 0.055, 70 with one of 0.04 + 0.06 x 71 / 140.
        (COUNTING, "0.07 first, 0.04 least, 0.1 last, 0.06569 on average"),
        (GEOMETRY, "0.01 first, 1e-06 least, 0.02 last, 0.008564 on average"),
        (ADAPTIVE, "1 first, then between 0.8 and 1.2 towards a KL of 0.1"),
        (ACCURACY, "0.01 to 0.01762, by the batch's accuracy"),
    ],
    ids=lambda value: getattr(value, "schedule", ""),
)
def test_a_schedule_says_its_weights(schedule: KLSchedule, words: str) -> None:
    assert schedule.describe(101) == words


def test_the_kl_of_an_update_is_the_mean_of_its_losses_and_the_next_weight_takes_it_once() -> None:
    controller = KLController(ADAPTIVE, 10)
    assert controller.next_weight(0, accuracy=0.0) == 1.0
    controller.measured(0.10)
    controller.measured(0.12)  # mean 0.11: 10 % above the target
    assert controller.next_weight(1, accuracy=0.0) == pytest.approx(1.05)
    assert controller.next_weight(2, accuracy=0.0) == pytest.approx(1.05)  # nothing new to follow


def test_without_a_kl_the_weight_stays_where_it_was() -> None:
    seen = Seen(progress=0.5, accuracy=0.0, kl=None)
    assert ADAPTIVE.next_weight(seen, previous=0.9) == 0.9
    assert ADAPTIVE.next_weight(seen, previous=None) == ADAPTIVE.start != 0.9


@pytest.mark.parametrize("schedule", ALL, ids=lambda schedule: schedule.schedule)
def test_a_restored_controller_goes_on_as_if_nothing_had_happened(schedule: KLSchedule) -> None:
    def run(controller: KLController, updates: range) -> list[float]:
        applied = []
        for update in updates:
            applied.append(controller.next_weight(update, accuracy=update / 10))
            controller.measured(0.07 + 0.01 * update)
            controller.measured(0.09 + 0.01 * update)
        return applied

    whole = run(KLController(schedule, 10), range(10))
    first = KLController(schedule, 10)
    before = run(first, range(4))
    second = KLController(schedule, 10)
    second.restore(json.loads(json.dumps(first.state())))
    assert second.weight == whole[3]
    assert before + run(second, range(4, 10)) == whole


@pytest.mark.parametrize(
    "weight", [FLOOR / 2, 2 * CEILING, -0.1, float("nan"), float("inf"), True, "0.1", None]
)
def test_weights_are_numbers_between_the_floor_and_the_ceiling(weight: Any) -> None:
    for schedule, keys in {
        Constant(schedule="constant", weight=0.1): ["weight"],
        LINEAR: ["start", "end"],
        ALL[2]: ["start", "end"],
        ALL[3]: ["start", "end"],
        ADAPTIVE: ["start", "low", "high"],
        ACCURACY: ["weight"],
        COUNTING: ["low", "high"],
    }.items():
        for key in keys:
            with pytest.raises(ValidationError, match=key):
                type(schedule)(**{**schedule.model_dump(), key: weight})
    with pytest.raises(ValidationError):
        Step(schedule="step", weights=(0.1, weight))


def test_schedules_that_multiply_do_not_start_from_nothing() -> None:
    for schedule, key in ((ALL[3], "start"), (ALL[3], "end"), (ADAPTIVE, "low")):
        with pytest.raises(ValidationError, match=key):
            type(schedule)(**{**schedule.model_dump(), key: 0.0})


@pytest.mark.parametrize(
    ("schedule", "changes", "told"),
    [
        (ADAPTIVE, {"low": 1.1}, "low <= start <= high"),
        (ADAPTIVE, {"high": 0.9}, "low <= start <= high"),
        (ADAPTIVE, {"target": 0.0}, "target"),
        (ADAPTIVE, {"gain": 0.0}, "gain"),
        (ADAPTIVE, {"gain": 5.0}, "gain"),  # the weight could fall to zero in one update
        (COUNTING, {"low": 0.11}, "low <= high is asked, got low = 0.11, high = 0.1"),
        (COUNTING, {"explore_share": 0.0}, "explore_share"),
        (COUNTING, {"explore_share": 1.0}, "explore_share"),
        (ALL[4], {"weights": (0.1,)}, "weights"),
    ],
)
def test_parameters_that_make_no_sense_are_refused(
    schedule: KLSchedule, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError, match=told):
        type(schedule)(**{**schedule.model_dump(), **changes})


def test_pure_modules_import_no_framework() -> None:
    code = (
        "import sys; from othink_pipeline.training import kl; "
        "from othink_pipeline.scoring import strict; "
        "from othink_pipeline.report import estimators; "
        "sys.exit(str([m for m in ('torch', 'kedro', 'mlflow', 'trl') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


def test_what_makes_no_weight_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"KL weight nan in update 3, from .*accuracy=nan"):
        KLController(ACCURACY, 10).next_weight(3, accuracy=math.nan)
    for updates in (0, -1):  # -1: transformers' way to say "by epochs"
        with pytest.raises(ValueError, match=f"known number of updates, got {updates}"):
            KLController(LINEAR, updates)
