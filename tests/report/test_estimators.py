"""Hand-computed figures; intervals that move when the seed, the axis or a stratum changes."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy.stats import t as student_t

from othink_pipeline.report.estimators import (
    RELATIVE,
    difference,
    difference_where,
    improvement,
    majority_at_k,
    mean_score,
    pass_at_k,
    split_gain,
    wilson_interval,
)
from othink_pipeline.report.resampling import Estimate, resample, seed_weights
from othink_pipeline.report.significance import (
    difference_p,
    equivalence_p,
    holm,
    mcnemar_p,
    weighted_items_p,
)


def unit_differences(a: ArrayLike, b: ArrayLike, strata: Any = None, clusters: Any = None) -> Any:
    """Of each unit, as comparisons have them."""
    return difference(resample([a, b], 0, strata=strata, clusters=clusters).units)


def between_seeds_p(a: ArrayLike, b: ArrayLike, *of: Any, **named: Any) -> float:
    return difference_p(unit_differences(a, b, *of, **named))


def over_items(a: ArrayLike, b: ArrayLike, seed: int, **how: Any) -> Estimate:
    """The difference of two columns of items."""
    return resample([[a], [b]], seed, **how).estimate(difference)


def relative_over_items(a: ArrayLike, b: ArrayLike, seed: int) -> Estimate:
    return resample([[a], [b]], seed).estimate(improvement)


def over_seeds(a: ArrayLike, b: ArrayLike, seed: int, **how: Any) -> Estimate:
    """The difference of two columns of [seeds x items]."""
    return resample([a, b], seed, **how).estimate(difference)


def relative_over_seeds(a: ArrayLike, b: ArrayLike, seed: int) -> Estimate:
    return resample([a, b], seed).estimate(improvement, RELATIVE)


def is_unknown(estimate: Estimate) -> bool:
    return math.isnan(estimate.low) and math.isnan(estimate.high)


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


def test_a_difference_is_the_mean_not_the_median() -> None:
    a = [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]  # differences: median 0, mean 0.3
    estimate = over_items(a, np.zeros(10), seed=0)
    assert estimate.value == pytest.approx(0.3)
    assert 0 <= estimate.low < 0.3 < estimate.high <= 0.7


def test_a_difference_is_signed_and_seeded() -> None:
    generator = np.random.default_rng(3)
    a, b = generator.random(200), generator.random(200) - 0.2  # continuous: no ties by chance
    first, again = over_items(a, b, seed=1), over_items(a, b, seed=1)
    other, flipped = over_items(a, b, seed=2), over_items(b, a, seed=1)
    assert first == again
    assert first != other
    assert flipped.value == pytest.approx(-first.value)
    assert first.low < first.value < first.high


def test_pairing_narrows_the_interval() -> None:
    # b is right where a is, save for 5 items: the difference has almost no variance.
    a = np.arange(200) % 2 == 0
    b = a & (np.arange(200) >= 10)
    paired = over_items(a, b, seed=0)
    shuffled = over_items(a, np.random.default_rng(0).permutation(b), seed=0)
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_bootstrap_matches_the_normal_interval_and_covers() -> None:
    generator = np.random.default_rng(0)
    misses, widths = 0, []
    for trial in range(200):
        a = generator.random(300) < 0.6
        estimate = over_items(a, np.full(300, 0.5), seed=trial, resamples=500)
        misses += not estimate.low <= 0.1 <= estimate.high
        normal_width = 2 * 1.96 * a.std() / math.sqrt(300)
        widths.append((estimate.high - estimate.low) / normal_width)
    assert np.mean(widths) == pytest.approx(1, abs=0.03)
    assert 1 <= misses <= 24  # 5 % of 200 is 10


def test_strata_count_alike_whatever_their_sizes() -> None:
    a = [1] * 90 + [0] * 10
    strata = ["large"] * 90 + ["small"] * 10
    assert over_items(a, np.zeros(100), 0).value == pytest.approx(0.9)
    stratified = over_items(a, np.zeros(100), 0, strata=strata)
    # No variance within a stratum, so none at all.
    assert (stratified.low, stratified.value, stratified.high) == pytest.approx((0.5, 0.5, 0.5))


def test_no_items_is_unknown() -> None:
    for function in (over_items, relative_over_items):
        assert is_unknown(function([], [], 0))
    assert is_unknown(over_seeds(np.zeros((0, 4)), np.zeros((0, 4)), 0))


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match="one shape"):
        over_items([1, 0], [1], 0)
    with pytest.raises(ValueError, match="2 axes"):
        over_items([[1, 0]], [[1, 1]], 0)
    with pytest.raises(ValueError, match="strata must label 2 items"):
        over_items([1, 0], [1, 1], 0, strata=["x"])
    with pytest.raises(ValueError, match="clusters must label 2 seeds"):
        over_seeds([[1], [0]], [[1], [1]], 0, clusters=[0])
    with pytest.raises(ValueError, match="one shape"):
        difference_where([[1, 0]], [[1, 0]], [[True]])


def test_relative_improvement_by_hand() -> None:
    a, b = [1, 1, 1, 0, 0], [1, 1, 0, 0, 0]
    estimate = relative_over_items(np.tile(a, 40), np.tile(b, 40), seed=0)
    assert estimate.value == pytest.approx(50)  # 0.6 against 0.4
    assert 20 < estimate.low < 50 < estimate.high < 90


def test_relative_improvement_over_zero_is_unknown() -> None:
    never = relative_over_items([1, 1], [0, 0], 0)
    assert math.isnan(never.value)
    assert is_unknown(never)
    rarely = relative_over_items([1, 1, 1], [1, 0, 0], 0)
    assert rarely.value == pytest.approx(200)
    assert is_unknown(rarely)


def test_seeds_that_disagree_widen_the_interval() -> None:
    items = 100
    zeros = np.zeros((4, items))
    level = np.arange(items) / items
    agreeing = np.stack([level < 0.5] * 4)
    disagreeing = np.stack([level < share for share in (0.2, 0.4, 0.6, 0.8)])
    narrow = over_seeds(agreeing, zeros, seed=0)
    wide = over_seeds(disagreeing, zeros, seed=0)
    assert narrow.value == wide.value == 0.5
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_axes_are_seeds_by_items() -> None:
    # Seeds differ, items do not: with the axes swapped there would be nothing between "seeds".
    a = np.repeat([[0.0], [1.0]], 50, axis=1)
    estimate = over_seeds(a, np.zeros((2, 50)), seed=0)
    # Twice 12.7 / 1.96 · √2 the percentiles' half of 1/2, and no difference is beyond -1 or 1.
    assert (estimate.low, estimate.value, estimate.high) == (-1, 0.5, 1)


def test_items_are_shared_by_the_seeds() -> None:
    # The same answers from every seed say no more than one seed's: the item variance stays.
    answers = np.arange(400) % 2 == 0
    one = over_items(answers, np.zeros(400), seed=0)
    four = over_seeds(np.stack([answers] * 4), np.zeros((4, 400)), seed=0)
    assert four.high - four.low == pytest.approx(one.high - one.low, rel=0.1)


def test_a_difference_over_seeds_is_seeded_and_stratified() -> None:
    noise = np.random.default_rng(0).random((3, 100))
    first = over_seeds(noise, np.zeros((3, 100)), seed=1)
    assert first == over_seeds(noise, np.zeros((3, 100)), seed=1)
    assert first != over_seeds(noise, np.zeros((3, 100)), seed=2)
    a = np.concatenate([np.ones((3, 90)), np.zeros((3, 10))], axis=1)
    strata = ["large"] * 90 + ["small"] * 10
    stratified = over_seeds(a, np.zeros((3, 100)), seed=1, strata=strata)
    assert (stratified.low, stratified.value, stratified.high) == pytest.approx((0.5, 0.5, 0.5))


def test_base_models_are_drawn_first() -> None:
    # Base model 1 gains everything, base model 0 nothing. Of six independent seeds 1 or 5 would
    # stand at the ends (2 x 1/64 have 0 or 6); of two base models a draw is one of them 1/2 times.
    a, b = np.repeat([[0.0], [1.0]] * 3, 50, axis=1), np.zeros((6, 50))
    alone = over_seeds(a, b, seed=0)
    clustered = over_seeds(a, b, seed=0, clusters=[0, 1] * 3)
    half = 1 / 3 * student_t.ppf(0.975, 5) / 1.959964 * math.sqrt(6 / 5)
    assert (alone.low, alone.value, alone.high) == pytest.approx((0.5 - half, 0.5, 0.5 + half))
    assert (clustered.low, clustered.value, clustered.high) == (-1, 0.5, 1)


@pytest.mark.parametrize(
    ("seeds", "spread", "clusters"),
    [(2, 0.06, None), (3, 0.06, None), (6, 0.0, None), (6, 0.15, [0, 1, 2] * 2)],
)
def test_an_interval_over_few_seeds_covers(
    seeds: int, spread: float, clusters: list[int] | None
) -> None:
    """67, 80 and 75 % by percentiles alone where units differ more than items."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        units = generator.normal(0, spread, seeds if clusters is None else 3)
        level = units if clusters is None else units[clusters]
        a = level[:, None] + generator.normal(0, 0.07, 50) + generator.normal(0, 0.07, (seeds, 50))
        estimate = over_seeds(a, 0 * a, trial, resamples=200, clusters=clusters)
        hits += estimate.low <= 0 <= estimate.high
    assert hits >= 181  # 95 % of 200 is 190, of which three standard errors are 9


def test_one_base_model_is_as_none_given() -> None:
    noise = np.random.default_rng(0).random((3, 100))
    given = over_seeds(noise, 0 * noise, seed=1, clusters=["x"] * 3)
    assert given == over_seeds(noise, 0 * noise, seed=1)


def test_seeds_are_drawn_anew_each_time_their_base_model_is() -> None:
    weights = seed_weights([0, 0, 1, 1], 40_000, np.random.default_rng(0))
    assert weights.sum(axis=1) == pytest.approx(1)
    assert weights.mean(axis=0) == pytest.approx(np.full(4, 1 / 4), abs=0.01)
    # One seed alone: its base model twice, 1/4, and that seed in all four draws, 1/16.
    assert (weights[:, 0] == 1).mean() == pytest.approx(1 / 64, abs=0.003)
    # One base model alone, twice: 1/4; among independent seeds it would be 1/16.
    assert (weights[:, :2].sum(axis=1) == 1).mean() == pytest.approx(1 / 4, abs=0.01)


def test_base_models_count_alike_whatever_their_seeds() -> None:
    a = np.repeat([[0.0], [0.0], [0.0], [1.0]], 10, axis=1)
    drawn = resample([a], 0, clusters=[0, 0, 0, 1])
    assert drawn.means.tolist() == [1 / 2]  # as its units have it: 0 and 1
    assert drawn.units.tolist() == [[0, 1]]
    assert drawn.draws.mean() == pytest.approx(1 / 2, abs=0.03)
    weights = seed_weights([0, 0, 0, 1], 1_000, np.random.default_rng(0))
    assert set(weights[:, 3]) == {0, 1 / 2, 1}  # never, once, twice


def test_relative_improvement_over_seeds() -> None:
    a, b = np.ones((2, 40)), np.tile([1.0, 0.0], (2, 20))
    estimate = relative_over_seeds(a, b, seed=0)
    assert estimate.value == pytest.approx(100)
    assert 40 < estimate.low < 100 < estimate.high < 250
    assert math.isnan(relative_over_seeds(a, 0 * b, seed=0).value)


def test_mean_score_of_one_seed_is_over_items_and_of_several_over_seeds() -> None:
    answers = (np.arange(100) < 30).astype(float)
    one = mean_score([answers])
    assert one == over_items(answers, 0 * answers, seed=0)
    several = mean_score([answers, 1 - answers])
    assert several.value == 0.5
    assert (several.low, several.high) == (0, 1)  # two seeds, 40 points apart: no share is beyond
    assert mean_score([answers, 1 - answers], clusters=[0, 0]) == several


def test_seeds_that_are_all_right_or_all_wrong_have_wilsons_interval_of_the_items() -> None:
    assert mean_score(np.zeros((3, 200))) == wilson_interval(0, 200)
    assert mean_score(np.ones((3, 200))) == wilson_interval(200, 200)


def test_a_gain_splits_into_format_and_ability_by_hand() -> None:
    parsed, right = np.arange(10) < 8, np.arange(10) < 6  # 0.8, and 0.75 of these
    base_parsed, base_right = np.arange(10) >= 5, np.arange(10) >= 8  # 0.5, and 0.4 of these
    split = split_gain(*(np.tile(x, (1, 30)) for x in (right, parsed, base_right, base_parsed)))
    assert split.total.value == pytest.approx(0.4)
    assert split.format.value == pytest.approx(0.3 * (0.75 + 0.4) / 2)
    assert split.ability.value == pytest.approx(0.35 * (0.8 + 0.5) / 2)
    assert split.format.value + split.ability.value == pytest.approx(split.total.value)
    for part in split:
        assert part.value - 0.2 < part.low < part.value < part.high < part.value + 0.2


def test_a_gain_of_one_kind_is_all_of_that_kind() -> None:
    half, all_of_them = [[1, 0] * 20], [[1, 1] * 20]
    only_format = split_gain([[1, 1, 0, 0] * 10], all_of_them, [[1, 0, 0, 0] * 10], half)
    assert (only_format.format.value, only_format.ability.value) == pytest.approx((0.25, 0))
    only_ability = split_gain([[1, 1, 0, 0] * 10], all_of_them, [[1, 0, 0, 0] * 10], all_of_them)
    assert (only_ability.format.value, only_ability.ability.value) == pytest.approx((0, 0.25))
    assert only_ability.format.low == only_ability.format.high == 0


def test_a_split_without_parsed_answers_is_unknown() -> None:
    never, always = np.zeros((1, 20)), np.ones((1, 20))
    split = split_gain(always, always, never, never)
    assert (split.total.value, split.total.low) == (1, 1)
    for part in (split.format, split.ability):
        assert math.isnan(part.value)
        assert is_unknown(part)
    once = np.arange(20)[None] == 0  # one answer parses: some resamples have none
    rarely = split_gain(always, always, once, once)
    assert rarely.ability.value == pytest.approx(0)
    assert is_unknown(rarely.ability)
    with pytest.raises(ValueError, match="right that does not parse"):
        split_gain(always, never, never, never)
    with pytest.raises(ValueError, match="right that does not parse"):
        split_gain(never, never, always, never)


def test_seeds_widen_a_split() -> None:
    parsed = np.ones((4, 100))
    right = np.stack([np.arange(100) < n for n in (20, 40, 60, 80)]).astype(float)
    same = np.stack([np.arange(100) < 50] * 4).astype(float)
    wide = split_gain(right, parsed, 0 * parsed, parsed).ability
    narrow = split_gain(same, parsed, 0 * parsed, parsed).ability
    assert wide.value == narrow.value == pytest.approx(0.5)
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_a_difference_where_it_counts_by_hand() -> None:
    a, b = [[1, 1, 1, 0] * 10], [[0, 1, 0, 1] * 10]
    chosen = [[True, True, True, False] * 10]
    estimate = difference_where(a, b, chosen)
    assert estimate.value == pytest.approx(2 / 3)
    assert 0.4 < estimate.low < 2 / 3 < estimate.high < 0.95
    assert difference_where(a, b, np.logical_not(chosen)).value == -1
    nothing = difference_where(a, b, np.zeros((1, 40)))
    assert math.isnan(nothing.value)


def test_the_test_between_seeds_by_hand() -> None:
    # Differences 0.1, 0.2, 0.3: t = 0.2 / (0.1 / sqrt 3); with 2 degrees of freedom
    # p = 1 - t / sqrt(2 + t^2).
    a = np.stack([np.arange(10) < n for n in (1, 2, 3)])
    t = 0.2 / (0.1 / math.sqrt(3))
    assert between_seeds_p(a, 0 * a) == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert between_seeds_p(0 * a, a) == between_seeds_p(a, 0 * a)
    # As strata 0..4 and 5..9 the differences are halves of 1/5, 2/5, 3/5: the same.
    strata = [0] * 5 + [1] * 5
    assert between_seeds_p(a, 0 * a, strata) == pytest.approx(between_seeds_p(a, 0 * a))
    # A stratum of the first item alone counts as much as the other nine.
    units = np.array([0.5, (1 + 1 / 9) / 2, (1 + 2 / 9) / 2])
    t = units.mean() / (units.std(ddof=1) / math.sqrt(3))
    strata = [0] + [1] * 9
    assert between_seeds_p(a, 0 * a, strata) == pytest.approx(1 - t / math.sqrt(2 + t**2))


def test_the_units_between_seeds_are_the_base_models() -> None:
    # Base models: means of (0, 0.2) and (0.2, 0.4); t = 0.2 / 0.1, one degree of freedom:
    # p = 1 - 2 / pi * atan t. Four independent seeds would have three.
    a = np.stack([np.arange(10) < n for n in (0, 2, 2, 4)])
    clustered = between_seeds_p(a, 0 * a, clusters=[7, 8, 7, 8][::-1])
    assert clustered != between_seeds_p(a, 0 * a)
    p = between_seeds_p(a, 0 * a, clusters=[7, 7, 8, 8])
    assert p == pytest.approx(1 - 2 / math.pi * math.atan(2))
    assert between_seeds_p(a, 0 * a, clusters=[7] * 4) == between_seeds_p(a, 0 * a)


def test_between_too_few_or_equal_seeds_nothing_is_known() -> None:
    assert math.isnan(between_seeds_p([[1, 0]], [[0, 0]]))
    assert math.isnan(between_seeds_p([[1, 0], [0, 1]], [[0, 0], [0, 0]]))
    assert math.isnan(between_seeds_p(np.zeros((0, 0)), np.zeros((0, 0))))
    with pytest.raises(ValueError, match="2 axes"):
        between_seeds_p([1, 0], [0, 0])
    for units in ([], [0.01], [0.0, 0.0, 0.0]):  # of equal ones, too: no spread to judge by
        assert math.isnan(equivalence_p(units, 0.03))


def test_equivalence_by_hand() -> None:
    # Mean 0.01, standard error 0.01 / sqrt(3); two degrees of freedom, where one tail is
    # P(T > t) = (1 - t / sqrt(2 + t^2)) / 2. The nearer bound decides: 0.04 away, not 0.06.
    units, error = [0.0, 0.01, 0.02], 0.01 / math.sqrt(3)
    t = (0.05 - 0.01) / error
    assert equivalence_p(units, 0.05) == pytest.approx((1 - t / math.sqrt(2 + t**2)) / 2)
    mirrored = [-unit for unit in units]
    assert equivalence_p(mirrored, 0.05) == pytest.approx(equivalence_p(units, 0.05))
    assert equivalence_p(units, 0.01) == pytest.approx(0.5)  # on the bound
    assert equivalence_p(units, 0.005) > 0.5  # beyond it
    # Not to be told from zero is not to be equivalent: the same mean, ten times the spread.
    wide = [-0.09, 0.01, 0.11]
    assert difference_p(wide) > 0.05
    assert equivalence_p(wide, 0.05) > 0.05


def test_equivalence_is_a_90_percent_interval_inside_the_margin() -> None:
    units = np.random.default_rng(7).normal(0.01, 0.02, size=9)
    mean, error = units.mean(), units.std(ddof=1) / math.sqrt(len(units))
    low, high = mean + error * student_t(len(units) - 1).ppf([0.05, 0.95])
    edge = max(-low, high)
    assert equivalence_p(units, edge) == pytest.approx(0.05)
    assert equivalence_p(units, 1.01 * edge) < 0.05 < equivalence_p(units, 0.99 * edge)


def test_equivalence_has_the_units_of_the_test_of_a_difference() -> None:
    # Two base models of two seeds each: (0, 0.2) and (0.2, 0.4) are 0.1 and 0.3, one degree of
    # freedom: P(T > t) = 1/2 - atan(t) / pi, with t = (0.5 - 0.2) / 0.1.
    a = np.stack([np.arange(10) < n for n in (0, 2, 2, 4)])
    units = unit_differences(a, 0 * a, clusters=[7, 7, 8, 8])
    assert units == pytest.approx([0.1, 0.3])
    assert equivalence_p(units, 0.5) == pytest.approx(0.5 - math.atan(3) / math.pi)
    assert len(unit_differences(a, 0 * a)) == 4


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
    assert mcnemar_p(np.subtract(a, b)) == pytest.approx(p)


def test_mcnemar_without_pairs_is_unknown() -> None:
    assert math.isnan(mcnemar_p([]))
    assert math.isnan(weighted_items_p([]))


def test_items_are_tested_as_they_are_weighted() -> None:
    # 5 items against 45 of a test set of 200, 100 against 10 of one of 754: the mean over both sets
    # is below zero, though far more items are above it.
    parts = np.array([1] * 5 + [-1] * 45) / 200, np.array([1] * 100 + [-1] * 10) / 754
    x = np.concatenate(parts) / 2
    z = (40 / 200 - 90 / 754) / math.sqrt(50 / 200**2 + 110 / 754**2)
    assert weighted_items_p(x) == pytest.approx(math.erfc(z / math.sqrt(2)))
    assert 0.02 < weighted_items_p(x) < 0.05
    assert weighted_items_p(-3 * x) == pytest.approx(weighted_items_p(x))
    assert weighted_items_p([0.0, 0.0]) == 1


def test_holm_by_hand_keeps_order_and_skips_unknowns() -> None:
    # Three tests, sorted .01, .02, .04: times 3, 2, 1 gives .03, .04, .04.
    adjusted = holm([0.04, math.nan, 0.01, 0.02])
    assert adjusted[[0, 2, 3]] == pytest.approx([0.04, 0.03, 0.04])
    assert math.isnan(adjusted[1])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    # A later, smaller product may not undercut an earlier one.
    assert holm([0.03, 0.04]) == pytest.approx([0.06, 0.06])
    assert holm([]).size == 0


def test_pass_at_k_by_hand() -> None:
    # 4 samples, 2 taken: none right; one right, C(3, 2) / C(4, 2) = 1/2 miss it; 3: all hit.
    assert pass_at_k(4, [0, 1, 2, 3, 4], 2) == pytest.approx([0, 1 / 2, 5 / 6, 1, 1])
    assert pass_at_k(4, [0, 1, 2, 3, 4], 1) == pytest.approx([0, 1 / 4, 1 / 2, 3 / 4, 1])
    assert pass_at_k(4, [0, 1], 4) == pytest.approx([0, 1])


@pytest.mark.parametrize("k", range(1, 6))
def test_sampling_measures_are_means_over_all_subsets(k: int) -> None:
    generator = np.random.default_rng(k)
    names = np.array(["7", "8", "9", None], dtype=object)
    answers = [list(names[row]) for row in generator.integers(4, size=(40, 5))]
    correct = [[answer == "7" for answer in row] for row in answers]

    def majority(drawn: tuple[str | None, ...]) -> float:
        votes = Counter(answer for answer in drawn if answer is not None)
        winners = [answer for answer, n in votes.items() if n == max(votes.values())]
        return ("7" in winners) / max(1, len(winners))

    passed = [np.mean(["7" in drawn for drawn in combinations(row, k)]) for row in answers]
    voted = [np.mean([majority(drawn) for drawn in combinations(row, k)]) for row in answers]
    assert pass_at_k(5, np.sum(correct, axis=1), k) == pytest.approx(passed)
    assert majority_at_k(answers, correct, k) == pytest.approx(voted)


def test_majority_at_k_by_hand() -> None:
    def majority(answers: list[str | None], k: int) -> float:
        return float(majority_at_k([answers], [[answer == "7" for answer in answers]], k)[0])

    assert majority(["7", "7", "8"], 3) == 1
    assert majority(["7", "8", "8"], 3) == 0
    assert majority(["7", "7", "8"], 2) == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert majority(["7", "8", "9"], 3) == pytest.approx(1 / 3)  # a tie
    assert majority(["7", None, None], 3) == 1  # what does not parse has no vote
    assert majority([None, None, None], 3) == 0
    assert majority_at_k([[None, None]], [[True, True]], 2) == 0  # whatever is said of it
    assert majority(["7", None, None], 1) == pytest.approx(1 / 3)
