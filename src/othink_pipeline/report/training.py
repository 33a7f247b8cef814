"""Sections of the report about the trainings: what failed, was the reward gamed, the costs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pandas as pd

from othink_pipeline.report.comparison import base_models, by_seed
from othink_pipeline.report.differences import Entry
from othink_pipeline.report.estimators import difference
from othink_pipeline.report.matrix import HOLE
from othink_pipeline.report.resampling import Estimate, Floats, resample
from othink_pipeline.report.tables import UNKNOWN, number, signed, table

REWARD_RISE = 0.1
BARE_ANSWERS = "answer"
"""The target of supervised training that has no worked steps."""
COSTS = (
    *("updates", "prompts", "completion_tokens", "seconds", "learning_rate"),
    *("weights_changed", "kl_weight_mean", "kl_weight_end", "kl_last", "kl_pull"),
)
MEASURED = ("seconds", "weights_changed", *COSTS[-4:])
"""Costs of which two digits say all there is to say."""


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
    """What each cell cost, and how hard its KL term pulled."""
    if training.empty:
        return "Nothing was trained."
    columns = [column for column in COSTS if column in training]
    keys = ["train_task", "method", "seed"]
    rounded = training[[*keys, *columns]].copy()
    for column in set(MEASURED) & set(columns):
        rounded[column] = rounded[column].map(lambda value: float(f"{value:.2g}"))
    rows = [[number(value) for value in row] for row in rounded.to_numpy()]
    text = table(["trained on", "method", "seed", *columns], rows)
    text += (
        "\n\n`completion_tokens`: those that the loss was taken over. Times on a machine that does"
        " other things, too, are no comparison: look at the tokens. `weights_changed`: the norm of"
        " the weights' change over theirs; far below the others', training has hardly moved them."
    )
    if "kl_pull" not in columns or training["kl_pull"].isna().all():
        return text
    return (
        f"{text}\n\n`kl_last` is the mean KL to the reference in the last quarter of the updates,"
        " `kl_pull` KL weight × √(2 KL), averaged over all: about the size of the KL term's"
        " gradient of a token, where an advantage's is the advantage, about 1; the largest cell's"
        f" here is {training['kl_pull'].max():.2g}. A small one still adds up over updates: what"
        " methods that differ in it alone come to, seeds have to say."
    )


def kl_pull(weight: pd.Series[float], kl: pd.Series[float]) -> pd.Series[float]:
    """The size of the KL term's gradient, beside advantages of about 1.

    In units of ∇ log policy of a token it is weight · d, with d = log reference - log policy, where
    an advantage's is the advantage itself. The KL is about the mean of d² / 2, so √(2 KL) is d's
    root mean square: of first order where the term's value, weight · KL, is of second.

    Args:
        weight: applied, of each update.
        kl: measured, of the same updates, in nats a token.
    """
    return weight * (2 * kl.clip(lower=0)) ** 0.5


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
    seeds = sorted(pairs["seed"].unique())
    gains = {s: _gain(ours[[n]], theirs[[n]]) for n, s in enumerate(seeds)}
    risen = cells.loc[cells["reward_last"] - cells["reward_first"] > REWARD_RISE, "seed"]
    flagged = [
        str(seed) if seed in gains else f"{seed}{UNKNOWN}"  # not tested: nobody knows
        for seed in risen
        if seed not in gains or gains[seed].low <= 0
    ]
    return signed(_gain(ours, theirs, base_models(pairs))), ", ".join(flagged) or "none"


def _gain(ours: Floats, theirs: Floats, bases: list[int] | None = None) -> Estimate:
    return resample([ours, theirs], clusters=bases).estimate(difference)


def settings_section(training: pd.DataFrame) -> str:
    """The parameters that are not the same for all cells; empty where none were recorded."""
    if "settings" not in training:
        return ""
    cells = training.drop_duplicates(["train_task", "method"])
    flat = [pd.json_normalize(json.loads(text)).to_dict("records")[0] for text in cells["settings"]]
    settings = pd.DataFrame(flat, dtype=object)  # numbers beside holes stay whole
    shown = settings.map(lambda value: HOLE if value is None or value != value else str(value))
    differing = [name for name in shown.columns if shown[name].nunique() > 1]
    if not differing:
        return "All cells were trained with the same parameters."
    header = ["parameter"]
    header += [f"{row.method} on {row.train_task}" for row in cells.itertuples()]
    rows = [[f"`{name}`", *shown[name]] for name in differing]
    note = ""
    if "target" in settings and (settings["target"] == BARE_ANSWERS).any():
        note = (
            "\n\n`target: answer` is supervised training towards the bare `<answer> n </answer>`,"
            " without a think block. Its loss is the mean of −log p over the few tokens of that"
            " target: a model that opens every answer with `<think>` gives an opening `<answer>`"
            " next to no probability, so it starts high, whether the answer is known or not."
        )
    return table(header, rows) + note
