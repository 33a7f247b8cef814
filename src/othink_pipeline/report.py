"""The report in Markdown, from the transfer matrix and the predictions behind it.

Differences in points come first; relative figures, which grow large over a weak baseline, second.
What is not in the run is left out or shown as a hole (—); what cannot be known as a question mark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from othink_pipeline.comparison import BOOTSTRAP_SEED, SCOPES, Comparison, Scope, compare
from othink_pipeline.matrix import BASE, HOLE, RATES, sort_methods, sort_rows
from othink_pipeline.statistics import Estimate, hierarchical_difference, holm

UNKNOWN = "?"
POSITIVE_CONTROLS = ("sft_cot", "grpo")
POSITIVE_CONTROL_POINTS = 5.0
# OThink-MR1 (arXiv 2503.16081), Qwen2-VL-2B-Instruct: GRPO-D over a baseline, relative, in %.
PAPER_IMPROVEMENT: dict[tuple[str, Scope], float] = {
    ("sft", "same"): 5.72,
    ("grpo", "same"): 13.59,
    ("sft", "cross"): 61.63,
}
COSTS = ("updates", "prompts", "completion_tokens", "seconds", "learning_rate", "kl_term")


def report_markdown(
    matrix: pd.DataFrame,
    predictions: pd.DataFrame,
    training: pd.DataFrame,
    lineage: Mapping[str, str] | None = None,
) -> str:
    """The whole report.

    Args:
        matrix: as from :func:`transfer_matrix`.
        predictions: what the matrix was made from.
        training: one row for each cell: task, method, seed and what it cost.
        lineage: what to print in the header, such as the parent run, commit and command.
    """
    methods = [method for method in sort_methods(predictions["method"]) if method != BASE]
    pairs = [("grpo_d", "sft"), ("grpo_d", "grpo"), *((method, BASE) for method in methods)]
    comparisons = [
        comparison
        for method, baseline in pairs
        for scope in SCOPES
        if (comparison := compare(predictions, method, baseline, scope)) is not None
    ]
    sections = [
        "# Transfer matrix report",
        "\n".join(f"- {key}: {value}" for key, value in (lineage or {}).items()),
        "## Accuracy",
        _matrix_section(matrix, predictions),
        "## Means",
        _means_section(matrix),
        "## Differences, in points",
        _differences_section(comparisons),
        "## Relative improvement of GRPO-D",
        _relative_section(comparisons),
        "## Controls",
        _controls_section(predictions),
        "## Format and ability",
        _format_section(matrix),
        "## Does thinking help?",
        _thinking_section(predictions),
        "## Costs",
        _costs_section(training),
        "## What this does and does not say",
        _limits(matrix),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _matrix_section(matrix: pd.DataFrame, predictions: pd.DataFrame) -> str:
    tasks = sorted(matrix["eval_task"].unique())
    answers = dict(iter(predictions.groupby(["train_task", "method", "eval_task"])))
    rows = []
    for (train_task, method), group in matrix.groupby(["train_task", "method"], sort=False):
        scores = []
        for task in tasks:
            cells, text = group[group["eval_task"] == task], HOLE
            if not cells.empty:
                text = _accuracy_text(cells, answers[train_task, method, task])
            scores.append(f"**{text}**" if task == train_task and text != HOLE else text)
        seeds = HOLE if method == BASE else group["seed"].nunique()
        rows.append([train_task, method, seeds, *scores])
    note = (
        "Accuracy of the tagged answer, % [95 % interval]: Wilson's for one seed, bootstrapped over"
        " seeds and items for several. **Bold**: tested on the task that it was trained on."
    )
    header = ["trained on", "method", "seeds", *(f"→ {task}" for task in tasks)]
    return _table(header, rows) + f"\n\n{note}"


def _accuracy_text(cells: pd.DataFrame, answers: pd.DataFrame) -> str:
    """Accuracy of one (train task, method, eval task): a row of ``cells`` for each seed."""
    if len(cells) == 1:
        accuracy, low, high = cells[["accuracy", "ci_low", "ci_high"]].to_numpy()[0]
        return _percent(Estimate(accuracy, low, high))
    by_seed = answers.pivot(index="seed", columns="example_id", values="correct")
    correct = by_seed.to_numpy(dtype=np.float64)  # [seeds x items]
    zeros = np.zeros_like(correct)
    return _percent(hierarchical_difference(correct, zeros, BOOTSTRAP_SEED))


def _means_section(matrix: pd.DataFrame) -> str:
    rows = []
    for method in sort_methods(matrix["method"]):
        cells = matrix[matrix["method"] == method]
        is_same = cells["train_task"] == cells["eval_task"]
        groups = (cells, cells) if method == BASE else (cells[is_same], cells[~is_same])
        means = [f"{_mean_percent(group['accuracy'])} ({len(group)})" for group in groups]
        rows.append([method, *means])
    note = (
        "Means over cells (how many). The base model is trained on no task: its mean over all eval"
        " tasks. Methods with holes elsewhere are better compared in the next table."
    )
    return _table(["method", "same-task % (cells)", "cross-task % (cells)"], rows) + f"\n\n{note}"


def _differences_section(comparisons: Sequence[Comparison]) -> str:
    adjusted = holm([comparison.p for comparison in comparisons])
    rows = [
        [
            f"{comparison.method} minus {comparison.baseline}",
            f"{comparison.scope}-task",
            comparison.cells,
            comparison.pairs,
            _signed(comparison.over_items, 100),
            _interval(comparison.over_seeds, 100),
            _p_text(comparison.p),
            _p_text(p_holm),
        ]
        for comparison, p_holm in zip(comparisons, adjusted, strict=True)
    ]
    header = ["difference", "scope", "cells", "pairs", "points [95 % over items]"]
    header += ["[95 % over seeds and items]", "McNemar p", "Holm p"]
    note = (
        "Paired by test example, on the cells that both methods have. `?`: unknown (fewer than 2"
        " complete seeds; no p-value where an item stands in several cells, because McNemar's test"
        f" wants independent pairs). Holm adjusts for the {len(rows)} tests here."
    )
    return (_table(header, rows) + f"\n\n{note}") if rows else "No two methods share a cell."


def _relative_section(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for comparison in comparisons:
        if comparison.method == "grpo_d" and comparison.baseline != BASE:
            paper = PAPER_IMPROVEMENT.get((comparison.baseline, comparison.scope))
            ours = _signed(comparison.relative, 1)
            theirs = HOLE if paper is None else f"{paper:+.2f}"
            rows.append([comparison.baseline, f"{comparison.scope}-task", ours, theirs])
    if not rows:
        return "Needs `grpo_d` and `sft` or `grpo` on a common cell: not in this run."
    header = ["over", "scope", "here, % [95 % over items]", "paper, % (another model)"]
    note = (
        "100 · (GRPO-D / baseline - 1). The paper's column is **another model's**:"
        " Qwen2-VL-2B-Instruct on CLEVR/SuperCLEVR and GEOQA (arXiv 2503.16081), without intervals."
    )
    return _table(header, rows) + f"\n\n{note}"


def _controls_section(predictions: pd.DataFrame) -> str:
    gains: list[str] = []
    passed: dict[str, bool] = {}  # by task, for the tasks that have a control
    tasks = sorted(set(predictions["train_task"]) & set(predictions["eval_task"]))
    for task in tasks:
        for method in POSITIVE_CONTROLS:
            control = compare(predictions, method, BASE, "same", "correct_any", task)
            if control is not None:
                gain = control.over_items
                gains.append(f"{task}: {method} {_signed(gain, 100)}")
                is_enough = 100 * gain.value >= POSITIVE_CONTROL_POINTS and gain.low > 0
                passed[task] = passed.get(task, False) or is_enough
    demand = (
        f"on its own task SFT-CoT or GRPO gains at least {POSITIVE_CONTROL_POINTS:g} points of"
        " accuracy with or without tags over the base, interval above zero"
    )
    verdict = "not in this run"
    if passed:
        missed = ", ".join(task for task, is_met in passed.items() if not is_met)
        verdict = f"**not met** on {missed}" if missed else f"**met** on {', '.join(passed)}"
    lines = [f"- Positive control ({demand}): {verdict}."]
    lines += [f"  - {gain} points" for gain in gains]
    if "grpo_format" in set(predictions["method"]):
        lines.append(
            "- Negative control: `grpo_format` is rewarded for the format alone. Whatever part of"
            " another method's gain over the base it reproduces is format, not reasoning."
        )
    return "\n".join(lines)


def _format_section(matrix: pd.DataFrame) -> str:
    keys = ["train_task", "method", "eval_task"]
    means = matrix.groupby(keys, sort=False)[[*RATES, "completion_tokens_mean"]].mean()
    rows = [
        [*key, *(f"{100 * value:.1f}" for value in values[:-1]), f"{values[-1]:.1f}"]
        for key, values in zip(means.index, means.to_numpy(), strict=True)
    ]
    header = ["trained on", "method", "tested on", "accuracy", "accuracy, tags or not"]
    header += ["format", "think", "unparseable", "tokens per completion"]
    note = (
        "In %, means over seeds. Accuracy counts the tagged answer alone; where the second column"
        " is higher, the answer was there and the format was not."
    )
    return _table(header, rows) + f"\n\n{note}"


def _thinking_section(predictions: pd.DataFrame) -> str:
    rows = []
    ordered = sort_rows(predictions)
    for key, group in ordered.groupby(["train_task", "method", "eval_task"], sort=False):
        correct, thought = group["correct"].astype(float), group["thought"].astype(bool)
        halves = (correct[thought], correct[~thought])
        rows.append([*key, *(f"{_mean_percent(half)} (n = {len(half)})" for half in halves)])
    header = ["trained on", "method", "tested on", "accuracy if it thought", "if not"]
    note = (
        "In %. The model chose when to think: harder items may be the ones that it thought about,"
        " so the two columns are no experiment."
    )
    return _table(header, rows) + f"\n\n{note}"


def _costs_section(training: pd.DataFrame) -> str:
    if training.empty:
        return "Nothing was trained."
    columns = [column for column in COSTS if column in training]
    cells = training.rename(columns={"task": "train_task"})
    cells = sort_rows(cells.assign(eval_task=""))
    keys = ["train_task", "method", "seed"]
    rows = [[_cost(value) for value in row] for row in cells[[*keys, *columns]].to_numpy()]
    table = _table(["trained on", "method", "seed", *columns], rows)
    if "kl_term" not in columns or cells["kl_term"].isna().all():
        return table
    largest = cells["kl_term"].max()
    return (
        f"{table}\n\n`kl_term` is KL weight x KL, averaged over the updates: at most {largest:.2g}"
        " here, against advantages of about 1. Where it is hundreds of times smaller, the KL term"
        " hardly acts, and methods that differ in it alone can only differ by chance."
    )


def _limits(matrix: pd.DataFrame) -> str:
    seeds = matrix["seed"].nunique()
    if seeds > 1:
        spread = (
            f"There are {seeds} training seeds: the intervals over seeds rest on no more than these"
            " and a bootstrap of so few tends to be too narrow"
        )
    else:
        spread = (
            f"There is {'one' if seeds else 'no'} training seed: **the variation between seeds is"
            " unknown**, and the intervals cover the choice of test items only"
        )
    return (
        f"{spread}. An interval that includes zero says that this run cannot tell, not that the"
        " methods are equal. One base model, one budget and one learning rate for each method stand"
        " behind each row. The paper's figures are for Qwen2-VL-2B-Instruct on real data sets. The"
        " model that this project ships is a mini Qwen2-VL of about a million parameters on drawn"
        " tasks: with it, nothing here confirms or refutes the paper's figures."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(text) for text in line) + " |" for line in lines)


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _mean_percent(values: pd.Series[float]) -> str:
    return HOLE if values.empty else f"{100 * values.mean():.1f}"


def _signed(estimate: Estimate, scale: float) -> str:
    """``+1.2 [+0.1, +2.3]``, or a question mark for what is unknown."""
    value = UNKNOWN if math.isnan(estimate.value) else f"{scale * estimate.value:+.1f}"
    return f"{value} {_interval(estimate, scale)}"


def _interval(estimate: Estimate, scale: float) -> str:
    if math.isnan(estimate.low):
        return f"[{UNKNOWN}]"
    return f"[{scale * estimate.low:+.1f}, {scale * estimate.high:+.1f}]"


def _p_text(p: float) -> str:
    if math.isnan(p):
        return UNKNOWN
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _cost(value: Any) -> str:
    if pd.isna(value):
        return HOLE
    if isinstance(value, float):
        return f"{value:,.6g}"
    return value if isinstance(value, str) else f"{value:,}"
