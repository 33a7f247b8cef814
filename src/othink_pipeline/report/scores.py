"""Sections of the report that say how good each method is, by itself."""

from __future__ import annotations

import numpy as np
import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.estimators import majority_at_k, mean_score, pass_at_k
from othink_pipeline.report.matrix import HOLE, RATES, by_base_model, tested
from othink_pipeline.report.resampling import Estimate, Floats
from othink_pipeline.report.tables import mean_percent, percent, table

KEYS = ["train_task", "method", "eval_task"]
MOST_FORMS = 10
"""A table has no more columns than this."""


def matrix_section(matrix: pd.DataFrame, predictions: pd.DataFrame) -> str:
    """Accuracy of every method on every task."""
    tasks = sorted(matrix["eval_task"].unique())
    answers = dict(iter(predictions.groupby(KEYS)))
    rows = []
    for (train_task, method), group in matrix.groupby(["train_task", "method"], sort=False):
        scores = []
        for task in tasks:
            of_task = answers.get((train_task, method, task), predictions[:0])
            text = accuracy_text(group[group["eval_task"] == task], of_task)
            scores.append(f"**{text}**" if task == train_task and text != HOLE else text)
        there = tested(group)
        seeds = _bases(there) if method == BASE else there["seed"].nunique()
        rows.append([train_task, method, seeds, *scores])
    note = (
        "Accuracy of the tagged answer, % [95 % interval]: Wilson's for one training, bootstrapped"
        " over base models, seeds and items for several. **Bold**: tested on the task that it was"
        " trained on."
    )
    if "image_of" in predictions:
        note += " **All questions were asked about another example's picture.**"
    header = ["trained on", "method", "seeds", *(f"→ {task}" for task in tasks)]
    return table(header, rows) + f"\n\n{note}"


def means_section(matrix: pd.DataFrame) -> str:
    """Same-task and cross-task means."""
    rows = []
    for method in matrix["method"].unique():
        cells = tested(matrix[matrix["method"] == method])
        is_same = cells["train_task"] == cells["eval_task"]
        groups = (cells, cells) if method == BASE else (cells[is_same], cells[~is_same])
        means = [f"{mean_percent(by_base_model(group))} ({len(group)})" for group in groups]
        rows.append([method, *means])
    note = (
        "Means over cells (how many), in which base models count alike. The base model is trained"
        " on no task: its mean over all eval tasks. Methods with holes elsewhere are better"
        " compared in the paired tests."
    )
    return table(["method", "same-task % (cells)", "cross-task % (cells)"], rows) + f"\n\n{note}"


def rates_section(matrix: pd.DataFrame) -> str:
    """Format, thinking and what does not parse, apart from accuracy."""
    by_base = tested(matrix).groupby([*KEYS, "base_model"], sort=False)
    means = by_base[[*RATES, "completion_tokens_mean"]].mean().groupby(KEYS, sort=False).mean()
    rows = [
        [*key, *(f"{100 * value:.1f}" for value in values[:-1]), f"{values[-1]:.1f}"]
        for key, values in zip(means.index, means.to_numpy(), strict=True)
    ]
    header = ["trained on", "method", "tested on", "accuracy", "accuracy, tags or not"]
    header += ["format", "think", "unparseable", "tokens per completion"]
    note = (
        "In %, means over base models and seeds. Accuracy counts the tagged answer alone; where the"
        " second column is higher, the answer was there and the format was not. `format`: a think"
        " block, empty or not, then an answer block; `think`: a think block that is not empty."
    )
    return table(header, rows) + f"\n\n{note}"


def form_accuracy(predictions: pd.DataFrame, task: str) -> pd.DataFrame:
    """Accuracy in [0, 1] by form of question; empty where the task has no two forms.

    Returns:
        Rows (train_task, method) in the order of ``predictions``, columns ``form (items)`` of the
        ``MOST_FORMS`` that have most items, these first; NaN where there is no answer.
    """
    answers = predictions[predictions["eval_task"] == task]
    items = answers.groupby("form")["example_id"].nunique().sort_values(ascending=False)
    if len(items) < 2:
        return pd.DataFrame()
    forms = items.index[:MOST_FORMS]
    models = pd.MultiIndex.from_frame(answers[["train_task", "method"]].drop_duplicates())
    keys = ["train_task", "method", "form"]
    by_base = answers.groupby([*keys, "base_model"])["correct"].mean()
    by_form = by_base.groupby(keys).mean().unstack("form").reindex(index=models, columns=forms)
    return by_form.set_axis([f"{form} ({items[form]})" for form in forms], axis=1)


def forms_section(predictions: pd.DataFrame) -> str:
    """Accuracy by form of question, a table a task; empty where no task has forms."""
    parts = []
    for task in sorted(predictions["eval_task"].unique()):
        accuracy = form_accuracy(predictions, task)
        rows = [
            [*key, *(HOLE if np.isnan(share) else f"{100 * share:.1f}" for share in shares)]
            for key, shares in zip(accuracy.index, accuracy.to_numpy(), strict=True)
        ]
        if rows:
            header = ["trained on", "method", *accuracy.columns]
            parts.append(f"Tested on {task}:\n\n{table(header, rows)}")
    note = (
        "Accuracy in %, means over base models and seeds; beside each form how many test items have"
        " it."
    )
    return "\n\n".join([*parts, note]) if parts else ""


def samples_section(predictions: pd.DataFrame) -> str:
    """pass@k and majority@k; empty where nothing was sampled."""
    if "sampled_correct" not in predictions:
        return ""
    sampled = predictions.dropna(subset="sampled_correct")
    if sampled.empty:
        return ""
    n = len(sampled["sampled_correct"].iloc[0])
    sizes = sorted({k for k in (1, 2, 4, 8) if k < n} | {n})
    right = np.stack(sampled["sampled_correct"].tolist())  # [rows x n]
    said = [list(answers) for answers in sampled["sampled_answers"]]
    scores = {f"pass@{k}": pass_at_k(n, right.sum(axis=1), k) for k in sizes}
    scores |= {f"majority@{k}": majority_at_k(said, right, k) for k in sizes if k > 2}
    sampled = sampled.assign(**scores)
    rows = []
    for key, group in sampled.groupby(KEYS, sort=False):
        texts = [
            percent(_estimate(group, name))
            if name.endswith(f"@{n}")
            else mean_percent(by_base_model(group, name))
            for name in scores
        ]
        rows.append([*key, mean_percent(by_base_model(group, "correct")), *texts])
    note = (
        f"In %, from {n} samples of each answer, means over base models and seeds; the most samples"
        " with their 95 % interval. pass@k: chance that at least one of k samples is right"
        " (unbiased, arXiv 2107.03374). majority@k: chance that the most frequent answer of k"
        " samples is; what does not parse has no vote. Where only pass@1 rises and pass@k does not,"
        " training made right answers likelier that the model could already find. `greedy`: the"
        " accuracy above."
    )
    return table(["trained on", "method", "tested on", "greedy", *scores], rows) + f"\n\n{note}"


def _bases(group: pd.DataFrame) -> str:
    count = group["base_model"].nunique()
    return HOLE if count == 1 else f"{count} base models"


def accuracy_text(cells: pd.DataFrame, answers: pd.DataFrame) -> str:
    """Accuracy of one (train task, method, eval task), or a hole.

    Args:
        cells: the matrix's row for each training.
        answers: their predictions.
    """
    cells = tested(cells)
    if cells.empty:
        return HOLE
    if len(cells) == 1:
        accuracy, low, high = cells[["accuracy", "ci_low", "ci_high"]].to_numpy()[0]
        return percent(Estimate(accuracy, low, high))
    return percent(_estimate(answers, "correct"))


def _estimate(answers: pd.DataFrame, column: str) -> Estimate:
    """Mean of a column of one (train task, method, eval task); base models count as seeds."""
    unit = "base_model" if answers["seed"].isna().all() else "seed"
    by_unit = answers.pivot(index=unit, columns="example_id", values=column)
    values: Floats = by_unit.to_numpy(dtype=np.float64)  # [seeds x items]
    bases = answers.groupby(unit)["base_model"].first() if unit == "seed" else None
    return mean_score(values, clusters=bases)
