"""What MLflow shows of the results: scores of each model, and what was tested between methods.

Names say what a score is of: ``own`` is the task that a cell was trained on, ``other`` the mean
over all else. Shares in [0, 1], four digits; ``_low`` and ``_high`` end the names of the bounds of
a 95 % interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.comparison import Scope, compare, read_differences
from othink_pipeline.report.matrix import by_base_model, tested
from othink_pipeline.report.resampling import Estimate, resample

PREFIXES: Mapping[Scope, str] = {"same": "own", "cross": "other"}


def model_metrics(matrix: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, float]:
    """How one model did on each task, and on each form of its questions.

    Returns:
        ``eval/accuracy_low/<task>``, ``eval/accuracy_high/<task>``, ``eval/form/<task>/<form>``.
    """
    metrics: dict[str, float] = {}
    for task, low, high in tested(matrix)[["eval_task", "ci_low", "ci_high"]].to_numpy():
        metrics |= {f"eval/accuracy_low/{task}": low, f"eval/accuracy_high/{task}": high}
    formed = predictions[predictions["form"] != ""]  # data sets that are read have none
    for (task, form), answers in formed.groupby(["eval_task", "form"]):
        metrics[f"eval/form/{task}/{form}"] = answers["correct"].mean()
    return _rounded(metrics)


def cell_metrics(
    matrix: pd.DataFrame, predictions: pd.DataFrame, base: pd.DataFrame
) -> dict[str, float]:
    """Accuracy of a cell on its own task and on the others, and the gain over its base model.

    A scope with a hole has no score, nor a gain where the base model has one: a mean over some
    tasks is none.

    Args:
        base: the answers of all base models.

    Returns:
        ``own/accuracy``, ``own/gain``, ``other/accuracy`` and ``other/gain``, with bounds.
    """
    metrics: dict[str, float] = {}
    both = pd.concat([predictions, base])
    for scope, name in PREFIXES.items():
        rows = matrix[(matrix["eval_task"] == matrix["train_task"]) == (scope == "same")]
        if rows.empty or len(tested(rows)) < len(rows):
            continue
        metrics |= _with_bounds(f"{name}/accuracy", _accuracy(rows, predictions))
        gain = compare(both, rows["method"].iloc[0], BASE, scope)
        if gain and gain.cells == len(rows):
            metrics |= _with_bounds(f"{name}/gain", gain.widest, 100)
    return metrics


def _accuracy(rows: pd.DataFrame, answers: pd.DataFrame) -> Estimate:
    """Of one task as in the matrix, of several the mean over tasks."""
    if len(rows) == 1:
        return Estimate(*rows[["accuracy", "ci_low", "ci_high"]].to_numpy()[0])
    chosen = answers[answers["eval_task"].isin(rows["eval_task"])]
    drawn = resample([[chosen["correct"]]], strata=chosen["eval_task"])
    return drawn.estimate(lambda means: means[0])


def grid_metrics(matrix: pd.DataFrame, differences: pd.DataFrame) -> dict[str, float]:
    """What all cells come to.

    Args:
        differences: as from ``comparison.differences_table``.

    Returns:
        ``base/accuracy``, ``own/<method>`` and ``other/<method>``: means over base models,
        tasks and seeds, none of a method with a hole;
        ``difference/own/<method>-<baseline>`` and so on with bounds, and with ``_p`` Holm's p of
        its family, as in the report; between methods of two seeds or more with ``_p_equivalent``,
        too: Holm's p of a difference within the margin.
    """
    is_same = matrix["train_task"] == matrix["eval_task"]
    names = is_same.map({True: "own/", False: "other/"}) + matrix["method"]
    names = names.mask(matrix["method"] == BASE, "base/accuracy")
    metrics = _rounded(
        {
            name: by_base_model(rows).mean()
            for name, rows in matrix.groupby(names)
            if rows["accuracy"].notna().all()
        }
    )
    for each in read_differences(differences):
        name = f"difference/{PREFIXES[each.scope]}/{each.method}-{each.baseline}"
        metrics |= {**_with_bounds(name, each.widest, 100), f"{name}_p": each.p_holm}
        metrics[f"{name}_p_equivalent"] = each.p_equivalent_holm
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _with_bounds(name: str, estimate: Estimate, whole: float = 1) -> dict[str, float]:
    """``whole``: what of the estimate's unit is a share of 1."""
    values = {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return _rounded({name: value / whole for name, value in values.items()})


def _rounded(metrics: Mapping[str, float]) -> dict[str, float]:
    """Four digits: no more is known."""
    return {name: round(float(value), 4) for name, value in metrics.items()}
