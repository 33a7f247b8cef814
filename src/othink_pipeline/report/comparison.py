"""Compare two methods on the test examples that both answered (words as in ``matrix``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.estimators import RELATIVE, difference, improvement
from othink_pipeline.report.resampling import Estimate, Floats, resample, shares
from othink_pipeline.report.significance import (
    difference_p,
    equivalence_p,
    holm,
    mcnemar_p,
    weighted_items_p,
)

Scope = Literal["same", "cross"]
SCOPES: tuple[Scope, ...] = ("same", "cross")
Unit = Literal["base models", "seeds", "items"]
UNKNOWN = Estimate(math.nan)
CELL = ["train_task", "eval_task", "seed"]
ITEM = ["eval_task", "example_id"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Method against baseline on the cells that both have; estimates in [-1, 1], relative in %.

    Of the seeds that have all these cells: one that lacks a cell would mix tasks with seeds.
    Without such a seed nothing is known. A *unit* is as in ``resampling``.

    Attributes:
        method: minuend.
        baseline: subtrahend.
        scope: same-task or cross-task cells.
        directions: (train task, eval task) of the cells.
        seeds: number of training seeds.
        base_models: number of base models that these started from.
        pairs: number of paired predictions.
        discordant: of them, pairs of which one is right and one wrong.
        over_items: difference, interval over test items, the trainings being given.
        over_seeds: the same difference, interval over units and items; NaN with one seed.
        p_items: whether other test items would tell, of these very trainings: McNemar's exact test
            where there is one test set and one pair an item, else :func:`weighted_items_p`.
        units: difference of each unit, the items being given.
        relative: relative improvement, interval over items.
        relative_over_seeds: relative improvement, interval as that of ``over_seeds``.
    """

    method: str
    baseline: str
    scope: Scope
    directions: tuple[tuple[str, str], ...]
    seeds: int
    base_models: int
    pairs: int
    discordant: int
    over_items: Estimate
    over_seeds: Estimate
    p_items: float
    units: tuple[float, ...]
    relative: Estimate
    relative_over_seeds: Estimate

    @property
    def cells(self) -> int:
        """Number of (train task, seed, eval task) compared."""
        return self.seeds * len(self.directions)

    @property
    def unit(self) -> Unit:
        """What the widest interval and p are drawn over; items where no variation is known."""
        if self.base_models > 1:
            return "base models"
        return "seeds" if self.seeds > 1 else "items"

    @property
    def widest(self) -> Estimate:
        """The difference with the interval that covers most: over seeds where there are two."""
        return self.over_items if self.unit == "items" else self.over_seeds

    @property
    def widest_relative(self) -> Estimate:
        """The same of the relative improvement."""
        return self.relative if self.unit == "items" else self.relative_over_seeds

    @property
    def p_seeds(self) -> float:
        """Paired t-test over ``units``; NaN with one seed."""
        return difference_p(self.units)

    def p_equivalent(self, margin_points: float) -> float:
        """Test of a difference within the margin, over ``units``; NaN with one seed.

        NaN against the base model, too: the question is asked between methods.
        """
        return math.nan if self.baseline == BASE else equivalence_p(self.units, margin_points / 100)

    @property
    def p(self) -> float:
        """Of what the widest interval is over; NaN where there is no test of that."""
        return self.p_items if self.unit == "items" else self.p_seeds


def pair(
    predictions: pd.DataFrame,
    method: str,
    baseline: str,
    scope: Scope | None = None,
    train_task: str | None = None,
    verdicts: Sequence[str] = ("correct",),
) -> pd.DataFrame:
    """Every answer of ``method`` beside the baseline's to the same test example.

    Two methods are paired by train task, eval task and seed; a cell and the base model by the base
    model that the cell started from.

    Args:
        predictions: as for :func:`transfer_matrix`.
        method: its predictions decide the scope.
        baseline: what it is held against.
        scope: same-task or cross-task cells; None: both.
        train_task: only cells trained on this task; None: all.
        verdicts: boolean columns.

    Returns:
        A row for each pair: train_task, eval_task, seed, base_model (of the method's cell),
        example_id, item (number of the eval task's example), and for each verdict
        ``<verdict>_a`` (method) and ``<verdict>_b`` (baseline), in {0.0, 1.0}.
    """
    chosen = predictions["method"] == method
    if scope is not None:
        is_same = predictions["train_task"] == predictions["eval_task"]
        chosen &= is_same == (scope == "same")
    if train_task is not None:
        chosen &= predictions["train_task"] == train_task
    key = ["base_model", *ITEM] if baseline == BASE else [*CELL, "example_id"]
    columns = list(verdicts)
    ours = predictions.loc[chosen, [*CELL, "base_model", "example_id", *columns]]
    theirs = predictions.loc[predictions["method"] == baseline, [*key, *columns]]
    both = ours.merge(theirs, on=key, suffixes=("_a", "_b"), validate="many_to_one")
    both["item"] = both.groupby(ITEM).ngroup()
    return both.astype({f"{column}_{side}": float for column in columns for side in "ab"})


def by_seed(pairs: pd.DataFrame, *columns: str) -> Floats:
    """Columns of ``pair`` as [columns x seeds x items], in the order of seeds and of ``item``.

    An item that several train tasks were tested on has its mean over these.
    """
    wide = pairs.groupby(["seed", "item"])[list(columns)].mean().unstack("item")
    values: Floats = np.asarray(wide, dtype=np.float64)  # [S x K·N]
    items = values.shape[1] // len(columns)
    return values.reshape(len(wide), len(columns), items).transpose(1, 0, 2)


def base_models(pairs: pd.DataFrame) -> list[int]:
    """The base model of each seed of ``by_seed``."""
    return pairs.groupby("seed")["base_model"].first().astype(int).tolist()


def compare(
    predictions: pd.DataFrame,
    method: str,
    baseline: str,
    scope: Scope,
    verdict: str = "correct",
    train_task: str | None = None,
) -> Comparison | None:
    """Compare two methods, paired by test example; None if they share no cell in ``scope``.

    The difference is the mean over base models of the mean over their seeds, of the mean over eval
    tasks of the mean over items. Each cell stands against the base model that it started from.

    Args:
        predictions, method, baseline, scope, train_task: as of :func:`pair`.
        verdict: the boolean column compared.
    """
    pairs = pair(predictions, method, baseline, scope, train_task, [verdict])
    if pairs.empty:
        return None
    a, b = f"{verdict}_a", f"{verdict}_b"
    cells = pairs[CELL].drop_duplicates()
    directions = sorted(set(cells[CELL[:2]].itertuples(index=False, name=None)))
    per_seed = cells["seed"].value_counts()
    pairs = pairs[pairs["seed"].isin(per_seed.index[per_seed == len(directions)])]
    ours, theirs = by_seed(pairs, a, b)
    # Several train tasks may share an eval task: an item counts once, with its mean over cells.
    tasks = pairs.groupby("item")["eval_task"].first().to_numpy()
    bases = base_models(pairs)
    drawn = resample([ours, theirs], strata=tasks, clusters=bases)
    has_seeds = len(bases) > 1
    parts = shares(bases) @ (ours - theirs) * shares(tasks)
    is_plain = len(pairs) == len(parts) and len(set(tasks)) == 1
    return Comparison(
        method=method,
        baseline=baseline,
        scope=scope,
        directions=tuple(directions),
        seeds=len(bases),
        base_models=len(set(bases)),
        pairs=len(pairs),
        discordant=int((pairs[a] != pairs[b]).sum()),
        over_items=drawn.estimate_over_items(difference),
        over_seeds=drawn.estimate(difference) if has_seeds else UNKNOWN,
        p_items=mcnemar_p(parts) if is_plain else weighted_items_p(parts),
        units=tuple(difference(drawn.units).tolist()),
        relative=drawn.estimate_over_items(improvement),
        relative_over_seeds=drawn.estimate(improvement, RELATIVE) if has_seeds else UNKNOWN,
    )


def compare_all(
    predictions: pd.DataFrame, comparisons: Iterable[tuple[str, str]]
) -> list[Comparison]:
    """Each of the pairs, then each method with the base model, in both scopes where there are any.

    Args:
        predictions: in report order, as for :func:`transfer_matrix`.
        comparisons: (method, baseline) pairs.
    """
    with_base = [(method, BASE) for method in predictions["method"].unique() if method != BASE]
    return [
        comparison
        for method, baseline in dict.fromkeys([*comparisons, *with_base])
        for scope in SCOPES
        if (comparison := compare(predictions, method, baseline, scope)) is not None
    ]


class Difference(NamedTuple):
    """What is told of a comparison: its widest interval and its p-value, in one unit."""

    method: str
    baseline: str
    scope: Scope
    directions: str
    """``counting → geometry``, several with commas."""
    seeds: int
    base_models: int
    """That the seeds started from."""
    cells: int
    pairs: int
    discordant: int
    """Pairs of which one is right and one wrong."""
    points: float
    low: float
    """Of the 95 % interval, in points."""
    high: float
    unit: Unit
    """What the interval and p draw."""
    p: float
    p_holm: float
    """Adjusted: the pairs that were asked for are one family of tests, those with the base model
    another."""
    margin: float
    """Differences of fewer points do not matter."""
    p_equivalent: float
    """Of the test that the difference is within the margin; NaN with one seed, or against the base
    model."""
    p_equivalent_holm: float
    """Adjusted: these are a family of their own."""

    @property
    def units(self) -> int:
        """How many independent trainings there are."""
        return self.base_models if self.unit == "base models" else self.seeds

    @property
    def basis(self) -> str:
        """What stands behind the interval and p, in words."""
        if self.unit == "items":
            return "over items, one seed" if self.seeds else "no seed has all cells"
        if self.unit == "seeds":
            return f"over {self.seeds} seeds of one base model"
        return f"over {self.base_models} base models, {self.seeds} seeds"


def differences_table(comparisons: Sequence[Comparison], margin: float) -> pd.DataFrame:
    """The comparisons as a table: a column for each field of :class:`Difference`.

    Args:
        comparisons: all of a report.
        margin: in points, above 0.
    """
    p_values = np.array([each.p for each in comparisons], dtype=np.float64)
    against_base = np.array([each.baseline == BASE for each in comparisons], dtype=bool)
    p_holm = p_values.copy()
    for family in (against_base, ~against_base):
        p_holm[family] = holm(p_values[family])
    equivalent = [each.p_equivalent(margin) for each in comparisons]
    equivalent_holm = holm(equivalent)
    rows = [
        Difference(
            method=each.method,
            baseline=each.baseline,
            scope=each.scope,
            directions=", ".join(" → ".join(direction) for direction in each.directions),
            seeds=each.seeds,
            base_models=each.base_models,
            cells=each.cells,
            pairs=each.pairs,
            discordant=each.discordant,
            points=100 * each.widest.value,
            low=100 * each.widest.low,
            high=100 * each.widest.high,
            unit=each.unit,
            p=each.p,
            p_holm=float(p_holm[number]),
            margin=margin,
            p_equivalent=equivalent[number],
            p_equivalent_holm=float(equivalent_holm[number]),
        )
        for number, each in enumerate(comparisons)
    ]
    return pd.DataFrame(rows, columns=list(Difference._fields))


def read_differences(table: pd.DataFrame) -> list[Difference]:
    """The rows of such a table."""
    columns = list(Difference._fields)
    return [Difference(*row) for row in table[columns].itertuples(index=False, name=None)]
