"""Could it be chance? p-values as pure functions; what is unknown is NaN.

Axis order: ``[items]`` or ``[seeds x items]``, as in ``estimators.py``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from othink_pipeline.report.resampling import Floats, paired


def mcnemar_p(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided McNemar test of ``a`` and ``b``, both [items] of bool.

    Returns:
        p in (0, 1]; 1 where no pair is discordant; NaN where there is no pair.

    Raises:
        ValueError: the shapes differ.
    """
    from scipy.stats import binomtest

    first, second = paired(a, b, dimensions=1)
    if first.size == 0:
        return math.nan
    only_a, only_b = int(np.sum(first > second)), int(np.sum(first < second))
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def between_seeds_p(
    a: ArrayLike,
    b: ArrayLike,
    strata: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
) -> float:
    """Two-sided paired t-test: would other seeds, on these items, differ too?

    The units are independent trainings: the means of ``a - b`` of each seed or, where there are
    several base models, of each base model (seeds of one base model have it in common). Degrees of
    freedom: units - 1.

    Args:
        a: [seeds x items], values in [0, 1].
        b: [seeds x items], the same seeds and items.
        strata, clusters: [items] and [seeds], as in :func:`resample`.

    Returns:
        p in [0, 1]; NaN with fewer than 2 units, or where all are equal (no spread to judge by).

    Raises:
        ValueError: the shapes differ.
    """
    from scipy.stats import ttest_1samp

    first, second = paired(a, b, dimensions=2)
    if first.size == 0:
        return math.nan
    labels = np.zeros(first.shape[1]) if strata is None else np.asarray(strata)
    bases = np.zeros(len(first)) if clusters is None else np.asarray(clusters)
    by_item = first - second  # [S x N]
    groups = [by_item[:, labels == label].mean(axis=1) for label in np.unique(labels)]
    units = np.mean(groups, axis=0)  # [S]
    if len(np.unique(bases)) > 1:
        units = np.array([units[bases == base].mean() for base in np.unique(bases)])  # [B]
    if np.allclose(units, units[0]):
        return math.nan
    return float(ttest_1samp(units, 0).pvalue)


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjusted p-values, [tests], in the given order.

    A NaN stays NaN and does not count as a test.
    """
    p: Floats = np.asarray(p_values, dtype=np.float64)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])]
    adjusted = np.full_like(p, np.nan)
    scaled = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted
