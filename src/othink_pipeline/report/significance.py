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


def unit_differences(
    a: ArrayLike,
    b: ArrayLike,
    strata: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
) -> Floats:
    """What tests between seeds are about: the mean of ``a - b`` in each independent training.

    Of each seed or, where there are several base models, of each base model (seeds of one base
    model have it in common).

    Args:
        a: [seeds x items], values in [0, 1].
        b: [seeds x items], the same seeds and items.
        strata, clusters: [items] and [seeds], as in :func:`resample`.

    Returns:
        [units], in [-1, 1]; none without seeds or items.

    Raises:
        ValueError: the shapes differ.
    """
    first, second = paired(a, b, dimensions=2)
    if first.size == 0:
        return np.empty(0)
    labels = np.zeros(first.shape[1]) if strata is None else np.asarray(strata)
    bases = np.zeros(len(first)) if clusters is None else np.asarray(clusters)
    by_item = first - second  # [S x N]
    groups = [by_item[:, labels == label].mean(axis=1) for label in np.unique(labels)]
    units: Floats = np.mean(groups, axis=0)  # [S]
    if len(np.unique(bases)) > 1:
        units = np.array([units[bases == base].mean() for base in np.unique(bases)])  # [B]
    return units


def difference_p(units: ArrayLike) -> float:
    """Two-sided paired t-test: would other trainings, on these items, differ too?

    Degrees of freedom: units - 1.

    Args:
        units: [units], as from :func:`unit_differences`.

    Returns:
        p in [0, 1]; NaN with fewer than 2 units, or where all are equal (no spread to judge by).
    """
    from scipy.stats import ttest_1samp

    values: Floats = np.asarray(units, dtype=np.float64)
    return float(ttest_1samp(values, 0).pvalue) if _have_spread(values) else math.nan


def equivalence_p(units: ArrayLike, margin: float) -> float:
    """Two one-sided paired t-tests (TOST): is the mean difference within ``margin``, both ways?

    The null hypothesis is that it is not: a mean of -margin or lower, or of +margin or higher. Each
    half is tested on its own, on the same units as :func:`difference_p`; equivalence is shown where
    both are rejected, so that p is the larger one's (Schuirmann 1987, J. Pharmacokinet. Biopharm.
    15: 657). p < 5 % is the same as a 90 % t-interval inside the margin.

    Args:
        units: [units], as from :func:`unit_differences`.
        margin: above 0, in the unit of ``units``.

    Returns:
        p in [0, 1]; NaN where :func:`difference_p` is.
    """
    from scipy.stats import ttest_1samp

    values: Floats = np.asarray(units, dtype=np.float64)
    if not _have_spread(values):
        return math.nan
    lower = ttest_1samp(values, -margin, alternative="greater").pvalue
    upper = ttest_1samp(values, margin, alternative="less").pvalue
    return float(max(lower, upper))


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


def _have_spread(units: Floats) -> bool:
    """Two units at least that differ by more than rounding."""
    return len(units) > 1 and not np.allclose(units, units[0])
