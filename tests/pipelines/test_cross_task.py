"""What is collected belongs together, or the run stops; what failed is a hole, not a stop."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from othink_pipeline.cells.evaluate import write_predictions
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.manifests import FailedCell, FailedTest, Predictions
from othink_pipeline.cells.parameters import Published, Report
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.pipelines.cross_task.nodes import (
    build_transfer_matrix,
    collect_method,
    collect_task,
    draw_figures,
    gather_training,
    summarize_history,
    write_report,
)
from othink_pipeline.report.matrix import matrix_text
from tests.support.manifests import checkpoint_of, shipped_method

CELL = Cell("counting", "grpo", 0)
CHECKPOINT = checkpoint_of(
    CELL, updates=2, parameters=shipped_method(CELL).model_copy(update={"learning_rate": 0.5})
)
FAILED = FailedCell(task="counting", method="grpo", seed=0, failed="RuntimeError: a | b")
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
    return table.assign(example_id=["first", "second"]).astype({"seed": "Int64"})


ABOUT = ["train_task", "method", "seed", "base_model", "eval_task"]
NO_FAILURES = pd.DataFrame(columns=[*ABOUT, "reason"])

Publish = Callable[[pd.DataFrame], Predictions]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """A table of predictions as a file, and its manifest as an evaluation returns it."""

    def write(table: pd.DataFrame) -> Predictions:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        write_predictions(table, file)
        about = {name: table[name].tolist()[0] for name in [*ABOUT, "checkpoint"]}
        about["seed"] = None if pd.isna(about["seed"]) else about["seed"]
        return Predictions(**about, key="k", path=str(file))

    return write


@pytest.fixture
def base(publish: Publish) -> Predictions:
    return publish(predictions(train_task="none", method="base", seed=None))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "othink_pipeline.tracking.records.log_scores", lambda *arguments: calls.append(arguments)
    )
    return calls


def test_a_method_is_collected(logged: list[tuple[Any, ...]], publish: Publish) -> None:
    tables = predictions(), predictions("geometry", correct=True)
    collected, history, training, failures = collect_method(
        CHECKPOINT,
        HISTORY,
        *map(publish, tables),
        cells=(CELL,),
        eval_tasks=("counting", "geometry"),
    )
    assert collected["eval_task"].tolist() == ["counting"] * 2 + ["geometry"] * 2
    assert collected["seed"].dtype == "Int64"
    assert set(history["method"]) == {"grpo"}
    assert training["kl_term"].tolist() == [pytest.approx((0.1 * 1 + 0.3 * 2) / 2)]
    assert training["learning_rate"].tolist() == [0.5]
    assert list(failures.columns) == [*ABOUT, "reason"]
    assert failures.empty
    assert logged == [("r", {"eval/mean": 0.75}, 2)]


def test_a_method_without_a_kl_term_has_none(
    logged: list[tuple[Any, ...]], publish: Publish
) -> None:
    history = HISTORY[HISTORY["metric"] == "train/loss"]
    _, _, training, _ = collect_method(
        CHECKPOINT, history, publish(predictions()), cells=(CELL,), eval_tasks=("counting",)
    )
    assert training["kl_term"].isna().all()


def test_predictions_of_another_checkpoint_are_refused(
    logged: list[tuple[Any, ...]], publish: Publish
) -> None:
    with pytest.raises(ConfigurationError, match=r"counting\.grpo\.s0.*--namespaces="):
        collect_method(
            CHECKPOINT,
            HISTORY,
            publish(predictions(checkpoint="old")),
            cells=(CELL,),
            eval_tasks=("counting",),
        )
    assert not logged


def test_predictions_that_are_gone_or_damaged_are_named(
    logged: list[tuple[Any, ...]], publish: Publish
) -> None:
    manifest = publish(predictions())
    file = Path(manifest.path)
    file.write_bytes(file.read_bytes()[:-20])
    for _ in range(2):
        with pytest.raises(
            ConfigurationError, match=r"0\.parquet: missing or damaged.*=evaluation"
        ):
            collect_method(CHECKPOINT, HISTORY, manifest, cells=(CELL,), eval_tasks=("counting",))
        file.unlink(missing_ok=True)
    assert not logged


def failed(eval_task: str, reason: str = "RuntimeError: a | b", **about: Any) -> FailedTest:
    """Why predictions are not there."""
    cell = {"train_task": "counting", "method": "grpo", "seed": 0, "base_model": 0}
    return FailedTest(**{**cell, "eval_task": eval_task, **about}, failed=reason)


def test_a_cell_that_failed_is_a_hole_beside_those_that_did_not(
    logged: list[tuple[Any, ...]], publish: Publish, base: Predictions
) -> None:
    """One seed's training failed, of another one evaluation: what there is is collected."""
    tasks = ("counting", "geometry")
    cells = tuple(Cell("counting", "grpo", seed) for seed in (0, 1, 2))
    whole = [publish(predictions(task, seed=1)) for task in tasks]
    half = [publish(predictions(seed=2)), failed("geometry", "OSError: gone", seed=2)]
    collected, history, training, failures = collect_method(
        *(FAILED, HISTORY, *(failed(task) for task in tasks)),
        *(CHECKPOINT, HISTORY, *whole),
        *(CHECKPOINT.model_copy(update={"run_id": "of s2"}), HISTORY, *half),
        cells=cells,
        eval_tasks=tasks,
    )
    assert set(zip(collected["seed"], collected["eval_task"], strict=True)) == {
        *((1, "counting"), (1, "geometry"), (2, "counting"))
    }
    assert set(history["seed"]) == set(training["seed"]) == {1, 2}
    assert failures[["seed", "eval_task", "reason"]].to_numpy().tolist() == [
        [0, "counting", "RuntimeError: a | b"],
        [0, "geometry", "RuntimeError: a | b"],
        [2, "geometry", "OSError: gone"],
    ]
    assert logged == [("r", {"eval/mean": 0.5}, 2)]  # a mean over half the tasks is none

    _, matrix = build_transfer_matrix(
        failures, base, publish(predictions("geometry", method="base", seed=None)), collected
    )
    holes = matrix[matrix["n"] == 0]
    assert holes[["method", "seed", "eval_task"]].to_numpy().tolist() == [
        ["grpo", 0, "counting"],
        ["grpo", 0, "geometry"],
        ["grpo", 2, "geometry"],
    ]
    assert holes["accuracy"].isna().all()
    assert matrix["seed"].dtype == "Int64"
    assert len(matrix) == 2 + 2 * 3
    lines = {line.split()[2]: line for line in matrix_text(matrix).splitlines() if "grpo" in line}
    assert [lines[seed].count("—") for seed in ("0", "1", "2")] == [2, 0, 1]


def test_a_task_of_which_nothing_is_left_does_not_stop_the_others(
    logged: list[tuple[Any, ...]],
    publish: Publish,
    base: Predictions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = ("counting",)
    good = collect_method(
        CHECKPOINT, HISTORY, publish(predictions()), cells=(CELL,), eval_tasks=tasks
    )
    lost = collect_method(
        FAILED,
        pd.DataFrame(columns=["step", "metric", "value"]),
        failed("counting", method="sft"),
        cells=(Cell("counting", "sft", 0),),
        eval_tasks=tasks,
    )
    assert [len(table) for table in lost] == [0, 0, 0, 1]
    both = collect_task(*(table for pair in zip(lost, good, strict=True) for table in pair))
    assert both[0]["seed"].dtype == "Int64"  # no empty table decides it
    alone = collect_task(*lost)
    for tables, cells in ((both, 1), (alone, 0)):
        history, training, failures = gather_training(*tables[1:])
        assert (len(training), len(failures)) == (cells, 1)
        assert len(history) == cells * len(HISTORY)
        together, matrix = build_transfer_matrix(failures, base, tables[0])
        assert len(together) == 2 + 2 * cells
        assert matrix.set_index("method")["n"].to_dict() == {
            **{"base": 2, "sft": 0},
            **({"grpo": 2} if cells else {}),
        }
        monkeypatch.delenv("OTHINK_PARENT_RUN_ID", raising=False)
        report = write_report(
            *(matrix, together, training, failures),
            Report(comparisons=(("grpo", "sft"),)),
            Published(source="nobody", accuracy={}, improvements=()),
            BaseModelCheckpoint(path="p", digest="d", run_id="of the base model", model_id="m"),
        )
        assert "## What failed" in report
        assert r"| counting | sft | 0 | → counting | RuntimeError: a \| b |" in report
        figures = draw_figures(matrix, history)
        assert len(figures) == 4
        plt.close("all")
    assert logged[-1] == ("of the base model", {"eval/mean": 0.5}, 0)


def test_predictions_on_other_test_data_are_refused(base: Predictions) -> None:
    tables = [predictions(), predictions(method="sft")]
    together, matrix = build_transfer_matrix(NO_FAILURES, base, *tables)
    assert (len(together), len(matrix)) == (6, 3)
    tables[1]["test_data"] = "other"
    with pytest.raises(ConfigurationError, match=r"same examples of counting.*counting\.sft"):
        build_transfer_matrix(NO_FAILURES, base, *tables)


def test_cells_trained_from_another_base_model_are_refused(
    base: Predictions, publish: Publish
) -> None:
    second = publish(
        predictions(train_task="none", method="base", seed=None, base_model=1, base_digest="c")
    )
    ours = predictions(seed=1, base_model=1, base_digest="c")
    _, matrix = build_transfer_matrix(NO_FAILURES, base, second, predictions(), ours)
    assert len(matrix) == 4
    strange = ours.assign(base_digest="b")
    with pytest.raises(ConfigurationError, match=r"base_model\.path.*=counting\.grpo\.s1 "):
        build_transfer_matrix(NO_FAILURES, base, second, predictions(), strange)
    with pytest.raises(ConfigurationError, match=r"=counting\.grpo\.s1 "):
        build_transfer_matrix(NO_FAILURES, base, predictions(), ours)  # its base model is not there


def test_predictions_made_with_other_settings_are_refused(base: Predictions) -> None:
    several = predictions(method="sft")
    several["sampled_correct"] = [[True, False]] * 2
    for other in (predictions(method="sft", image_of="x"), several):
        with pytest.raises(ConfigurationError, match=r"--pipelines=evaluation"):
            build_transfer_matrix(NO_FAILURES, base, predictions(), other)


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
    logged: list[tuple[Any, ...]], publish: Publish
) -> None:
    shuffled = publish(predictions(image_of="another"))
    collect_method(CHECKPOINT, HISTORY, shuffled, cells=(CELL,), eval_tasks=("counting",))
    assert logged == [("r", {"eval_shuffled/mean": 0.5}, 2)]
