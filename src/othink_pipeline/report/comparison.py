"""Compare two methods on the test examples that both answered (words as in ``matrix``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.estimators import difference, improvement
from othink_pipeline.report.resampling import Estimate, Floats, resample
from othink_pipeline.report.significance import (
    difference_p,
    equivalence_p,
    holm,
    mcnemar_p,
    unit_differences,
)

Scope = Literal["same", "cross"]
SCOPES: tuple[Scope, ...] = ("same", "cross")
CELL = ["train_task", "eval_task", "seed"]
ITEM = ["eval_task", "example_id"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Method against baseline on the cells that both have; estimates in [-1, 1], relative in %.

    Attributes:
        method: minuend.
        baseline: subtrahend.
        scope: same-task or cross-task cells.
        seeds: number of training seeds that have all the cells.
        cells: number of (train task, seed, eval task) compared.
        pairs: number of paired predictions.
        over_items: difference, interval over test items.
        over_seeds: difference, interval over base models, training seeds and items; NaN with one
            seed.
        p_items: exact McNemar test on all pairs; NaN where an item stands in several cells.
        units: difference of each independent training, the items being given: of each base model
            where there are several, else of each seed.
        relative: relative improvement, interval over items.
        relative_over_seeds: relative improvement, interval as that of ``over_seeds``.
    """

    method: str
    baseline: str
    scope: Scope
    seeds: int
    cells: int
    pairs: int
    over_items: Estimate
    over_seeds: Estimate
    p_items: float
    units: tuple[float, ...]
    relative: Estimate
    relative_over_seeds: Estimate

    @property
    def has_one_seed(self) -> bool:
        """Nothing is known of the variation between seeds."""
        return bool(np.isnan(self.over_seeds.low))

    @property
    def widest(self) -> Estimate:
        """The difference with the interval that covers most: over seeds where there are two."""
        return self.over_items if self.has_one_seed else self.over_seeds

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
        """The one p-value there is: over seeds, else over items; NaN where there is neither."""
        return self.p_items if np.isnan(self.p_seeds) else self.p_seeds


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

    The difference is the mean over eval tasks of the mean over items. Each cell stands against the
    base model that it started from.

    Args:
        predictions, method, baseline, scope, train_task: as of :func:`pair`.
        verdict: the boolean column compared.
    """
    pairs = pair(predictions, method, baseline, scope, train_task, [verdict])
    if pairs.empty:
        return None
    a, b = f"{verdict}_a", f"{verdict}_b"
    # Several train tasks may share an eval task: an item counts once, with its mean over cells.
    items = pairs.groupby("item").agg({a: "mean", b: "mean", "eval_task": "first"})
    # A seed that lacks a cell would mix tasks with seeds: it does not count here.
    cells = pairs[CELL].drop_duplicates()
    per_seed = cells["seed"].value_counts()
    complete = per_seed.index[per_seed == len(cells[CELL[:2]].drop_duplicates())]
    seeds = pairs[pairs["seed"].isin(complete)]
    tasks = items["eval_task"]
    over_items = resample([[items[a]], [items[b]]], strata=tasks)
    ours, theirs = by_seed(seeds, a, b)
    strata: ArrayLike = tasks if len(seeds) else []
    bases = base_models(seeds)
    over_seeds = resample([ours, theirs], strata=strata, clusters=bases)
    return Comparison(
        method=method,
        baseline=baseline,
        scope=scope,
        seeds=len(complete),
        cells=len(cells),
        pairs=len(pairs),
        over_items=over_items.estimate(difference),
        over_seeds=over_seeds.estimate_over_seeds(difference),
        # The test wants independent pairs: an item that stands in several cells is not.
        p_items=mcnemar_p(pairs[a], pairs[b]) if len(pairs) == len(items) else float("nan"),
        units=tuple(unit_differences(ours, theirs, strata, bases).tolist()),
        relative=over_items.estimate(improvement),
        relative_over_seeds=over_seeds.estimate_over_seeds(improvement),
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
    seeds: int
    cells: int
    pairs: int
    points: float
    low: float
    """Of the 95 % interval, in points."""
    high: float
    unit: Literal["seeds", "items"]
    """What the interval and p draw."""
    p: float
    p_holm: float
    """Adjusted: all comparisons of a report are one family of tests."""
    margin: float
    """Differences of fewer points do not matter."""
    p_equivalent: float
    """Of the test that the difference is within the margin; NaN with one seed, or against the base
    model."""
    p_equivalent_holm: float
    """Adjusted: these are a family of their own."""

    @property
    def drawn_over(self) -> str:
        """The same in words."""
        return f"{self.seeds} seeds" if self.unit == "seeds" else "items, one seed"


def differences_table(comparisons: Sequence[Comparison], margin: float) -> pd.DataFrame:
    """The comparisons as a table: a column for each field of :class:`Difference`.

    Args:
        comparisons: all of a report.
        margin: in points, above 0.
    """
    p_values = [comparison.p for comparison in comparisons]
    equivalent = [comparison.p_equivalent(margin) for comparison in comparisons]
    rows = [
        Difference(
            method=comparison.method,
            baseline=comparison.baseline,
            scope=comparison.scope,
            seeds=comparison.seeds,
            cells=comparison.cells,
            pairs=comparison.pairs,
            points=100 * comparison.widest.value,
            low=100 * comparison.widest.low,
            high=100 * comparison.widest.high,
            unit="items" if comparison.has_one_seed else "seeds",
            p=p,
            p_holm=float(p_holm),
            margin=margin,
            p_equivalent=p_equivalent,
            p_equivalent_holm=float(p_equivalent_holm),
        )
        for comparison, p, p_holm, p_equivalent, p_equivalent_holm in zip(
            comparisons, p_values, holm(p_values), equivalent, holm(equivalent), strict=True
        )
    ]
    return pd.DataFrame(rows, columns=list(Difference._fields))


def read_differences(table: pd.DataFrame) -> list[Difference]:
    """The rows of such a table."""
    columns = list(Difference._fields)
    return [Difference(*row) for row in table[columns].itertuples(index=False, name=None)]
