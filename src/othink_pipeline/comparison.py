"""Compare two methods on the test examples that both answered (words as in ``matrix.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd

from othink_pipeline.matrix import BASE
from othink_pipeline.statistics import (
    Estimate,
    hierarchical_difference,
    mcnemar_p,
    paired_difference,
    relative_improvement,
)

BOOTSTRAP_SEED = 0
Scope = Literal["same", "cross"]
SCOPES: tuple[Scope, ...] = ("same", "cross")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Method against baseline on the cells that both have; estimates in [-1, 1], relative in %.

    Attributes:
        method: minuend.
        baseline: subtrahend.
        scope: same-task or cross-task cells.
        cells: number of (train task, seed, eval task) compared.
        pairs: number of paired predictions.
        over_items: difference, interval over test items.
        over_seeds: difference, interval over training seeds and items; NaN with one seed.
        p: exact McNemar test on all pairs.
        relative: relative improvement, interval over items.
    """

    method: str
    baseline: str
    scope: Scope
    cells: int
    pairs: int
    over_items: Estimate
    over_seeds: Estimate
    p: float
    relative: Estimate


def compare(
    predictions: pd.DataFrame,
    method: str,
    baseline: str,
    scope: Scope,
    verdict: str = "correct",
    train_task: str | None = None,
) -> Comparison | None:
    """Compare two methods, paired by test example; None if they share no cell in ``scope``.

    The difference is the mean over eval tasks of the mean over items. The base model stands
    against every cell of ``method``.

    Args:
        predictions: as for :func:`transfer_matrix`.
        method: its predictions decide the scope.
        baseline: the method subtracted.
        scope: same-task or cross-task cells.
        verdict: the boolean column compared.
        train_task: only cells trained on this task; None: all.
    """
    is_same = predictions["train_task"] == predictions["eval_task"]
    chosen = (predictions["method"] == method) & (is_same == (scope == "same"))
    if train_task is not None:
        chosen &= predictions["train_task"] == train_task
    cell = ["train_task", "eval_task", "seed"]
    item = ["eval_task", "example_id"]
    key = item if baseline == BASE else [*cell, "example_id"]
    ours = predictions.loc[chosen, [*cell, "example_id", verdict]]
    theirs = predictions.loc[predictions["method"] == baseline, [*key, verdict]]
    both = ours.rename(columns={verdict: "a"}).merge(theirs.rename(columns={verdict: "b"}), on=key)
    if both.empty:
        return None
    both = both.astype({"a": float, "b": float})
    # Several train tasks may share an eval task: an item counts once, with its mean over cells.
    items = both.groupby(item)[["a", "b"]].mean()
    tasks = items.index.get_level_values("eval_task").to_numpy()
    a, b = items["a"], items["b"]
    # A seed that lacks a cell would mix tasks with seeds: it does not count here.
    cells = both[cell].drop_duplicates()
    per_seed = cells["seed"].value_counts()
    complete = per_seed.index[per_seed == len(cells[cell[:2]].drop_duplicates())]
    by_seed = both[both["seed"].isin(complete)].groupby([*item, "seed"])[["a", "b"]].mean()
    seeds_a, seeds_b = (
        by_seed[side].unstack("seed").reindex(items.index).to_numpy().T for side in ("a", "b")
    )
    return Comparison(
        method=method,
        baseline=baseline,
        scope=scope,
        cells=len(cells),
        pairs=len(both),
        over_items=paired_difference(a, b, BOOTSTRAP_SEED, strata=tasks),
        over_seeds=hierarchical_difference(seeds_a, seeds_b, BOOTSTRAP_SEED, strata=tasks),
        # The test wants independent pairs: an item that stands in several cells is not.
        p=mcnemar_p(both["a"], both["b"]) if len(both) == len(items) else float("nan"),
        relative=relative_improvement(a, b, BOOTSTRAP_SEED, strata=tasks),
    )
