"""Sections of the report about the trainings: what failed, was the reward gamed, the costs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from othink_pipeline.report.comparison import BOOTSTRAP_SEED, base_models, by_seed
from othink_pipeline.report.differences import Entry
from othink_pipeline.report.estimators import mean_score
from othink_pipeline.report.tables import UNKNOWN, number, signed, table

REWARD_RISE = 0.1
COSTS = (
    *("updates", "prompts", "completion_tokens", "seconds", "learning_rate"),
    *("kl_weight_mean", "kl_weight_end", "kl_last", "kl_term"),
)


def failures_section(failures: pd.DataFrame) -> str:
    """Cells that have no score, and why; empty where there are none."""
    if failures.empty:
        return ""
    rows = []
    keys = ["train_task", "method", "seed", "reason"]
    for (task, method, seed, reason), group in failures.groupby(keys, sort=False):
        missing = ", ".join(f"→ {eval_task}" for eval_task in group["eval_task"])
        rows.append([task, method, seed, missing, str(reason).replace("|", "\\|")])
    note = (
        "These are holes (—) in the tables below, and nothing is said about them. Once the cause is"
        " removed, the same command goes on where they stopped."
    )
    return table(["trained on", "method", "seed", "no score", "reason"], rows) + f"\n\n{note}"


def reward_section(training: pd.DataFrame, against_base: Mapping[Entry, pd.DataFrame]) -> str:
    """RL cells whose reward rose while their accuracy on test items did not."""
    rows = []
    if {"reward_first", "reward_last"} <= set(training):
        rewarded = training.dropna(subset=["reward_first", "reward_last"])
        for (task, method), group in rewarded.groupby(["train_task", "method"], sort=False):
            pairs = against_base.get((task, method, task))
            changes = [_change(group, "reward"), _change(group, "accuracy")]
            rows.append([task, method, len(group), *changes, *_gain_and_flags(group, pairs)])
    if not rows:
        return "Needs RL cells with their rewards: not in this run."
    header = ["trained on", "method", "seeds", "reward", "validation accuracy, %"]
    header += ["points over the base model", "flagged seeds"]
    note = (
        "On the own task. Reward: mean of the first → of the last quarter of the updates;"
        " validation accuracy: before the first → after the last update; means over seeds. Points:"
        " strict accuracy on test items [95 %, as in the table of gains]. A seed is flagged where"
        f" its reward rose by more than {REWARD_RISE:g} (a right answer earns its weight, 1 unless"
        " set otherwise) and the interval of its own points over items does not lie above zero:"
        " it may have learnt to please the reward rather than to be right."
    )
    return f"{table(header, rows)}\n\n{note}"


def costs_section(training: pd.DataFrame) -> str:
    """What each cell cost, and how much its KL term weighed."""
    if training.empty:
        return "Nothing was trained."
    columns = [column for column in COSTS if column in training]
    keys = ["train_task", "method", "seed"]
    rows = [[number(value) for value in row] for row in training[[*keys, *columns]].to_numpy()]
    text = table(["trained on", "method", "seed", *columns], rows)
    if "kl_term" not in columns or training["kl_term"].isna().all():
        return text
    largest = training["kl_term"].max()
    return (
        f"{text}\n\n`kl_last` is the mean KL to the base model in the last quarter of the updates,"
        f" `kl_term` KL weight x KL, averaged over all: at most {largest:.2g}"
        " here, against advantages of about 1. Where it is hundreds of times smaller, the KL term"
        " hardly acts, and methods that differ in it alone can only differ by chance."
    )


def _change(cells: pd.DataFrame, name: str) -> str:
    """``0.50 → 0.75``: means of ``<name>_first`` and ``<name>_last``; accuracy in %."""
    scale, form = (100, ".1f") if name == "accuracy" else (1, ".2f")
    if f"{name}_first" not in cells:
        return UNKNOWN
    means = [scale * float(cells[f"{name}_{end}"].mean()) for end in ("first", "last")]
    return " → ".join(UNKNOWN if math.isnan(mean) else f"{mean:{form}}" for mean in means)


def _gain_and_flags(cells: pd.DataFrame, pairs: pd.DataFrame | None) -> tuple[str, str]:
    """``pairs``: own-task test answers of the cells beside their base models', if there are any."""
    if pairs is None:
        return UNKNOWN, UNKNOWN
    ours, theirs = by_seed(pairs, "correct_a", "correct_b")  # [seeds x items] each
    gains = dict(zip(sorted(pairs["seed"].unique()), ours - theirs, strict=True))
    risen = cells.loc[cells["reward_last"] - cells["reward_first"] > REWARD_RISE, "seed"]
    flagged = [
        str(seed) if seed in gains else f"{seed}{UNKNOWN}"  # not tested: nobody knows
        for seed in risen
        if seed not in gains or mean_score(gains[seed][None], BOOTSTRAP_SEED).low <= 0
    ]
    total = mean_score(ours - theirs, BOOTSTRAP_SEED, base_models(pairs))
    return signed(total), ", ".join(flagged) or "none"
