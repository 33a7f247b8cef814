"""Hand-computed figures; intervals that move when the seed, the axis or a stratum changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from othink_pipeline.statistics import (
    Estimate,
    hierarchical_difference,
    holm,
    mcnemar_p,
    paired_difference,
    relative_improvement,
    wilson_interval,
)


def is_unknown(estimate: Estimate) -> bool:
    return math.isnan(estimate.low) and math.isnan(estimate.high) and bool(estimate.reason)


def test_wilson_matches_the_published_r1v_intervals() -> None:
    base, trained = wilson_interval(96, 200), wilson_interval(165, 200)
    assert (base.value, trained.value) == (0.48, 0.825)
    assert [round(100 * x, 1) for x in (base.low, base.high)] == [41.2, 54.9]
    assert [round(100 * x, 1) for x in (trained.low, trained.high)] == [76.6, 87.1]


def test_wilson_by_hand_at_the_edge() -> None:
    # 0 of n: low 0, high z^2 / (n + z^2) with z = 1.959964.
    interval = wilson_interval(0, 10)
    assert interval.low == pytest.approx(0, abs=1e-12)
    assert interval.high == pytest.approx(3.841459 / 13.841459, rel=1e-6)


def test_wilson_without_items_is_unknown() -> None:
    estimate = wilson_interval(0, 0)
    assert math.isnan(estimate.value)
    assert is_unknown(estimate)


@pytest.mark.parametrize(("correct", "n"), [(3, 2), (-1, 2), (0, -1)])
def test_wilson_rejects_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="correct must be in"):
        wilson_interval(correct, n)


def test_paired_difference_is_the_mean_not_the_median() -> None:
    a = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]  # differences: median 0, mean 0.3
    estimate = paired_difference(a, np.zeros(10), seed=0)
    assert estimate.value == pytest.approx(0.3)
    assert 0 <= estimate.low < 0.3 < estimate.high <= 0.7


def test_paired_difference_is_signed_and_seeded() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.random(200), generator.random(200) - 0.2  # continuous: no ties by chance
    first, again = paired_difference(a, b, seed=1), paired_difference(a, b, seed=1)
    other, flipped = paired_difference(a, b, seed=2), paired_difference(b, a, seed=1)
    assert first == again
    assert first != other
    assert flipped.value == pytest.approx(-first.value)
    assert first.low < first.value < first.high


def test_pairing_narrows_the_interval() -> None:
    # b is right where a is, save for 5 items: the difference has almost no variance.
    a = np.arange(200) % 2 == 0
    b = a & (np.arange(200) >= 10)
    paired = paired_difference(a, b, seed=0)
    shuffled = paired_difference(a, np.random.default_rng(0).permutation(b), seed=0)
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_bootstrap_matches_the_normal_interval_and_covers() -> None:
    generator = np.random.default_rng(0)
    misses, widths = 0, []
    for trial in range(200):
        a = generator.random(300) < 0.6
        estimate = paired_difference(a, np.full(300, 0.5), seed=trial, resamples=500)
        misses += not estimate.low <= 0.1 <= estimate.high
        normal_width = 2 * 1.96 * a.std() / math.sqrt(300)
        widths.append((estimate.high - estimate.low) / normal_width)
    assert np.mean(widths) == pytest.approx(1, abs=0.03)
    assert 1 <= misses <= 24  # 5 % of 200 is 10


def test_strata_count_alike_whatever_their_sizes() -> None:
    a = [1] * 90 + [0] * 10
    strata = ["large"] * 90 + ["small"] * 10
    assert paired_difference(a, np.zeros(100), 0).value == pytest.approx(0.9)
    stratified = paired_difference(a, np.zeros(100), 0, strata=strata)
    # No variance within a stratum, so none at all.
    assert (stratified.low, stratified.value, stratified.high) == pytest.approx((0.5, 0.5, 0.5))


def test_no_items_is_unknown() -> None:
    for function in (paired_difference, relative_improvement):
        assert is_unknown(function([], [], 0))
    assert is_unknown(hierarchical_difference(np.zeros((0, 4)), np.zeros((0, 4)), 0))


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match="one shape"):
        paired_difference([1, 0], [1], 0)
    with pytest.raises(ValueError, match="1 axes"):
        paired_difference([[1, 0]], [[1, 1]], 0)
    with pytest.raises(ValueError, match="strata must label 2 items"):
        paired_difference([1, 0], [1, 1], 0, strata=["x"])


def test_relative_improvement_by_hand() -> None:
    a, b = [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]
    estimate = relative_improvement(np.tile(a, 40), np.tile(b, 40), seed=0)
    assert estimate.value == pytest.approx(50)  # 0.6 against 0.4
    assert 20 < estimate.low < 50 < estimate.high < 90


def test_relative_improvement_over_zero_is_unknown() -> None:
    never = relative_improvement([1, 1], [0, 0], 0)
    assert math.isnan(never.value)
    assert is_unknown(never)
    rarely = relative_improvement([1, 1, 1], [1, 0, 0], 0)
    assert rarely.value == pytest.approx(200)
    assert is_unknown(rarely)


def test_one_seed_leaves_the_variation_between_seeds_unknown() -> None:
    estimate = hierarchical_difference([[1, 1, 0, 0]], [[0, 0, 0, 0]], seed=0)
    assert estimate.value == 0.5
    assert is_unknown(estimate)
    assert "seed" in estimate.reason


def test_seeds_that_disagree_widen_the_interval() -> None:
    items = 100
    zeros = np.zeros((4, items))
    level = np.arange(items) / items
    agreeing = np.stack([level < 0.5] * 4)
    disagreeing = np.stack([level < share for share in (0.2, 0.4, 0.6, 0.8)])
    narrow = hierarchical_difference(agreeing, zeros, seed=0)
    wide = hierarchical_difference(disagreeing, zeros, seed=0)
    assert narrow.value == wide.value == 0.5
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_axes_are_seeds_by_items() -> None:
    # Seeds differ, items do not: with the axes swapped there would be nothing between "seeds".
    a = np.repeat([[0.0], [1.0]], 50, axis=1)
    estimate = hierarchical_difference(a, np.zeros((2, 50)), seed=0)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0, 0.5, 1))


def test_items_are_shared_by_the_seeds() -> None:
    # The same answers from every seed say no more than one seed's: the item variance stays.
    answers = np.arange(400) % 2 == 0
    one = paired_difference(answers, np.zeros(400), seed=0)
    four = hierarchical_difference(np.stack([answers] * 4), np.zeros((4, 400)), seed=0)
    assert four.high - four.low == pytest.approx(one.high - one.low, rel=0.1)


def test_hierarchical_difference_is_seeded_and_stratified() -> None:
    noise = np.random.default_rng(0).random((3, 100))
    first = hierarchical_difference(noise, np.zeros((3, 100)), seed=1)
    assert first == hierarchical_difference(noise, np.zeros((3, 100)), seed=1)
    assert first != hierarchical_difference(noise, np.zeros((3, 100)), seed=2)
    a = np.concatenate([np.ones((3, 90)), np.zeros((3, 10))], axis=1)
    strata = ["large"] * 90 + ["small"] * 10
    stratified = hierarchical_difference(a, np.zeros((3, 100)), seed=1, strata=strata)
    assert (stratified.low, stratified.value, stratified.high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [
        (5, 0, 2 / 32),  # two-sided: 2 * 0.5^5
        (1, 5, 14 / 64),  # 2 * (1 + 6) / 2^6
        (3, 3, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    a = [1] * only_a + [0] * only_b + [1, 1, 0]  # concordant pairs say nothing
    b = [0] * only_a + [1] * only_b + [1, 1, 0]
    assert mcnemar_p(a, b) == pytest.approx(p)


def test_mcnemar_without_pairs_is_unknown() -> None:
    assert math.isnan(mcnemar_p([], []))


def test_holm_by_hand_keeps_order_and_skips_unknowns() -> None:
    # Three tests, sorted .01, .02, .04: times 3, 2, 1 gives .03, .04, .04.
    adjusted = holm([0.04, math.nan, 0.01, 0.02])
    assert adjusted[[0, 2, 3]] == pytest.approx([0.04, 0.03, 0.04])
    assert math.isnan(adjusted[1])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    # A later, smaller product may not undercut an earlier one.
    assert holm([0.03, 0.04]) == pytest.approx([0.06, 0.06])
    assert holm([]).size == 0
