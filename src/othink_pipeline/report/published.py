"""Section of the report that sets what others published beside what came out here."""

from __future__ import annotations

import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.comparison import compare
from othink_pipeline.report.matrix import HOLE
from othink_pipeline.report.parameters import Published
from othink_pipeline.report.scores import accuracy_text
from othink_pipeline.report.tables import signed, table


def published_section(matrix: pd.DataFrame, predictions: pd.DataFrame, published: Published) -> str:
    """Accuracies on the own task, then improvements across tasks; empty without a common cell."""
    trained = set(predictions["method"]) - {BASE}
    if not any(
        trained & figures.keys()
        for task, models in published.accuracy.items()
        for figures in models.values()
        if task in set(matrix["eval_task"])
    ):
        return ""
    note = (
        f"The published figures are of **other models, on other data**: {published.source}, without"
        " seeds or intervals. They say what was claimed there, and are no target here. The"
        " intervals of this run are over seeds and items; of one seed over items only."
    )
    parts = [_accuracies(matrix, predictions, published), _improvements(predictions, published)]
    return "\n\n".join([*filter(None, parts), note])


def _accuracies(matrix: pd.DataFrame, predictions: pd.DataFrame, published: Published) -> str:
    """A row for each task and method that others report, if the task is in this run."""
    models = list(
        dict.fromkeys(name for of_task in published.accuracy.values() for name in of_task)
    )
    rows = []
    for task, of_task in published.accuracy.items():
        for method in dict.fromkeys(name for figures in of_task.values() for name in figures):
            key = {"method": method, "eval_task": task}
            if method != BASE:
                key["train_task"] = task
            cells, answers = (
                rows[(rows[list(key)] == pd.Series(key)).all(axis=1)]
                for rows in (matrix, predictions)
            )
            ours = accuracy_text(cells, answers)
            theirs = [of_task.get(model, {}).get(method) for model in models]
            texts = [HOLE if value is None else f"{value:.2f}" for value in theirs]
            if task in set(matrix["eval_task"]):
                rows.append([task, method, ours, *texts])
    header = ["trained and tested on", "method", "this run, %", *(f"{m}, %" for m in models)]
    return table(header, rows)


def _improvements(predictions: pd.DataFrame, published: Published) -> str:
    """A row for each direction, method and baseline that others report and this run has."""
    rows = []
    for figure in published.improvements:
        tested = predictions[predictions["eval_task"] == figure.tested_on]
        ours = compare(tested, figure.method, figure.over, "cross", train_task=figure.trained_on)
        if ours is not None:
            what = [figure.trained_on, figure.tested_on, f"{figure.method} over {figure.over}"]
            rows.append([*what, signed(ours.widest_relative, 1), f"{figure.percent:+.2f}"])
    header = ["trained on", "tested on", "improvement", "this run, relative % [95 %]", "published"]
    return table(header, rows) if rows else ""
