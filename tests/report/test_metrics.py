"""What MLflow shows as scores, by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from othink_pipeline.report.comparison import compare_all, differences_table
from othink_pipeline.report.estimators import wilson_interval
from othink_pipeline.report.figures import heat_map
from othink_pipeline.report.metrics import cell_metrics, grid_metrics, model_metrics
from othink_pipeline.report.scores import forms_section, means_section, rates_section
from tests.support.handmade import KNOWN, MARGIN, cell, grid, matrix_of, two_tasks


def of(table: pd.DataFrame, train_task: str, method: str) -> pd.DataFrame:
    return table[(table["train_task"] == train_task) & (table["method"] == method)]


def cell_scores(predictions: pd.DataFrame, train_task: str, method: str) -> dict[str, float]:
    base = of(predictions, "none", "base")
    matrix = matrix_of(predictions)
    return cell_metrics(of(matrix, train_task, method), of(predictions, train_task, method), base)


def test_own_and_other_are_apart_each_with_its_bounds_and_its_gain() -> None:
    scores = cell_scores(two_tasks(), "counting", "grpo_d")
    interval = wilson_interval(5, 8)
    assert scores["own/accuracy"] == 5 / 8
    assert scores["own/accuracy_low"] == round(interval.low, 4)
    assert scores["own/accuracy_high"] == round(interval.high, 4)
    assert scores["other/accuracy"] == 2 / 4
    assert scores["own/gain"] == 5 / 8 - 2 / 8
    assert scores["other/gain"] == 2 / 4 - 1 / 4
    assert scores["own/gain_low"] <= scores["own/gain"] <= scores["own/gain_high"]
    assert len(scores) == 12


def test_other_is_the_mean_over_tasks_and_none_where_one_is_missing() -> None:
    third = [
        cell("counting", "grpo_d", 0, "third", [1, 1]),
        cell("none", "base", None, "third", [0, 1]),
    ]
    scores = cell_scores(grid(two_tasks(), *third), "counting", "grpo_d")
    assert scores["other/accuracy"] == (2 / 4 + 2 / 2) / 2  # and not 4 of 6
    assert scores["other/accuracy_low"] < 0.75 < scores["other/accuracy_high"]
    assert scores["other/gain"] == 0.75 - (1 / 4 + 1 / 2) / 2
    predictions = two_tasks()
    matrix = of(matrix_of(predictions), "counting", "grpo_d")
    matrix.loc[matrix["eval_task"] == "geometry", "n"] = 0  # that test failed
    answers = of(predictions, "counting", "grpo_d")
    scores = cell_metrics(matrix, answers, of(predictions, "none", "base"))
    assert {name.split("/")[0] for name in scores} == {"own"}


def test_base_models_count_alike_however_many_seeds_they_have() -> None:
    predictions = grid(
        cell("none", "base", None, "counting", [0, 0, 0, 0], base_model=0),
        cell("none", "base", None, "counting", [0, 0, 0, 0], base_model=1),
        cell("counting", "sft", 0, "counting", [1, 1, 1, 1], base_model=0),
        cell("counting", "sft", 1, "counting", [0, 0, 0, 0], base_model=1),
        cell("counting", "sft", 2, "counting", [1, 1, 1, 1], base_model=0),
    )
    predictions["form"] = ["price", "price", "total", "total"] * 5
    matrix = matrix_of(predictions)
    assert grid_metrics(matrix, differences_table([]))["own/sft"] == 0.5  # and not 2 of 3
    assert "| sft | 50.0 (3) | — (0) |" in means_section(matrix)
    assert "| counting | sft | counting | 50.0 | 62.5 |" in rates_section(matrix)
    assert "| counting | sft | 50.0 | 50.0 |" in forms_section(predictions)
    assert "50.0" in {text.get_text() for text in heat_map(matrix, KNOWN).axes[0].texts}


def test_forms_are_told_by_task() -> None:
    predictions = of(two_tasks(), "counting", "sft").assign(form="count")
    predictions.loc[predictions["example_id"].isin(["counting-0", "counting-1"]), "form"] = "price"
    scores = model_metrics(matrix_of(predictions), predictions)
    assert scores["eval/form/counting/price"] == 1 / 2
    assert scores["eval/form/counting/count"] == round(2 / 6, 4)
    assert scores["eval/accuracy_low/geometry"] == round(wilson_interval(1, 4).low, 4)


def test_no_mean_is_over_some_of_the_tasks() -> None:
    third = [cell("counting", name, 0, "third", [1, 1]) for name in ("grpo_d", "sft")]
    predictions = grid(two_tasks(), *third)  # the base model's test failed
    scores = cell_scores(predictions, "counting", "grpo_d")
    assert "other/accuracy" in scores
    assert [name for name in scores if "gain" in name and "other" in name] == []
    keys = ("train_task", "method", "seed", "base_model", "eval_task")
    holes = [("none", "base", None, 0, "third"), ("geometry", "sft", 0, 0, "third")]
    failures = pd.DataFrame(holes, columns=list(keys)).astype({"seed": "Int64"})
    metrics = grid_metrics(matrix_of(predictions, failures), differences_table([]))
    assert sorted(metrics) == ["other/grpo_d", "own/grpo_d", "own/sft"]


def test_questions_without_a_form_are_no_form() -> None:
    predictions = of(two_tasks(), "counting", "sft").assign(form="")
    predictions.loc[predictions["eval_task"] == "geometry", "form"] = "angle"
    scores = model_metrics(matrix_of(predictions), predictions)
    assert [name for name in scores if "/form/" in name] == ["eval/form/geometry/angle"]


def test_the_grid_has_its_differences_with_bounds_and_holms_p() -> None:
    predictions = two_tasks()
    compared = compare_all(predictions, [("grpo_d", "sft")], MARGIN)
    metrics = grid_metrics(matrix_of(predictions), differences_table(compared))
    assert metrics["base/accuracy"] == (2 / 8 + 1 / 4) / 2
    assert metrics["own/sft"] == (3 / 8 + 2 / 4) / 2
    assert metrics["other/grpo_d"] == (2 / 8 + 2 / 4) / 2
    name = "difference/own/grpo_d-sft"
    assert metrics[name] == 0.25
    assert metrics[f"{name}_low"] <= 0.25 <= metrics[f"{name}_high"]
    # Two families: 2 tests between methods, 4 against the base model.
    p_values = [value for key, value in metrics.items() if key.endswith("_p")]
    assert len(p_values) == len(compared) == 6
    assert not [key for key in metrics if key.endswith("_p_equivalent")]  # with one seed
    between, against_base = ([c.p for c in compared if (c.baseline == "base") == b] for b in (0, 1))
    assert (len(between), len(against_base)) == (2, 4)
    assert min(p_values) == pytest.approx(min(2 * min(between), 4 * min(against_base)))
    told = differences_table(compared)
    told.loc[told["baseline"] == "sft", "p_equivalent_holm"] = 0.04
    metrics = grid_metrics(matrix_of(predictions), told)
    equivalent = {key: value for key, value in metrics.items() if key.endswith("_p_equivalent")}
    other = "difference/other/grpo_d-sft_p_equivalent"
    assert equivalent == {f"{name}_p_equivalent": 0.04, other: 0.04}
