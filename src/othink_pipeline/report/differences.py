"""Sections of the report that hold methods against each other and against their base models."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence

import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.comparison import Difference, base_models, by_seed, compare, pair
from othink_pipeline.report.estimators import difference_where, split_gain
from othink_pipeline.report.matrix import HOLE
from othink_pipeline.report.parameters import KnownMethods
from othink_pipeline.report.resampling import Estimate
from othink_pipeline.report.significance import first_t
from othink_pipeline.report.tables import mean_percent, p_text, signed, table
from othink_pipeline.report.verdict import conclusion

POSITIVE_CONTROL_POINTS = 5.0

Entry = tuple[Hashable, ...]
"""(train task, method, eval task), as pandas names a group."""


def pairs_with_base(predictions: pd.DataFrame) -> dict[Entry, pd.DataFrame]:
    """All answers of each method on each task beside its base models', in the rows' order."""
    verdicts = ["correct", "unparseable", "thought"]
    found: dict[Entry, pd.DataFrame] = {}
    cells = predictions[["train_task", "method"]].drop_duplicates()
    for train_task, method in cells[cells["method"] != BASE].to_numpy():
        pairs = pair(predictions, method, BASE, train_task=train_task, verdicts=verdicts)
        for eval_task, group in pairs.groupby("eval_task"):
            found[train_task, method, eval_task] = group
    return found


def tests_section(differences: Sequence[Difference]) -> str:
    """Every pair of methods with its intervals and tests."""
    rows = [
        [
            f"{told.method} minus {told.baseline}",
            f"{told.scope}-task",
            told.cells,
            told.pairs,
            signed(Estimate(told.points, told.items_low, told.items_high), 1),
            _over_seeds(told, told.widest),
            p_text(told.p_items),
            p_text(math.nan if told.unit == "items" else told.p),
            p_text(told.p_holm),
            HOLE if told.baseline == BASE else p_text(told.p_equivalent),
            HOLE if told.baseline == BASE else p_text(told.p_equivalent_holm),
            conclusion(told),
        ]
        for told in differences
    ]
    if not rows:
        return "No two methods share a cell."
    header = ["difference", "scope", "cells", "pairs", "points [95 % over items]"]
    header += ["points [95 % over seeds and items]", "p over items", "p over seeds"]
    header += ["p after Holm", "p of equivalence", "the same after Holm", "conclusion"]
    note = (
        "Paired by test example, on the cells that both methods have, of the seeds that have all of"
        " these; against the base model each cell is paired with the one that it started from. `?`:"
        " unknown. `p over items` asks whether other test items would tell, **of these very"
        " trainings**: of one seed it says nothing about the next. It is McNemar's exact test where"
        " one pair of models was tested on one task; else the test, by the normal distribution, of"
        " the difference as it is weighted here, each item once."
        " `p over seeds` is a paired t-test on these test items whose units are the seeds, or the"
        " base models where there are several. `p after Holm`: of the same unit, adjusted within"
        f" two families ({told_tests(differences)}). `p of equivalence`, between methods: two"
        " one-sided t-tests on"
        " the units of `p over seeds`, whether the difference is within"
        f" {differences[0].margin:g} points either way, a margin that was set beforehand; after"
        f" Holm: of {_known(told.p_equivalent for told in differences)} such tests. A conclusion"
        " wants the interval to agree with its test; **undecided** is neither a difference nor its"
        " absence."
    )
    return table(header, rows) + f"\n\n{note}"


def _over_seeds(told: Difference, widest: Estimate) -> str:
    """A widest interval, where it is one over seeds."""
    return signed(Estimate(math.nan) if told.unit == "items" else widest, 1)


def told_tests(differences: Sequence[Difference]) -> str:
    """How many tests Holm's correction is for, and what t the first of them has to pass."""
    texts = []
    for family, is_it in (("between methods", False), ("against the base model", True)):
        told = [each for each in differences if (each.baseline == BASE) == is_it]
        tests = _known(each.p for each in told)
        units = max((each.units for each in told), default=0)
        needed = ""
        if tests and units > 1:
            needed = f", over {units} units: a difference needs t > {first_t(tests, units):.3g}"
        texts.append(f"{tests} {family}{needed}")
    return "; ".join(texts)


def _known(p_values: Iterable[float]) -> int:
    return sum(map(math.isfinite, p_values))


def directions_section(predictions: pd.DataFrame, differences: Sequence[Difference]) -> str:
    """The pairs of methods again, of each task that was trained on apart; "" where it is one.

    Args:
        predictions: as for :func:`compare`.
        differences: all of a report.
    """
    tasks = sorted(predictions.loc[predictions["method"] != BASE, "train_task"].unique())
    rows = []
    for whole in differences:
        asked = whole.method, whole.baseline, whole.scope
        for task in tasks if whole.baseline != BASE else ():
            part = compare(predictions, *asked, train_task=task, margin=whole.margin)
            if part is not None:
                difference = f"{whole.method} minus {whole.baseline}"
                figures = [signed(part.widest, 1), p_text(part.p), p_text(part.p_equivalent)]
                rows.append([difference, task, f"{whole.scope}-task", part.seeds, *figures])
    if len(tasks) < 2 or not rows:
        return ""
    header = ["difference", "trained on", "scope", "seeds", "points [95 %]", "p"]
    header += ["p of equivalence"]
    note = (
        "A mean over directions can hide two that go apart. Interval, p and p of equivalence as"
        " above, over seeds where there are two and over items else, but **not adjusted**: these"
        " rows say where to look, and the table above is what was asked."
    )
    return table(header, rows) + f"\n\n{note}"


def relative_section(differences: Sequence[Difference]) -> str:
    """Relative improvement of one trained method over another."""
    rows = []
    for told in differences:
        if told.baseline != BASE:
            over_items = told.relative_items_low, told.relative_items_high
            figures = [signed(Estimate(told.relative, *over_items), 1)]
            figures += [_over_seeds(told, told.widest_relative)]
            rows.append([told.method, told.baseline, f"{told.scope}-task", *figures])
    if not rows:
        return "Needs two trained methods on a common cell: not in this run."
    header = ["method", "over", "scope", "% [95 % over items]"]
    header += ["% [95 % over seeds and items]"]
    note = "100 · (method / baseline - 1), of means over the tasks."
    return table(header, rows) + f"\n\n{note}"


def controls_section(predictions: pd.DataFrame, known: KnownMethods) -> str:
    """Did training work at all, and what does rewarding the format alone do?"""
    gains: list[str] = []
    passed: dict[str, bool] = {}  # by task, for the tasks that have a control
    tasks = sorted(set(predictions["train_task"]) & set(predictions["eval_task"]))
    for task in tasks:
        for method in known.positive_controls:
            control = compare(predictions, method, BASE, "same", "correct_any", task)
            if control is not None:
                gains.append(f"{task}: {method} {signed(control.widest, 1)}")
                is_enough = control.points >= POSITIVE_CONTROL_POINTS and control.low > 0
                passed[task] = passed.get(task, False) or is_enough
    controls = " or ".join(map(known.label, known.positive_controls))
    demand = (
        f"on its own task {controls} gains at least {POSITIVE_CONTROL_POINTS:g} points of"
        " accuracy with or without tags over the base, interval above zero"
    )
    verdict = "not in this run"
    if passed:
        missed = ", ".join(task for task, is_met in passed.items() if not is_met)
        verdict = f"**not met** on {missed}" if missed else f"**met** on {', '.join(passed)}"
    lines = [f"- Positive control ({demand}): {verdict}."] if controls else []
    lines += [f"  - {gain} points" for gain in gains]
    if known.format_control in set(predictions["method"]):
        lines.append(
            f"- Negative control: `{known.format_control}` is rewarded for the format alone."
            " Whatever part of another method's gain over the base it reproduces is format, not"
            " reasoning."
        )
    return "\n".join(lines)


def gains_section(against_base: Mapping[Entry, pd.DataFrame]) -> str:
    """What each method gained or forgot on each task, split into format and ability."""
    rows = []
    for (train_task, method, eval_task), pairs in against_base.items():
        right, base_right = by_seed(pairs, "correct_a", "correct_b")
        parsed, base_parsed = 1 - by_seed(pairs, "unparseable_a", "unparseable_b")
        bases = base_models(pairs)
        split = split_gain(right, parsed, base_right, base_parsed, bases)
        scope = "same-task" if train_task == eval_task else "cross-task"
        seeds = pairs["seed"].nunique()
        rows.append([train_task, method, eval_task, scope, seeds, *(signed(p) for p in split)])
    header = ["trained on", "method", "tested on", "scope", "seeds", "points over the base model"]
    note = (
        "In points [95 % over base models, seeds and items; **one seed: over items only**, the"
        " variation between seeds being unknown]. Below zero across tasks: forgetting. Accuracy is"
        " P(parses) · P(right | parses); `format` is what the first factor's change brings,"
        " `ability` the second's, each at the mean of the other factor, and they sum to the gain."
        " `?`: one side never parses, or in some resamples does not."
    )
    header += ["of it format", "of it ability"]
    if not rows:
        return "Needs trained cells and their base model: not in this run."
    return f"{table(header, rows)}\n\n{note}"


def thinking_section(predictions: pd.DataFrame, against_base: Mapping[Entry, pd.DataFrame]) -> str:
    """Accuracy with and without thinking, beside the base model's on the same items."""
    rows = []
    for key, group in predictions.groupby(["train_task", "method", "eval_task"], sort=False):
        correct, thought = group["correct"].astype(float), group["thought"].astype(bool)
        halves = [
            f"{mean_percent(h)} (n = {len(h)})" for h in (correct[thought], correct[~thought])
        ]
        bases, gain = [HOLE, HOLE], HOLE
        if key in against_base:
            bases, gain = _thinking_control(against_base[key])
        rows.append([*key, halves[0], bases[0], halves[1], bases[1], gain])
    header = ["trained on", "method", "tested on", "accuracy if it thought", "its base's there"]
    header += ["accuracy if not", "its base's then", "points where it alone thought"]
    note = (
        "In %. The model chose when to think, so that the halves hold different items: its base"
        " model's accuracy on the same items says how hard they are. The last column is its gain on"
        " the items on which it thought and its base model did not [95 %, as in the table of"
        " gains]: what training changed there, thinking being only a part of it."
    )
    return table(header, rows) + f"\n\n{note}"


def _thinking_control(pairs: pd.DataFrame) -> tuple[list[str], str]:
    """The base models' accuracy where the method thought, where not; the gain where it alone did.

    ``pairs``: as in :func:`pairs_with_base`.
    """
    thought = pairs["thought_a"] == 1
    bases = [mean_percent(pairs.loc[half, "correct_b"]) for half in (thought, ~thought)]
    ours, theirs, it_thought, base_thought = by_seed(
        pairs, "correct_a", "correct_b", "thought_a", "thought_b"
    )
    alone = it_thought > base_thought
    if not alone.any():
        return bases, HOLE
    gain = difference_where(ours, theirs, alone, base_models(pairs))
    return bases, f"{signed(gain)} (n = {alone.sum()})"
