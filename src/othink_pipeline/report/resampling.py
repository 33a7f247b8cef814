"""The bootstrap behind every interval over items, or over seeds and items.

What is estimated is always one mean: over base models of the mean over their seeds, of the mean
over test sets (strata) of the mean over their items. A *unit* is an independent training: a base
model where there are several, else a seed.

Legend: B base models, S training seeds, U units, N items, K columns, R resamples.
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
Bounds = tuple[float, float]
"""What a statistic cannot be below or above."""
SHARE, CHANGE = (0.0, 1.0), (-1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; NaN is what is unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True, slots=True)
class Resampled:
    """Means of K columns: of each unit, and of all of them in every resample."""

    units: Floats
    """[K x U]; none without items."""
    draws: Floats
    """[K x R], of units and items."""
    item_draws: Floats
    """[K x R], of items alone, the units being given."""
    unit_draws: Floats
    """[K x R], of units alone, the items being given."""

    @property
    def means(self) -> Floats:
        """[K]; NaN without items."""
        return self.units.mean(axis=1) if self.units.size else np.full(len(self.units), math.nan)

    def estimate(self, statistic: Statistic, bounds: Bounds = CHANGE) -> Estimate:
        """A statistic of the columns' means, its interval over units and items; of one over items.

        All NaN where the statistic is not finite or there are no items; the interval is NaN where
        the statistic of a resample is not finite.
        """
        if self.units.shape[1] < 2:
            return self.estimate_over_items(statistic)
        value, draws, item_draws, unit_draws = _apply(
            statistic, self.means, self.draws, self.item_draws, self.unit_draws
        )
        plain = _percentiles(value, draws)
        if math.isnan(plain.low) or not np.isfinite([item_draws, unit_draws]).all():
            return Estimate(plain.value)
        stretch = small_sample_stretch(draws, item_draws, unit_draws, self.units.shape[1])
        ends = plain.value + stretch * (np.array([plain.low, plain.high]) - plain.value)
        low, high = np.clip(ends, *bounds)
        return Estimate(plain.value, float(low), float(high))

    def estimate_over_items(self, statistic: Statistic) -> Estimate:
        """As :meth:`estimate`; the interval is of items alone, the units being given."""
        return _percentiles(*_apply(statistic, self.means, self.item_draws))


def _apply(statistic: Statistic, *means: Floats) -> list[Floats]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return [np.asarray(statistic(each)) for each in means]


def _percentiles(value: Floats, draws: Floats) -> Estimate:
    if not np.isfinite(value):
        return Estimate(math.nan)
    if not np.isfinite(draws).all():
        return Estimate(float(value))
    low, high = np.percentile(draws, _PERCENTILES)
    return Estimate(float(value), float(low), float(high))


def small_sample_stretch(
    draws: Floats, item_draws: Floats, unit_draws: Floats, units: int
) -> float:
    """How much wider than its percentiles an interval over few units has to be, 1 at least.

    A bootstrap of U units has a variance that is too small by (U - 1) / U, and its percentiles are
    the normal distribution's where it takes Student's (Hesterberg 2015, Am. Stat. 69: 371). Both
    concern units alone; items are many:

        sqrt((z² var(items) + t² U / (U - 1) var(units)) / (z² var(units and items)))

    Args:
        draws: [R], a statistic of the resamples of units and items.
        item_draws: [R], of items alone.
        unit_draws: [R], of units alone.
        units: U, 2 or more.
    """
    from scipy.stats import norm, t  # 0.5 s to import: not when Kedro only lists pipelines

    tail = (1 + LEVEL) / 2
    wider = (t.ppf(tail, units - 1) / norm.ppf(tail)) ** 2 * units / (units - 1)
    total = draws.var()
    aimed = item_draws.var() + wider * unit_draws.var()
    return math.sqrt(max(1.0, aimed / total)) if total else 1.0


def resample(
    columns: Sequence[ArrayLike],
    seed: int = SEED,
    resamples: int = RESAMPLES,
    strata: ArrayLike | None = None,
    clusters: ArrayLike | None = None,
) -> Resampled:
    """Draw base models, then as many seeds within each drawn one as it has, then items.

    The drawn items serve all drawn seeds, because all seeds were tested on the same items:
    independent draws for each seed would average away a variance that they share. Base models count
    alike, whatever their numbers of seeds. Of one seed items alone are drawn.

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
    draws, item_draws = np.zeros((2, len(values), resamples))
    if values.size == 0:
        return Resampled(np.empty((len(values), 0)), draws, item_draws, 0 * draws)
    generator = np.random.default_rng(seed)
    weights = seed_weights(bases, resamples, generator)  # [R x S]
    means = np.zeros(values.shape[:2])  # [K x S]
    groups = [values[..., labels == label] for label in np.unique(labels)]
    for group in groups:
        means += group.mean(axis=2) / len(groups)
        by_seed = _resample_items(group, resamples, generator)  # [R x K x S]
        draws += np.einsum("rks,rs->kr", by_seed, weights) / len(groups)
        item_draws += np.einsum("rks,s->kr", by_seed, shares(bases)) / len(groups)
    return Resampled(_unit_means(means, bases), draws, item_draws, means @ weights.T)


def shares(labels: ArrayLike) -> Floats:
    """What each entry counts in a mean over groups of the mean within them.

    Args:
        labels: [entries], the group of each.

    Returns:
        [entries], with sum 1.
    """
    _, group, sizes = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
    return np.asarray(1 / (len(sizes) * sizes[group]), dtype=np.float64)


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
    weights = np.zeros((resamples, len(base_of_seed)))
    for base in range(len(bases)):
        members = np.flatnonzero(base_of_seed == base)
        share = np.full(len(members), 1 / len(members))
        # Drawn twice, a base model has its seeds drawn twice, independently.
        counts = generator.multinomial(drawn[:, base] * len(members), share)
        weights[:, members] = counts / (len(bases) * len(members))
    return weights


def _unit_means(by_seed: Floats, clusters: NDArray[np.generic]) -> Floats:
    """[K x S] -> [K x U]."""
    bases = np.unique(clusters)
    if len(bases) == 1:
        return by_seed
    return np.stack([by_seed[:, clusters == base].mean(axis=1) for base in bases], axis=1)


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
