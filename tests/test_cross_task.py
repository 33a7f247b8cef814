"""What is collected belongs together, or the run stops."""

import math
from typing import Any

import pandas as pd
import pytest

from othink_pipeline.grid import Cell
from othink_pipeline.pipelines.cross_task.nodes import (
    build_transfer_matrix,
    collect_method,
    summarize_history,
)
from othink_pipeline.validation import ConfigurationError

CELL = Cell("counting", "grpo", 0)
CHECKPOINT: dict[str, Any] = {
    "digest": "new",
    "run_id": "r",
    "path": "p",
    "updates": 2,
    "prompts": 8,
    "completion_tokens": 90,
    "seconds": 1.0,
    "weights_changed": 0.1,
    "parameters": {"learning_rate": 0.5},
}
CURVES = {"train/kl": [0.1, 0.3], "train/kl_weight": [1.0, 2.0], "train/loss": [5.0, 7.0]}
HISTORY = pd.DataFrame(
    [
        {"step": step, "metric": metric, "value": value}
        for metric, values in CURVES.items()
        for step, value in enumerate(values, start=1)
    ]
)


def predictions(eval_task: str = "counting", **columns: Any) -> pd.DataFrame:
    row = {
        "train_task": "counting",
        "method": "grpo",
        "seed": 0,
        "base_model": 0,
        "eval_task": eval_task,
        "correct": True,
        "correct_any": True,
        "format_ok": True,
        "thought": False,
        "unparseable": False,
        "completion_tokens": 5,
        "checkpoint": "new",
        "test_data": "d",
        "base_digest": "b",
    }
    table = pd.DataFrame([{**row, **columns}, {**row, "correct": False, **columns}])
    return table.astype({"seed": "Int64"})


BASE = predictions(train_task="none", method="base", seed=None)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "othink_pipeline.tracking.log_metrics", lambda *arguments: calls.append(arguments)
    )
    return calls


def test_a_method_is_collected(logged: list[tuple[Any, ...]]) -> None:
    tables = predictions(), predictions("geometry", correct=True)
    collected, history, training = collect_method(
        CHECKPOINT, HISTORY, *tables, cells=(CELL,), eval_tasks=("counting", "geometry")
    )
    assert len(collected) == 4
    assert set(history["method"]) == {"grpo"}
    assert training["kl_term"].tolist() == [pytest.approx((0.1 * 1 + 0.3 * 2) / 2)]
    assert training["learning_rate"].tolist() == [0.5]
    assert logged == [("r", {"eval/mean": 0.75}, 2)]


def test_a_method_without_a_kl_term_has_none(logged: list[tuple[Any, ...]]) -> None:
    history = HISTORY[HISTORY["metric"] == "train/loss"]
    *_, training = collect_method(
        CHECKPOINT, history, predictions(), cells=(CELL,), eval_tasks=("counting",)
    )
    assert training["kl_term"].isna().all()


def test_predictions_of_another_checkpoint_are_refused(logged: list[tuple[Any, ...]]) -> None:
    with pytest.raises(ConfigurationError, match=r"counting\.grpo\.s0.*--namespaces="):
        collect_method(
            CHECKPOINT,
            HISTORY,
            predictions(checkpoint="old"),
            cells=(CELL,),
            eval_tasks=("counting",),
        )
    assert not logged


def test_predictions_on_other_test_data_are_refused() -> None:
    together, matrix = build_transfer_matrix(BASE, predictions(), predictions(method="sft"))
    assert (len(together), len(matrix)) == (6, 3)
    with pytest.raises(ConfigurationError, match=r"same examples of counting.*counting\.sft"):
        build_transfer_matrix(BASE, predictions(), predictions(method="sft", test_data="other"))


def test_cells_trained_from_another_base_model_are_refused() -> None:
    second = predictions(train_task="none", method="base", base_model=1, base_digest="c")
    ours = predictions(seed=1, base_model=1, base_digest="c")
    _, matrix = build_transfer_matrix(BASE, second, predictions(), ours)
    assert len(matrix) == 4
    with pytest.raises(ConfigurationError, match=r"base_model\.path.*=counting\.grpo\.s1 "):
        build_transfer_matrix(BASE, second, predictions(), ours.assign(base_digest="b"))
    with pytest.raises(ConfigurationError, match=r"=counting\.grpo\.s1 "):
        build_transfer_matrix(BASE, predictions(), ours)  # its base model is not there


def test_predictions_made_with_other_settings_are_refused() -> None:
    several = predictions(method="sft")
    several["sampled_correct"] = [[True, False]] * 2
    for other in (predictions(method="sft", image_of="x"), several):
        with pytest.raises(ConfigurationError, match=r"--pipelines=evaluation"):
            build_transfer_matrix(BASE, predictions(), other)


def test_a_history_is_summed_up_by_its_ends_and_its_means() -> None:
    curves = {
        "train/kl": {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5},
        "train/kl_weight": {1: 1.0, 2: 1.0, 3: 2.0, 4: 2.0, 5: 4.0},
        "train/reward": {5: 1.8, 1: 0.2, 2: 0.6, 3: 1.0, 4: 1.4},  # in any order
        "val/counting": {0: 0.25, 3: 0.9, 5: 0.75},
        "val/geometry": {0: 0.5, 3: 0.5, 5: 0.5},
    }
    history = pd.DataFrame(
        [
            {"step": step, "metric": metric, "value": value}
            for metric, points in curves.items()
            for step, value in points.items()
        ]
    )
    assert summarize_history(history, "counting") == pytest.approx(
        {
            "kl_term": (0.1 + 0.2 + 0.6 + 0.8 + 2.0) / 5,
            "kl_weight_mean": 2.0,
            "kl_weight_end": 4.0,
            "kl_last": 0.45,
            "reward_first": 0.4,  # a quarter of 5 updates, rounded up: 2
            "reward_last": 1.6,
            "accuracy_first": 0.25,
            "accuracy_last": 0.75,
        }
    )


def test_what_a_method_has_not_is_unknown() -> None:
    only_loss = HISTORY[HISTORY["metric"] == "train/loss"]
    summary = summarize_history(only_loss, "counting")
    assert all(math.isnan(value) for value in summary.values())
    assert len(summary) == 8


def test_scores_on_shuffled_pictures_are_logged_under_a_name_of_their_own(
    logged: list[tuple[Any, ...]],
) -> None:
    shuffled = predictions(image_of="another")
    collect_method(CHECKPOINT, HISTORY, shuffled, cells=(CELL,), eval_tasks=("counting",))
    assert logged == [("r", {"eval_shuffled/mean": 0.5}, 2)]
