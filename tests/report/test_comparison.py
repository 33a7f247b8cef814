"""Pairs of answers: who is held against whom, over which cells, seeds and base models."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from othink_pipeline.report.comparison import base_models, by_seed, compare, pair
from othink_pipeline.report.significance import difference_p
from tests.support.handmade import cell, grid, two_tasks


@pytest.fixture
def predictions() -> pd.DataFrame:
    return two_tasks()


def test_same_task_comparison_by_hand(predictions: pd.DataFrame) -> None:
    comparison = compare(predictions, "grpo_d", "sft", "same")
    assert comparison is not None
    assert (comparison.cells, comparison.pairs) == (2, 12)
    assert comparison.discordant == 3
    # Tasks count alike: counting 5/8 - 3/8, geometry 3/4 - 2/4. Pooled it would be the same 1/4;
    # the relative one is not: (11/16) / (7/16) - 1, pooled (8/12) / (5/12) - 1 = 60 %.
    assert comparison.points == pytest.approx(25)
    assert comparison.relative == pytest.approx(100 * (11 / 7 - 1))
    # Two items of 1/16 and one of 1/8: z = (1/4) / sqrt(6/256).
    assert comparison.p_items == pytest.approx(math.erfc(4 / math.sqrt(6) / math.sqrt(2)))
    assert comparison.unit == "items"


def test_cross_task_comparison_by_hand(predictions: pd.DataFrame) -> None:
    comparison = compare(predictions, "grpo_d", "sft", "cross")
    assert comparison is not None
    # counting 2/8 - 1/8, geometry 2/4 - 1/4
    assert comparison.points == pytest.approx(100 * (1 / 8 + 1 / 4) / 2)


def test_items_are_paired_by_id_not_by_place(predictions: pd.DataFrame) -> None:
    expected = compare(predictions, "grpo_d", "sft", "same")
    shuffled = predictions.sample(frac=1, random_state=0)
    assert compare(shuffled, "grpo_d", "sft", "same") == expected


def test_the_base_model_stands_against_every_cell(predictions: pd.DataFrame) -> None:
    comparison = compare(predictions, "sft", "base", "cross")
    assert comparison is not None
    # counting: 1/8 - 2/8; geometry: 1/4 - 1/4
    assert comparison.points == pytest.approx(-100 / 16)
    one = compare(predictions, "sft", "base", "same", "correct_any", train_task="geometry")
    assert one is not None
    assert one.pairs == 4
    assert one.points == pytest.approx(100 * (3 / 4 - 2 / 4))


def test_a_comparison_uses_only_the_cells_that_both_have(predictions: pd.DataFrame) -> None:
    is_hole = (predictions["method"] == "sft") & (predictions["train_task"] == "geometry")
    comparison = compare(predictions[~is_hole], "grpo_d", "sft", "same")
    assert comparison is not None
    assert (comparison.cells, comparison.pairs) == (1, 8)
    assert comparison.points == pytest.approx(100 * (5 / 8 - 3 / 8))
    assert compare(predictions, "grpo_d", "grpo", "same") is None


def test_a_seed_that_lacks_a_cell_does_not_count_as_a_seed() -> None:
    cells = []
    for seed in range(3):
        cells.append(cell("counting", "sft", seed, "counting", [0, 1, 0, 0]))
        cells.append(cell("counting", "grpo_d", seed, "counting", [0, 1, 1, int(seed == 1)]))
        if seed < 2:
            cells.append(cell("geometry", "sft", seed, "geometry", [0, 0]))
            cells.append(cell("geometry", "grpo_d", seed, "geometry", [0, 1]))
    comparison = compare(grid(*cells), "grpo_d", "sft", "same")
    assert comparison is not None
    assert (comparison.seeds, comparison.cells) == (2, 4)
    # Seeds 0 and 1 only: counting (0 + 0 + 1 + 1/2) / 4 = 3/8, geometry 1/2.
    assert comparison.points == pytest.approx(100 * (3 / 8 + 1 / 2) / 2)
    assert comparison.unit == "seeds"
    assert comparison.low < comparison.items_low  # the seeds differ


def test_no_complete_seed_is_unknown_not_an_error() -> None:
    predictions = grid(
        cell("counting", "sft", 0, "counting", [0, 1]),
        cell("counting", "grpo_d", 0, "counting", [1, 1]),
        cell("geometry", "sft", 1, "geometry", [0, 1]),
        cell("geometry", "grpo_d", 1, "geometry", [1, 1]),
    )
    comparison = compare(predictions, "grpo_d", "sft", "same")
    assert comparison is not None
    assert (comparison.seeds, comparison.cells, comparison.pairs) == (0, 0, 0)
    assert math.isnan(comparison.points)
    assert math.isnan(comparison.low)
    assert math.isnan(comparison.p)
    assert comparison.directions == "counting → counting, geometry → geometry"


def two_base_models() -> pd.DataFrame:
    """Four seeds from two base models, the first of which is right on item 0, the other on 2, 3."""
    answers = [[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    return grid(
        cell("none", "base", None, "counting", [1, 0, 0, 0], base_model=0),
        cell("none", "base", None, "counting", [0, 0, 1, 1], base_model=1),
        *(
            cell("counting", "grpo", seed, "counting", correct, base_model=seed % 2)
            for seed, correct in enumerate(answers)
        ),
    )


def test_a_cell_is_held_against_its_own_base_model() -> None:
    predictions = two_base_models()
    pairs = pair(predictions, "grpo", "base")
    ours, theirs = by_seed(pairs, "correct_a", "correct_b")
    assert theirs.tolist() == [[1, 0, 0, 0], [0, 0, 1, 1]] * 2
    assert ours.tolist() == [[1, 1, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert base_models(pairs) == [0, 1, 0, 1]
    comparison = compare(predictions, "grpo", "base", "same")
    assert comparison is not None
    assert (comparison.cells, comparison.pairs) == (4, 16)
    # Seeds: 2/4 - 1/4, 3/4 - 2/4, 1/4 - 1/4, 4/4 - 2/4: 1/4, 1/4, 0, 1/2.
    assert comparison.points == pytest.approx(100 / 4)
    # Base models: 1/8 and 3/8, so t = (1/4) / (1/8) = 2 with one degree of freedom.
    assert comparison.p == pytest.approx(1 - 2 / math.pi * math.atan(2))
    # Every item stands in four cells and counts once: 1/16 and 3/16, z = (1/4) / sqrt(10/256).
    assert comparison.p_items == pytest.approx(math.erfc(4 / math.sqrt(10) / math.sqrt(2)))
    assert comparison.relative == pytest.approx(100 * (10 / 6 - 1))


def test_two_methods_are_paired_by_seed_whatever_the_base_model() -> None:
    predictions = grid(
        *(cell("counting", "sft", s, "counting", [0, s % 2, 0], s % 2) for s in range(4)),
        *(cell("counting", "grpo", s, "counting", [0, 1, s % 2], s % 2) for s in range(4)),
    )
    comparison = compare(predictions, "grpo", "sft", "same")
    assert comparison is not None
    assert (comparison.cells, comparison.pairs) == (4, 12)
    # Every seed gains 1/3, on another item: no spread between seeds to test with.
    assert (comparison.unit, comparison.points) == ("base models", pytest.approx(100 / 3))
    assert math.isnan(comparison.p)


def test_base_models_that_disagree_widen_the_interval_over_seeds() -> None:
    def grown(base_models: int) -> pd.DataFrame:
        """Half of the seeds gain nothing, half everything."""
        bases = (cell("none", "base", None, "counting", [0] * 40, b) for b in range(base_models))
        cells = (
            cell("counting", "grpo", seed, "counting", [seed % 2] * 40, seed % base_models)
            for seed in range(6)
        )
        return grid(*bases, *cells)

    one, two = (compare(grown(count), "grpo", "base", "same") for count in (1, 2))
    assert one is not None
    assert two is not None
    # Percentiles of 1/6 and 5/6, which Student's t of 5 and √(6/5) stretch by 1.437; of 0 and 1.
    assert (one.low, one.high) == pytest.approx((2.11, 97.89), abs=1e-2)
    assert (two.low, two.high) == (-100, 100)
    assert (one.unit, two.unit) == ("seeds", "base models")
    assert (one.items_low, one.items_high) == (two.items_low, two.items_high)


def test_a_relative_improvement_is_bounded_below_alone() -> None:
    half, all_right = [0, 1] * 20, [1, 1] * 20
    comparison = compare(
        grid(
            *(cell("counting", "sft", seed, "counting", half) for seed in range(2)),
            cell("counting", "grpo", 0, "counting", half),
            cell("counting", "grpo", 1, "counting", all_right),
        ),
        *("grpo", "sft", "same"),
    )
    assert comparison is not None
    assert comparison.relative == pytest.approx(50)
    assert comparison.relative_low == -100
    assert comparison.relative_high > 100


def test_one_training_has_its_interval_over_items(predictions: pd.DataFrame) -> None:
    comparison = compare(predictions, "grpo_d", "sft", "same")
    assert comparison is not None
    assert comparison.p == comparison.p_items
    assert (comparison.low, comparison.high) == (comparison.items_low, comparison.items_high)
    widest = (comparison.relative_low, comparison.relative_high)
    assert widest == (comparison.relative_items_low, comparison.relative_items_high)


def test_a_base_model_with_two_answers_to_an_item_is_refused() -> None:
    twice = grid(two_base_models(), cell("none", "base", None, "counting", [1, 1, 1, 1], 1))
    with pytest.raises(pd.errors.MergeError):
        compare(twice, "grpo", "base", "same")


def test_interval_and_p_are_of_one_mean_where_base_models_have_unequal_seeds() -> None:
    # Seeds 0 and 3 of base model 0 gain 1/2; base models 1 and 2 have a seed each, which lose it.
    right = {0: [1, 1, 0, 0], 3: [1, 1, 0, 0], 1: [0, 0, 0, 0], 2: [0, 0, 0, 0]}
    predictions = grid(
        *(
            cell("counting", "sft", s, "counting", [int(s % 3 > 0)] * 2 + [0] * 2, s % 3)
            for s in right
        ),
        *(cell("counting", "grpo", s, "counting", answers, s % 3) for s, answers in right.items()),
    )
    comparison = compare(predictions, "grpo", "sft", "same")
    assert comparison is not None
    assert comparison.points == pytest.approx(-100 / 6)
    assert comparison.p == difference_p([0.5, -0.5, -0.5])
    assert (comparison.base_models, comparison.seeds, comparison.unit) == (3, 4, "base models")
    # Of four items two differ: -1/12 each, z = (1/6) / sqrt(2/144).
    assert comparison.p_items == pytest.approx(math.erfc(1))
