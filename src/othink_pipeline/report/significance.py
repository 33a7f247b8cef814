"""Could it be chance? p-values as pure functions; what is unknown is NaN."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from othink_pipeline.report.resampling import Floats

SIGNIFICANCE = 0.05
"""What a p-value has to be below."""


def mcnemar_p(differences: ArrayLike) -> float:
    """Exact two-sided McNemar test: would other items tell, these two models being given?

    Args:
        differences: [items], of one test set: 1 where only the first is right, -1 where only the
            second is, 0 where both are or neither.

    Returns:
        p in (0, 1]; 1 where no item tells them apart; NaN without items.
    """
    from scipy.stats import binomtest

    told: Floats = np.asarray(differences, dtype=np.float64)
    if told.size == 0:
        return math.nan
    better, worse = int(np.sum(told > 0)), int(np.sum(told < 0))
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def weighted_items_p(parts: ArrayLike) -> float:
    """The same question of a mean over several test sets or trainings, two-sided.

    z = sum x / sqrt(sum x²), normal under the null hypothesis that each item's part is as likely to
    have the other sign: of one test set with one answer to an item that is McNemar's test without
    its exactness, which wants a dozen items or more that tell the two apart.

    Args:
        parts: [items], what each one adds to the difference that is tested, weights included.

    Returns:
        p in [0, 1]; 1 where no item tells them apart; NaN without items.
    """
    from scipy.stats import norm

    x: Floats = np.asarray(parts, dtype=np.float64)
    if x.size == 0:
        return math.nan
    error = math.sqrt(np.sum(x**2))
    return float(2 * norm.sf(abs(x.sum()) / error)) if error else 1.0


def difference_p(units: ArrayLike) -> float:
    """Two-sided paired t-test: would other trainings, on these items, differ too?

    Degrees of freedom: units - 1.

    Args:
        units: [units], the difference of each independent training.

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
        units: [units], the difference of each independent training.
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


def first_t(tests: int, units: int) -> float:
    """The |t| that the least of so many p-values has to exceed to be significant after Holm."""
    from scipy.stats import t

    return float(t.isf(SIGNIFICANCE / (2 * tests), units - 1))


def _have_spread(units: Floats) -> bool:
    """Two units at least that differ by more than rounding."""
    return len(units) > 1 and not np.allclose(units, units[0])
