"""Intervals and paired tests as pure functions. What is unknown is NaN.

Axis order: ``[items]`` or ``[seeds x items]``, values in [0, 1] (correct, or a mean of it).
Items are test examples, the same ones for both methods and for every seed, hence paired tests.
Every function is one of its arguments alone. ``resampling`` says how items, seeds and base models
are drawn; a *statistic* is a function of the columns' means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from othink_pipeline.report.resampling import LEVEL, SHARE, Estimate, Floats, resample


def wilson_interval(correct: int, n: int) -> Estimate:
    """Share ``correct / n`` with its Wilson score interval; all NaN where ``n`` is 0.

    Raises:
        ValueError: ``correct`` is not in 0..n.
    """
    from scipy.stats import binomtest  # 0.5 s to import: not when Kedro only lists pipelines

    if not 0 <= correct <= n:
        raise ValueError(f"correct must be in 0..{n} (n), got {correct}")
    if n == 0:
        return Estimate(math.nan)
    interval = binomtest(correct, n).proportion_ci(confidence_level=LEVEL, method="wilson")
    return Estimate(correct / n, float(interval.low), float(interval.high))


def difference(means: Floats) -> Floats:
    """``mean a - mean b``: a statistic of two columns."""
    a, b = means
    return np.asarray(a - b)


RELATIVE = (-100.0, math.inf)
"""Bounds of an improvement."""


def improvement(means: Floats) -> Floats:
    """``100 * (mean a - mean b) / mean b`` in %, as the OThink-MR1 paper reports gains.

    Not finite where ``b`` has mean 0.
    """
    a, b = means
    return np.asarray(100 * (a - b) / b)


def mean_score(values: ArrayLike, clusters: ArrayLike | None = None) -> Estimate:
    """Mean of shares with its interval over seeds and items, or the items of the one seed.

    Where all are 0, or all 1, no resample differs: it is Wilson's of the items, each counted once
    however many seeds were tested on it.

    Args:
        values: [seeds x items], in [0, 1].
        clusters: [seeds], as in :func:`resample`.
    """
    scores: Floats = np.asarray(values, dtype=np.float64)
    for share in SHARE:
        if scores.size and np.all(scores == share):
            items = scores.shape[1]
            return wilson_interval(int(share) * items, items)
    return resample([scores], clusters=clusters).estimate(lambda means: means[0], SHARE)


def difference_where(
    a: ArrayLike,
    b: ArrayLike,
    chosen: ArrayLike,
    clusters: ArrayLike | None = None,
) -> Estimate:
    """Mean of ``a - b`` over the chosen answers, its interval over seeds and items.

    Args:
        a: [seeds x items], values in [0, 1].
        b: [seeds x items], the same seeds and items.
        chosen: [seeds x items] of bool: True counts. Drawn along with the answer, because whether
            it is chosen is random too.
        clusters: [seeds], as in :func:`resample`.

    Raises:
        ValueError: ``chosen`` has another shape.
    """
    gain, where = np.subtract(a, b, dtype=np.float64), np.asarray(chosen, dtype=np.float64)
    drawn = resample([gain * where, where], clusters=clusters)
    return drawn.estimate(lambda means: means[0] / means[1])


class GainSplit(NamedTuple):
    """A gain in accuracy and the two parts that sum to it."""

    total: Estimate
    format: Estimate
    ability: Estimate


def split_gain(
    right: ArrayLike,
    parsed: ArrayLike,
    base_right: ArrayLike,
    base_parsed: ArrayLike,
    clusters: ArrayLike | None = None,
) -> GainSplit:
    """Split a gain: more answers that parse (format), more of these right (ability).

    Accuracy is P(parses) x P(right | parses). The change of each factor is weighted with the mean
    of the other one before and after (Shapley's value of two factors), so that the parts sum to the
    gain whichever is thought to change first.

    Args:
        right: [seeds x items], 1 where the answer is right.
        parsed: [seeds x items], 1 where it parses; an answer that does not parse is not right.
        base_right: [seeds x items], of the base model of each seed.
        base_parsed: [seeds x items], of the base model of each seed.
        clusters: [seeds], as in :func:`resample`.

    Returns:
        All in [-1, 1], intervals over seeds and items. The parts are NaN where one side never
        parses: what share of its answers would be right is unknown.

    Raises:
        ValueError: the shapes differ, or an answer is right and does not parse.
    """
    columns = right, parsed, base_right, base_parsed
    for answer, parses in (columns[:2], columns[2:]):
        if np.any(np.greater(answer, parses)):
            raise ValueError("an answer is right that does not parse")
    drawn = resample(columns, clusters=clusters)
    return GainSplit(
        drawn.estimate(lambda means: means[0] - means[2]),
        drawn.estimate(_format_gain),
        drawn.estimate(_ability_gain),
    )


def pass_at_k(n: int, correct: ArrayLike, k: int) -> Floats:
    """Chance that at least one of ``k`` samples is right, unbiased (arXiv 2107.03374, eq. 1).

    Args:
        n: samples of each item.
        correct: [items], how many of them are right.
        k: samples taken, 1..n.

    Returns:
        [items], in [0, 1]: 1 - C(n - correct, k) / C(n, k).
    """
    from scipy.special import comb

    return np.asarray(1 - comb(n - np.asarray(correct), k) / comb(n, k), dtype=np.float64)


def majority_at_k(answers: Sequence[Sequence[str | None]], correct: ArrayLike, k: int) -> Floats:
    """Chance that the most frequent of ``k`` answers is right: mean over all subsets of k samples.

    Ties are broken uniformly, as an expected value. An answer that does not parse has no vote;
    where none parses, the majority is wrong.

    Args:
        answers: [items x n], normal forms: equal answers are equal strings; None does not parse.
        correct: [items x n] of bool.
        k: samples taken, 1..n.

    Returns:
        [items], in [0, 1].
    """
    said, right = np.asarray(answers, dtype=object), np.asarray(correct, dtype=np.float64)
    voting = said != np.array(None)  # [items x n]
    agree = (said[:, :, None] == said[:, None, :]) & voting[:, None, :] & voting[:, :, None]
    total = np.zeros(len(said))
    subsets = list(combinations(range(said.shape[1]), k))
    for subset in subsets:
        votes = agree[:, subset][:, :, subset].sum(axis=2)  # [items x k], of each sample's answer
        # Winners have equally many votes: the share of right samples is that of right answers.
        winners = (votes == votes.max(axis=1, keepdims=True)) & (votes > 0)
        hits = (winners * right[:, subset]).sum(axis=1)
        total += hits / np.maximum(winners.sum(axis=1), 1)
    return total / len(subsets)


def _format_gain(means: Floats) -> Floats:
    right, parsed, base_right, base_parsed = means
    return np.asarray((parsed - base_parsed) * (right / parsed + base_right / base_parsed) / 2)


def _ability_gain(means: Floats) -> Floats:
    right, parsed, base_right, base_parsed = means
    return np.asarray((right / parsed - base_right / base_parsed) * (parsed + base_parsed) / 2)
