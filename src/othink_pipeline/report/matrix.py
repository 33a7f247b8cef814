"""The transfer matrix: what was trained on (rows) against what was tested (columns).

A *cell* is (train_task, method, seed) and starts from one of the base models, ``base_model``; the
base models' own rows have train_task "none", method "base" and no seed. *Same-task* means
train_task == eval_task, *cross-task* all else. A cell that is missing is a hole (—), never a zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.estimators import wilson_interval

HOLE = "—"
KEYS = ["train_task", "method", "seed", "base_model", "eval_task"]
RATES = {
    "accuracy": "correct",
    "accuracy_any": "correct_any",
    "format_rate": "format_ok",
    "think_rate": "thought",
    "unparseable_rate": "unparseable",
}


def sort_methods(found: Iterable[str], methods: Sequence[str]) -> list[str]:
    """The base model, then the others in the order of ``methods``, then the rest by name."""
    places = {method: place for place, method in enumerate((BASE, *methods))}
    return sorted(set(found), key=lambda method: (places.get(method, len(places)), method))


def transfer_matrix(
    predictions: pd.DataFrame, failures: pd.DataFrame, methods: Sequence[str]
) -> pd.DataFrame:
    """One row for each cell and eval task; rates in [0, 1], ``ci_*`` the Wilson 95 % interval.

    Args:
        predictions: one row for each test example of each cell on each eval task.
        failures: a row for each cell and eval task that has no predictions: it is a row without
            items (n = 0) and without rates here, so that the hole is seen.
        methods: the order of the grid's methods.

    Returns:
        Columns train_task, method, seed, base_model, eval_task, n, correct, accuracy, ci_low,
        ci_high, accuracy_any, format_rate, think_rate, unparseable_rate, completion_tokens_mean;
        the base models first, then by train task, method, seed and eval task.
    """
    grouped = predictions.groupby(KEYS, dropna=False, sort=False, observed=True)
    matrix = grouped.agg(
        n=("correct", "size"),
        correct=("correct", "sum"),
        **{rate: (column, "mean") for rate, column in RATES.items()},
        completion_tokens_mean=("completion_tokens", "mean"),
    ).reset_index()
    intervals = [
        wilson_interval(int(correct), int(n))
        for correct, n in zip(matrix["correct"], matrix["n"], strict=True)
    ]
    place = list(matrix.columns).index("accuracy_any")
    matrix.insert(place, "ci_low", [interval.low for interval in intervals])
    matrix.insert(place + 1, "ci_high", [interval.high for interval in intervals])
    if len(failures):
        matrix = pd.concat([matrix, failures[KEYS].assign(n=0, correct=0)], ignore_index=True)
    matrix["seed"] = matrix["seed"].astype("Int64")
    return sort_rows(matrix, methods)


def tested(matrix: pd.DataFrame) -> pd.DataFrame:
    """The matrix without its holes."""
    return matrix[matrix["n"] > 0]


def by_base_model(rows: pd.DataFrame, column: str = "accuracy") -> pd.Series[float]:
    """Each base model's mean: their mean counts base models alike, however many seeds they have."""
    return rows.groupby("base_model")[column].mean()


def matrix_text(matrix: pd.DataFrame) -> str:
    """The matrix for a terminal: accuracy in % with its interval; ``*`` marks same-task cells.

    A row for each base model and each cell; where there are several base models, a column says
    which one it is.
    """
    tasks = sorted(matrix["eval_task"].unique())
    origin = ["base model"] if matrix["base_model"].nunique() > 1 else []
    rows = [["trained on", "method", "seed", *origin, *(f"-> {task}" for task in tasks)]]
    keys = ["train_task", "method", "seed", "base_model"]
    for _, group in matrix.groupby(keys, dropna=False, sort=False):
        train_task, method, seed, base_model = group[keys].iloc[0]
        cells = tested(group).set_index("eval_task")
        scores = [HOLE] * len(tasks)
        for place, task in enumerate(tasks):
            if task in cells.index:
                accuracy, low, high = cells.loc[task, ["accuracy", "ci_low", "ci_high"]] * 100
                mark = "*" if task == train_task else " "
                scores[place] = f"{accuracy:5.1f} [{low:4.1f}, {high:4.1f}]{mark}"
        names = [train_task, method, HOLE if pd.isna(seed) else str(seed)]
        rows.append([*names, *(str(base_model) for _ in origin), *scores])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    rule = "-" * max(len(line) for line in lines)
    note = "accuracy of the tagged answer, % [Wilson 95 % interval]; * trained on this task"
    return "\n".join([lines[0], rule, *lines[1:], rule, note])


def sort_rows(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Rows in report order: base, then train task, method, seed, base model, eval task."""
    ordered = sort_methods(table["method"], methods)
    places = {method: place for place, method in enumerate(ordered)}
    keys = ["_train", "_method", "seed", "base_model", "eval_task"]
    order = table.assign(
        _train=table["train_task"].where(table["method"] != BASE, ""),
        _method=table["method"].map(places),
    )
    order = order.sort_values([key for key in keys if key in order], kind="stable")
    return order.drop(columns=["_train", "_method"]).reset_index(drop=True)
