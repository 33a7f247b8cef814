"""Intervals and paired tests as pure functions. What is unknown is NaN, with the reason.

Axis order: ``[items]`` or ``[seeds x items]``, values in [0, 1] (correct, or a mean of it).
Items are test examples, the same ones for both methods and for every seed, hence paired tests.
Every random function takes a seed and is a function of its arguments alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 2_000
_PERCENTILES = (50 * (1 - LEVEL), 50 * (1 + LEVEL))

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; ``reason`` says why a part of it is NaN (else empty)."""

    value: float
    low: float
    high: float
    reason: str = ""


def wilson_interval(correct: int, n: int) -> Estimate:
    """Share ``correct / n`` with its Wilson score interval; all NaN where ``n`` is 0.

    Raises:
        ValueError: ``correct`` is not in 0..n.
    """
    from scipy.stats import binomtest  # 0.5 s to import: not when Kedro only lists pipelines

    if not 0 <= correct <= n:
        raise ValueError(f"correct must be in 0..{n} (n), got {correct}")
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, "no items")
    interval = binomtest(correct, n).proportion_ci(confidence_level=LEVEL, method="wilson")
    return Estimate(correct / n, float(interval.low), float(interval.high))


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    seed: int,
    resamples: int = RESAMPLES,
    strata: ArrayLike | None = None,
) -> Estimate:
    """Mean of ``a - b`` with a percentile bootstrap interval over items.

    Args:
        a: [items], values in [0, 1].
        b: [items], the same items.
        seed: of the resampling.
        resamples: number of bootstrap draws.
        strata: [items], labels: items are drawn within a stratum and the strata count alike
            (the mean over test sets, whatever their sizes). None: one stratum.

    Raises:
        ValueError: the shapes differ.
    """
    pairs, labels = _checked(a, b, strata, dimensions=1)
    if pairs.size == 0:
        return Estimate(math.nan, math.nan, math.nan, "no paired items")
    means, draws = _bootstrap_means(pairs, labels, seed, resamples)
    low, high = np.percentile(draws[:, 0] - draws[:, 1], _PERCENTILES)
    return Estimate(float(means[0] - means[1]), float(low), float(high))


def relative_improvement(
    a: ArrayLike,
    b: ArrayLike,
    seed: int,
    resamples: int = RESAMPLES,
    strata: ArrayLike | None = None,
) -> Estimate:
    """``100 * (mean a - mean b) / mean b`` in %, as the OThink-MR1 paper reports gains.

    Arguments, resampling and errors as in :func:`paired_difference`. All NaN where ``b`` has mean
    0; the interval is NaN where a resample of ``b`` has.
    """
    pairs, labels = _checked(a, b, strata, dimensions=1)
    if pairs.size == 0:
        return Estimate(math.nan, math.nan, math.nan, "no paired items")
    means, draws = _bootstrap_means(pairs, labels, seed, resamples)
    if means[1] == 0:
        return Estimate(math.nan, math.nan, math.nan, "the baseline's mean is 0")
    value = float(100 * (means[0] - means[1]) / means[1])
    if not draws[:, 1].all():
        return Estimate(value, math.nan, math.nan, "the baseline's mean is 0 in some resamples")
    low, high = np.percentile(100 * (draws[:, 0] - draws[:, 1]) / draws[:, 1], _PERCENTILES)
    return Estimate(value, float(low), float(high))


def hierarchical_difference(
    a: ArrayLike,
    b: ArrayLike,
    seed: int,
    resamples: int = RESAMPLES,
    strata: ArrayLike | None = None,
) -> Estimate:
    """Mean of ``a - b`` with a bootstrap interval over training seeds, then items.

    Every draw takes S seeds, then items within each stratum. The drawn items serve all drawn
    seeds, because all seeds were tested on the same items: independent draws for each seed would
    average away a variance that they share.

    Args:
        a: [seeds x items], values in [0, 1].
        b: [seeds x items], the same seeds and items.
        seed: of the resampling.
        resamples: number of bootstrap draws.
        strata: [items], labels as in :func:`paired_difference`.

    Returns:
        The difference; its interval is NaN with fewer than 2 seeds (their spread is unknown).

    Raises:
        ValueError: the shapes differ.
    """
    pairs, labels = _checked(a, b, strata, dimensions=2)
    if pairs.size == 0:
        return Estimate(math.nan, math.nan, math.nan, "no paired items")
    difference = pairs[..., 0] - pairs[..., 1]  # [S x N]
    groups = [difference[:, labels == label] for label in np.unique(labels)]
    value = float(np.mean([group.mean() for group in groups]))
    seeds = len(difference)
    if seeds < 2:
        reason = f"{seeds} seed: the variation between seeds is unknown"
        return Estimate(value, math.nan, math.nan, reason)
    generator = np.random.default_rng(seed)
    seed_weights = generator.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    draws = np.zeros(resamples)
    for group in groups:
        items = group.shape[1]
        by_item = seed_weights @ group  # [R x S] @ [S x N] = [R x N]
        drawn = generator.integers(items, size=(resamples, items))
        draws += np.take_along_axis(by_item, drawn, axis=1).mean(axis=1) / len(groups)
    low, high = np.percentile(draws, _PERCENTILES)
    return Estimate(value, float(low), float(high))


def mcnemar_p(a: ArrayLike, b: ArrayLike) -> float:
    """Exact two-sided McNemar test of ``a`` and ``b``, both [items] of bool.

    Returns:
        p in (0, 1]; 1 where no pair is discordant; NaN where there is no pair.

    Raises:
        ValueError: the shapes differ.
    """
    from scipy.stats import binomtest

    pairs, _ = _checked(a, b, None, dimensions=1)
    if pairs.size == 0:
        return math.nan
    only_a = int(np.sum(pairs[:, 0] > pairs[:, 1]))
    only_b = int(np.sum(pairs[:, 0] < pairs[:, 1]))
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


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


def _checked(
    a: ArrayLike, b: ArrayLike, strata: ArrayLike | None, dimensions: int
) -> tuple[Floats, NDArray[Any]]:
    """Stack to [... x 2] (a, b) and label the items."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != dimensions:
        shapes = f"{first.shape} and {second.shape}"
        raise ValueError(f"a and b must have one shape of {dimensions} axes, got {shapes}")
    items = first.shape[-1]
    labels = np.zeros(items) if strata is None else np.asarray(strata)
    if labels.shape != (items,):
        raise ValueError(f"strata must label {items} items, got shape {labels.shape}")
    return np.stack([first, second], axis=-1), labels


def _bootstrap_means(
    pairs: Floats, labels: NDArray[Any], seed: int, resamples: int
) -> tuple[Floats, Floats]:
    """Means of a and b, [2], and of each resample, [resamples x 2], averaged over strata.

    Drawing N items with replacement draws *counts* of the distinct (a, b) pairs from a
    multinomial: the same distribution, and for right/wrong answers only four numbers a draw.
    """
    generator = np.random.default_rng(seed)
    strata = np.unique(labels)
    means, draws = np.zeros(2), np.zeros((resamples, 2))
    for stratum in strata:
        members = pairs[labels == stratum]
        distinct, counts = np.unique(members, axis=0, return_counts=True)
        drawn = generator.multinomial(len(members), counts / len(members), resamples)
        means += members.mean(axis=0) / len(strata)
        draws += drawn @ distinct / len(members) / len(strata)
    return means, draws
