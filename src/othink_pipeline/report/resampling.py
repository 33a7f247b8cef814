"""The percentile bootstrap behind every interval over items, or over seeds and items.

Legend: B base models, S training seeds, N items, K columns, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
RESAMPLES = 2_000
SEED = 0
_PERCENTILES = (50 * (1 - LEVEL), 50 * (1 + LEVEL))

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Of the columns' means: [K] -> a number, [K x R] -> [R]."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; NaN is what is unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan


def paired(a: ArrayLike, b: ArrayLike, dimensions: int) -> tuple[Floats, Floats]:
    """Both as floats.

    Raises:
        ValueError: their shapes differ, or have not that many axes.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != dimensions:
        shapes = f"{first.shape} and {second.shape}"
        raise ValueError(f"a and b must have one shape of {dimensions} axes, got {shapes}")
    return first, second


@dataclass(frozen=True, slots=True)
class Resampled:
    """Means of K columns over S seeds and N items, and of every resample."""

    seeds: int
    means: Floats
    """[K], NaN without items."""
    draws: Floats
    """[K x R]."""

    def estimate(self, statistic: Statistic) -> Estimate:
        """A statistic of the columns' means with its percentile interval.

        All NaN where the statistic is not finite or there are no items; the interval is NaN where
        the statistic of a resample is not finite.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            value, drawn = float(statistic(self.means)), statistic(self.draws)
        if not math.isfinite(value):
            return Estimate(math.nan)
        if not np.isfinite(drawn).all():
            return Estimate(value)
        low, high = np.percentile(drawn, _PERCENTILES)
        return Estimate(value, float(low), float(high))

    def estimate_over_seeds(self, statistic: Statistic) -> Estimate:
        """As :meth:`estimate`; the interval is NaN with fewer than 2 seeds."""
        estimate = self.estimate(statistic)
        return estimate if self.seeds > 1 else Estimate(estimate.value)


def resample(
    columns: Sequence[ArrayLike],
    seed: int = SEED,
    resamples: int = RESAMPLES,
    strata: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
) -> Resampled:
    """Draw base models, then as many seeds within each drawn one as it has, then items.

    The drawn items serve all drawn seeds, because all seeds were tested on the same items:
    independent draws for each seed would average away a variance that they share. Each seed counts
    alike, so a base model with more of them counts more, in the means and in every draw. Of one
    seed items alone are drawn.

    Args:
        columns: K times [S x N].
        seed: of the resampling.
        resamples: R, number of draws.
        strata: [N], labels: items are drawn within a stratum and the strata count alike (the mean
            over test sets, whatever their sizes). None: one stratum.
        clusters: [S], labels: the base model of each seed. None: one base model.

    Raises:
        ValueError: the shapes differ.
    """
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 2:
        shapes = " and ".join(str(array.shape) for array in arrays)
        raise ValueError(f"all columns must have one shape of 2 axes, got {shapes}")
    values = np.stack(arrays)  # [K x S x N]
    seeds, items = values.shape[1:]
    labels = _labels(strata, items, "strata", "items")
    bases = _labels(clusters, seeds, "clusters", "seeds")
    means, draws = np.zeros(len(values)), np.zeros((len(values), resamples))
    if values.size == 0:
        return Resampled(seeds, means + math.nan, draws)
    generator = np.random.default_rng(seed)
    weights = seed_weights(bases, resamples, generator)  # [R x S]
    groups = [values[..., labels == label] for label in np.unique(labels)]
    for group in groups:
        means += group.mean(axis=(1, 2)) / len(groups)
        by_seed = _resample_items(group, resamples, generator)  # [R x K x S]
        draws += np.einsum("rks,rs->kr", by_seed, weights) / len(groups)
    return Resampled(seeds, means, draws)


def seed_weights(clusters: ArrayLike, resamples: int, generator: np.random.Generator) -> Floats:
    """Base models drawn with replacement, then seeds within each: a row that sums to 1 a draw.

    Args:
        clusters: [S], labels: the base model of each seed.
        resamples: R.
        generator: where the draws come from.

    Returns:
        [R x S], the share of each seed in each draw.
    """
    bases, base_of_seed = np.unique(np.asarray(clusters), return_inverse=True)
    drawn = generator.multinomial(len(bases), np.full(len(bases), 1 / len(bases)), resamples)
    counts = np.zeros((resamples, len(base_of_seed)))
    for base in range(len(bases)):
        members = np.flatnonzero(base_of_seed == base)
        share = np.full(len(members), 1 / len(members))
        # Drawn twice, a base model has its seeds drawn twice, independently.
        counts[:, members] = generator.multinomial(drawn[:, base] * len(members), share)
    weights: Floats = counts / counts.sum(axis=1, keepdims=True)
    return weights


def _resample_items(values: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Means of resampled items, [R x K x S], of ``values`` [K x S x N].

    To draw N items with replacement is to draw *counts* of the distinct rows from a multinomial.
    Answers are right or wrong, so that these are often few; else it is quicker to count N draws.
    """
    items = values.shape[2]
    rows, times = np.unique(values.reshape(-1, items).T, axis=0, return_counts=True)
    if 10 * len(rows) < items:
        counts = generator.multinomial(items, times / items, resamples)
    else:
        rows = values.reshape(-1, items).T
        drawn = generator.integers(items, size=(resamples, items))
        drawn += items * np.arange(resamples)[:, None]  # a block of numbers for each draw
        counts = np.bincount(drawn.ravel(), minlength=resamples * items).reshape(resamples, items)
    means: Floats = counts.astype(np.float64) @ rows / items  # [R x N] @ [N x K·S]
    return means.reshape(resamples, *values.shape[:2])


def _labels(labels: ArrayLike | None, size: int, name: str, of: str) -> NDArray[np.generic]:
    """The labels of one axis, all alike where there are none."""
    found: NDArray[np.generic] = np.zeros(size) if labels is None else np.asarray(labels)
    if found.shape != (size,):
        raise ValueError(f"{name} must label {size} {of}, got shape {found.shape}")
    return found
