"""Compare two methods on the test examples that both answered (words as in ``matrix``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from othink_pipeline.core.blocks import BASE, SAME_ENV, ConfigurationError
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
CELL = ["train_task", "eval_task", "seed"]
ITEM = ["eval_task", "example_id"]


class Difference(NamedTuple):
    """Method against baseline on the cells that both have: a row of ``differences.csv``, in points.

    Of the seeds that have all these cells: one that lacks a cell would mix tasks with seeds.
    Without such a seed nothing is known. A *unit* is as in ``resampling``.
    """

    method: str
    baseline: str
    scope: Scope
    directions: str
    """``counting → geometry``, several with commas."""
    seeds: int
    base_models: int
    """That the seeds started from."""
    cells: int
    """(train task, seed, eval task)"""
    pairs: int
    """Of predictions."""
    discordant: int
    """Pairs of which one is right and one wrong."""
    points: float
    low: float
    """Of the 95 % interval that covers most: over units and items, with one seed over items."""
    high: float
    unit: Unit
    """What that interval and p draw; items where no variation is known."""
    p: float
    """NaN where there is no test of that."""
    p_holm: float
    """Adjusted: the pairs that were asked for are one family of tests, those with the base model
    another."""
    margin: float
    """Differences of fewer points do not matter."""
    p_equivalent: float
    """Of the test that the difference is within the margin; NaN with one seed, or against the base
    model: the question is asked between methods."""
    p_equivalent_holm: float
    """Adjusted: these are a family of their own."""
    items_low: float
    """Of the interval over test items, the trainings being given."""
    items_high: float
    p_items: float
    """Whether other test items would tell, of these very trainings: McNemar's exact test where
    there is one test set and one pair an item, else :func:`weighted_items_p`."""
    relative: float
    """Relative improvement in %, with the bounds of the same two intervals."""
    relative_low: float
    relative_high: float
    relative_items_low: float
    relative_items_high: float

    @property
    def widest(self) -> Estimate:
        """In points, with the interval that covers most."""
        return Estimate(self.points, self.low, self.high)

    @property
    def widest_relative(self) -> Estimate:
        """The same of the relative improvement, in %."""
        return Estimate(self.relative, self.relative_low, self.relative_high)

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
    margin: float = math.nan,
) -> Difference | None:
    """Compare two methods, paired by test example; None if they share no cell in ``scope``.

    The difference is the mean over base models of the mean over their seeds, of the mean over eval
    tasks of the mean over items. Each cell stands against the base model that it started from.

    Args:
        predictions, method, baseline, scope, train_task: as of :func:`pair`.
        verdict: the boolean column compared.
        margin: in points, above 0; NaN: equivalence is not tested.
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
    units = difference(drawn.units)
    unit: Unit = "base models" if len(set(bases)) > 1 else "seeds" if len(bases) > 1 else "items"
    parts = shares(bases) @ (ours - theirs) * shares(tasks)
    is_plain = len(pairs) == len(parts) and len(set(tasks)) == 1
    p_items = mcnemar_p(parts) if is_plain else weighted_items_p(parts)
    items, relative_items = map(drawn.estimate_over_items, (difference, improvement))
    widest, relative = drawn.estimate(difference), drawn.estimate(improvement, RELATIVE)
    return Difference(
        method=method,
        baseline=baseline,
        scope=scope,
        directions=", ".join(" → ".join(direction) for direction in directions),
        seeds=len(bases),
        base_models=len(set(bases)),
        cells=len(bases) * len(directions),
        pairs=len(pairs),
        discordant=int((pairs[a] != pairs[b]).sum()),
        points=100 * widest.value,
        low=100 * widest.low,
        high=100 * widest.high,
        unit=unit,
        p=p_items if unit == "items" else difference_p(units),
        p_holm=math.nan,  # of a family: `compare_all`
        margin=margin,
        p_equivalent=math.nan if baseline == BASE else equivalence_p(units, margin / 100),
        p_equivalent_holm=math.nan,
        items_low=100 * items.low,
        items_high=100 * items.high,
        p_items=p_items,
        relative=relative.value,
        relative_low=relative.low,
        relative_high=relative.high,
        relative_items_low=relative_items.low,
        relative_items_high=relative_items.high,
    )


def compare_all(
    predictions: pd.DataFrame, comparisons: Iterable[tuple[str, str]], margin: float
) -> list[Difference]:
    """Each of the pairs, then each method with the base model, in both scopes where there are any.

    Args:
        predictions: in report order, as for :func:`transfer_matrix`.
        comparisons: (method, baseline) pairs.
        margin: in points, above 0.
    """
    with_base = [(method, BASE) for method in predictions["method"].unique() if method != BASE]
    found = [
        each
        for method, baseline in dict.fromkeys([*comparisons, *with_base])
        for scope in SCOPES
        if (each := compare(predictions, method, baseline, scope, margin=margin)) is not None
    ]
    p_values = np.array([each.p for each in found], dtype=np.float64)
    against_base = np.array([each.baseline == BASE for each in found], dtype=bool)
    p_holm = p_values.copy()
    for family in (against_base, ~against_base):
        p_holm[family] = holm(p_values[family])
    equivalent = holm([each.p_equivalent for each in found])
    return [
        each._replace(p_holm=float(p), p_equivalent_holm=float(p_equivalent))
        for each, p, p_equivalent in zip(found, p_holm, equivalent, strict=True)
    ]


def differences_table(differences: Sequence[Difference]) -> pd.DataFrame:
    """A column for each field of :class:`Difference`."""
    return pd.DataFrame(differences, columns=list(Difference._fields))


def read_differences(table: pd.DataFrame) -> list[Difference]:
    """The rows of such a table.

    Raises:
        ConfigurationError: it lacks a column.
    """
    columns = list(Difference._fields)
    if not set(columns) <= set(table.columns):
        raise ConfigurationError(
            "differences.csv was written by other code. Write it anew: kedro run "
            f"--pipelines=report {SAME_ENV}"
        )
    return [Difference(*row) for row in table[columns].itertuples(index=False, name=None)]
