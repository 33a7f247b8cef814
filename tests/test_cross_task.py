"""What is collected belongs together, or the run stops."""

from typing import Any

import pandas as pd
import pytest

from othink_pipeline.grid import Cell
from othink_pipeline.pipelines.cross_task.nodes import build_transfer_matrix, collect_method
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
    }
    table = pd.DataFrame([{**row, **columns}, {**row, "correct": False, **columns}])
    return table.astype({"seed": "Int64"})


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
    together, matrix = build_transfer_matrix(predictions(), predictions(method="sft"))
    assert (len(together), len(matrix)) == (4, 2)
    with pytest.raises(ConfigurationError, match=r"same examples of counting.*counting\.sft"):
        build_transfer_matrix(predictions(), predictions(method="sft", test_data="other"))
