"""Test every cell on the tasks that it never saw, and the base model on all; then report."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from othink_pipeline.cells.evaluate import eval_stage, read_predictions
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.keys import SAME_ENV
from othink_pipeline.cells.manifests import FailedCell, FailedTest, Predictions
from othink_pipeline.cells.parameters import Published, Report
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.report.figures import (
    heat_map_plotly,
    heat_map_png,
    training_curves_plotly,
    training_curves_png,
)
from othink_pipeline.report.markdown import report_markdown
from othink_pipeline.report.matrix import BASE, KEYS, matrix_text, transfer_matrix
from othink_pipeline.tracking import records, runs

logger = logging.getLogger(__name__)

COST_COLUMNS = (
    "updates",
    "prompts",
    "completion_tokens",
    "seconds",
    "weights_changed",
    "run_id",
    "path",
)


def collect_method(
    *parts: Any, cells: tuple[Cell, ...], eval_tasks: tuple[str, ...]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Gather all seeds of one method on one task.

    Args:
        parts: for each cell in turn its checkpoint's manifest, its history and the manifests of
            its predictions on every one of ``eval_tasks``.

    Returns:
        predictions, history, training (one row a cell: what it cost) and failures (one row for
        each missing score: why), all with the columns task, method and seed (predictions and
        failures: train_task).
    """
    predictions, histories, training, failures = [], [], [], []
    size = 2 + len(eval_tasks)
    for number, cell in enumerate(cells):
        checkpoint, history, *manifests = parts[number * size : (number + 1) * size]
        failures += [each.model_dump() for each in manifests if isinstance(each, FailedTest)]
        if isinstance(checkpoint, FailedCell):
            continue
        done: list[Predictions] = [each for each in manifests if isinstance(each, Predictions)]
        histories.append(history.assign(**cell._asdict()))
        costs = {column: getattr(checkpoint, column) for column in COST_COLUMNS}
        rate = checkpoint.parameters.learning_rate
        summary = summarize_history(history, cell.task)
        training.append({**cell._asdict(), **costs, "learning_rate": rate, **summary})
        for each in done:
            if each.checkpoint != checkpoint.digest:
                raise ConfigurationError(
                    f"{cell.name}: its predictions are not those of its last checkpoint. "
                    f"Run the cell again: kedro run --namespaces={cell.name} {SAME_ENV}"
                )
        tables = [read_predictions(each) for each in done]
        predictions += tables
        if len(tables) == len(manifests):
            mean = sum(table["correct"].mean() for table in tables) / len(tables)
            means = {f"{eval_stage(tables[0])}/mean": mean}
            records.log_scores(checkpoint.run_id, means, checkpoint.updates)
    return (
        _together(predictions or [pd.DataFrame(columns=KEYS)]),
        _together(histories or [pd.DataFrame(columns=["step", "metric", "value", *Cell._fields])]),
        pd.DataFrame(training) if training else pd.DataFrame(columns=Cell._fields),
        pd.DataFrame(failures, columns=[*KEYS, "failed"]).rename(columns={"failed": "reason"}),
    )


def summarize_history(history: pd.DataFrame, task: str) -> dict[str, float]:
    """What the report needs of a cell's curves; NaN for what its method has not.

    Args:
        history: columns step, metric, value.
        task: the one that was trained on.

    Returns:
        kl_term (KL weight x KL) and kl_weight_mean, averaged over the updates; kl_weight_end, of
        the last; kl_last, the mean KL in the last quarter of the updates; reward_first and
        reward_last, the mean reward in the first and the last quarter; accuracy_first and
        accuracy_last, on the own task's validation split before and after training.
    """
    curves = history.pivot(index="step", columns="metric", values="value").sort_index()
    metrics = ["train/kl_weight", "train/kl", "train/reward", f"val/{task}"]
    weight, kl, reward, accuracy = (
        curves[name].dropna() if name in curves else pd.Series([float("nan")]) for name in metrics
    )
    quarter = math.ceil(len(reward) / 4)  # RL's curves are all as long
    return {
        "kl_term": float((weight * kl).mean()),
        "kl_weight_mean": float(weight.mean()),
        "kl_weight_end": float(weight.iloc[-1]),
        "kl_last": float(kl.iloc[-quarter:].mean()),
        "reward_first": float(reward.iloc[:quarter].mean()),
        "reward_last": float(reward.iloc[-quarter:].mean()),
        "accuracy_first": float(accuracy.iloc[0]),
        "accuracy_last": float(accuracy.iloc[-1]),
    }


def build_transfer_matrix(
    failures: pd.DataFrame, *predictions: pd.DataFrame | Predictions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All predictions in one table, and their scores: rows trained on, columns tested on.

    Args:
        failures: what has no score, and why.
        predictions: of the base models each by itself, of the tasks in tables.
    """
    tables = [
        read_predictions(part) if isinstance(part, Predictions) else part for part in predictions
    ]
    tables = [table for table in tables if len(table)]
    settings = {(eval_stage(table), _samples(table)) for table in tables}
    if len(settings) > 1:
        raise ConfigurationError(
            "not all predictions were made with the same evaluation.shuffle_images and .samples. "
            f"Test all checkpoints again: kedro run --pipelines=evaluation {SAME_ENV}"
        )
    together = _together(tables)
    for task, table in together.groupby("eval_task"):
        if table["test_data"].nunique() > 1:
            old = sorted(set(table["train_task"] + "." + table["method"]))
            raise ConfigurationError(
                f"not all methods were tested on the same examples of {task}: {', '.join(old)}. "
                f"Run the whole grid again: kedro run {SAME_ENV}"
            )
    origin = together[together["method"] == BASE].groupby("base_model")["base_digest"].first()
    strange = together[together["base_digest"] != together["base_model"].map(origin)]
    if not strange.empty:
        rows = strange[["train_task", "method", "seed"]].drop_duplicates().itertuples(index=False)
        cells = ",".join(f"{task}.{method}.s{seed}" for task, method, seed in rows)
        raise ConfigurationError(
            "base_model.path: these cells were trained from other base models than it names. Set "
            f"it back, or train them again: kedro run --namespaces={cells} {SAME_ENV}"
        )
    return together, transfer_matrix(together, failures)


def _samples(predictions: pd.DataFrame) -> int:
    """How many sampled answers each example has."""
    return len(predictions["sampled_correct"].iloc[0]) if "sampled_correct" in predictions else 0


def gather_training(*tables: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Histories, costs and failures of all cells: every task's histories, then its costs, ..."""
    history, training, failures = _concatenate(tables, kinds=3)
    return history, training, failures


def collect_task(
    *tables: pd.DataFrame,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Gather all methods on one task: every method's predictions, then histories, and so on."""
    predictions, history, training, failures = _concatenate(tables, kinds=4)
    return predictions, history, training, failures


def _concatenate(tables: Sequence[pd.DataFrame], kinds: int) -> list[pd.DataFrame]:
    """``tables`` holds equally many of each kind, kind by kind: one table of each kind."""
    size = len(tables) // kinds
    return [_together(tables[kind * size : (kind + 1) * size]) for kind in range(kinds)]


def _together(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Tables below one another; what is empty does not decide a column's type."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled or tables[:1], ignore_index=True)


def draw_figures(transfer_matrix: pd.DataFrame, history: pd.DataFrame) -> tuple[Any, Any, Any, Any]:
    """Heat map and training curves, each as a Plotly and as a Matplotlib figure."""
    return (
        heat_map_plotly(transfer_matrix),
        heat_map_png(transfer_matrix),
        training_curves_plotly(history),
        training_curves_png(history),
    )


def write_report(
    transfer_matrix: pd.DataFrame,
    predictions: pd.DataFrame,
    training: pd.DataFrame,
    failures: pd.DataFrame,
    report: Report,
    published: Published,
    *base_models: BaseModelCheckpoint,
) -> str:
    """The report; prints the matrix, puts means on the parent's and the base models' MLflow runs.

    Args:
        base_models: those that cells start from, in the order of their numbers.
    """
    base = transfer_matrix[transfer_matrix["method"] == BASE].groupby("base_model")["accuracy"]
    mean_name = f"{eval_stage(predictions)}/mean"
    for base_model, mean in zip(base_models, base.mean(), strict=True):
        records.log_scores(base_model.run_id, {mean_name: float(mean)}, 0)
    parent = runs.parent_run_id()
    lineage = {}
    if parent:
        lineage = {"MLflow run": parent, "compare its cells": records.comparison_link(parent)}
        records.log_metrics(parent, _means(transfer_matrix), 0)
    logger.info("transfer matrix: accuracy in %%\n%s", matrix_text(transfer_matrix))
    return report_markdown(
        transfer_matrix, predictions, training, lineage, report.comparisons, failures, published
    )


def _means(matrix: pd.DataFrame) -> dict[str, float]:
    """``same_task/<method>`` and ``cross_task/<method>``: means over tasks and seeds."""
    same = matrix["train_task"] == matrix["eval_task"]
    base = matrix["method"] == BASE
    means = {"base": float(matrix.loc[base, "accuracy"].mean())}
    for scope, rows in (("same_task", same), ("cross_task", ~same & ~base)):
        for method, cells in matrix[rows].groupby("method"):
            means[f"{scope}/{method}"] = float(cells["accuracy"].mean())
    return means
