"""The words follow from the intervals: what one seed cannot tell is not told."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest

from othink_pipeline.report.comparison import Difference, compare_all, differences_table
from othink_pipeline.report.significance import equivalence_p
from othink_pipeline.report.verdict import verdict, verdict_section
from tests.support.handmade import KNOWN, MARGIN, NO_FAILURES, cell, grid, two_tasks

NOTHING_TRAINED = pd.DataFrame()


def row(method: str, baseline: str, points: float, width: float, **other: Any) -> dict[str, Any]:
    return {
        **{"method": method, "baseline": baseline, "scope": "same", "seeds": 1, "cells": 2},
        **{"base_models": 1, "directions": "counting → counting", "pairs": 99, "discordant": 9},
        **{"points": points, "low": points - width, "high": points + width},
        **{"unit": "items", "p": 0.001, "p_holm": 0.004},
        **{"margin": 3.0, "p_equivalent": math.nan, "p_equivalent_holm": math.nan, **other},
    }


def told(*rows: dict[str, Any], training: pd.DataFrame = NOTHING_TRAINED) -> dict[str, str]:
    differences = pd.DataFrame(rows, columns=list(Difference._fields))
    return dict(verdict(differences, training, NO_FAILURES, KNOWN))


def test_gains_are_told_together_and_what_is_not_shown_apart() -> None:
    said = told(
        row("grpo", "base", 52, 3),
        row("grpo_d", "base", 54, 3),
        row("sft", "base", -2, 3, p_holm=0.4),
        row("sft_cot", "base", 9, 3, p_holm=0.06),  # by its interval alone it would be one
        row("grpo", "base", -4, 3, scope="cross"),
    )
    assert said == {
        "Own task": "grpo and GRPO-D gain 52.0 and 54.0 points over the base model; undecided"
        " for SFT (−2.0) and SFT-CoT (+9.0) (over items, one seed)",
        "Other tasks": "grpo loses 4.0 points over the base model (over items, one seed)",
    }


def test_one_seed_decides_nothing_between_two_methods() -> None:
    said = told(row("grpo_d", "sft", 40, 3), row("grpo_d", "sft", 8, 3, scope="cross"))
    assert said == {
        "GRPO-D against SFT": "own task +40.0 [+37.0, +43.0]; other tasks +8.0 [+5.0, +11.0]"
        " (over items, one seed: undecided)"
    }


def test_several_seeds_may_decide() -> None:
    over = {"unit": "seeds", "seeds": 6}
    said = told(
        row("grpo_d", "sft", 40, 3, **over),
        row("grpo_d", "sft", 1, 3, scope="cross", **over, p_holm=0.7),
        row("grpo", "base", 7, 2, **over),
        row("sft", "base", 7, 2, **over, p_holm=math.nan),  # no spread to test by
    )
    assert said["GRPO-D against SFT"] == (
        "own task +40.0 [+37.0, +43.0] different; other tasks +1.0 [−2.0, +4.0] undecided"
        " (over 6 seeds of one base model)"
    )
    assert said["Own task"] == (
        "grpo gains 7.0 points over the base model; undecided for SFT (+7.0)"
        " (over 6 seeds of one base model)"
    )


@pytest.mark.parametrize(
    ("points", "width", "p_holm", "p_equivalent_holm", "conclusion"),
    [
        (0.5, 1.0, 0.9, 0.04, "equivalent within 3 points"),
        (0.5, 1.0, 0.9, 0.06, "undecided"),  # though its interval lies within
        (0.5, 2.6, 0.9, 0.04, "undecided"),  # its interval does not
        (-0.5, 2.6, 0.9, 0.04, "undecided"),
        (2.0, 0.5, 0.01, 0.02, "different, yet equivalent within 3 points"),
        (2.0, 0.5, 0.01, 0.06, "different"),
        (2.0, 0.5, 0.06, math.nan, "undecided"),
    ],
)
def test_equal_is_shown_and_never_assumed(
    points: float, width: float, p_holm: float, p_equivalent_holm: float, conclusion: str
) -> None:
    tests = {"p_holm": p_holm, "p_equivalent_holm": p_equivalent_holm}
    said = told(row("grpo_d", "sft", points, width, unit="seeds", seeds=9, **tests))
    assert said["GRPO-D against SFT"].endswith(f"] {conclusion} (over 9 seeds of one base model)")
    one_seed = told(row("grpo_d", "sft", points, width, **tests))
    assert one_seed["GRPO-D against SFT"].endswith("] (over items, one seed: undecided)")


def test_one_seed_is_not_told_as_several_where_others_have_them() -> None:
    over = {"unit": "base models", "base_models": 3, "seeds": 6}
    said = told(
        row("grpo_d", "sft", 40, 3, **over),
        row("grpo_d", "sft", 8, 3, scope="cross"),
        row("grpo", "base", 7, 2, **over),
        row("sft", "base", 50, 2),
        row("grpo_d", "base", 9, 2, **over),
    )
    assert said["Own task"] == (
        "grpo and GRPO-D gain 7.0 and 9.0 points over the base model (over 3 base models, 6 seeds);"
        " SFT gains 50.0 points over the base model (over items, one seed)"
    )
    assert said["GRPO-D against SFT"] == (
        "own task +40.0 [+37.0, +43.0] different (over 3 base models, 6 seeds);"
        " other tasks +8.0 [+5.0, +11.0] (over items, one seed: undecided)"
    )


def test_gains_over_other_cells_do_not_stand_side_by_side() -> None:
    both = {"directions": "counting → counting, geometry → geometry", "unit": "seeds", "seeds": 3}
    said = told(
        row("grpo_d", "grpo", 0, 0, **{**both, "directions": "geometry → geometry"}, discordant=0),
        row("grpo", "base", 25.5, 3, **both),
        row("grpo_d", "base", 40.5, 3, **{**both, "directions": "geometry → geometry"}),
    )
    end = "over 3 seeds of one base model"
    assert said == {
        "Own task": f"grpo gains 25.5 points over the base model ({end}); GRPO-D gains 40.5 points"
        f" over the base model ({end}; only geometry → geometry)",
        "GRPO-D against grpo": "own task +0.0 [+0.0, +0.0] the same items right"
        f" ({end}; only geometry → geometry)",
    }


def test_without_a_seed_that_has_all_cells_nothing_is_told() -> None:
    none = {"seeds": 0, "base_models": 0, "pairs": 0, "discordant": 0, "p_holm": math.nan}
    pairs = [("grpo", "base"), ("grpo", "sft")]
    said = told(*(row(*pair, math.nan, math.nan, **none) for pair in pairs))
    assert said == {
        "Own task": "undecided for grpo (?) (no seed has all cells)",
        "grpo against SFT": "own task ? [?, ?] (no seed has all cells: undecided)",
    }


def test_what_limits_it_is_told() -> None:
    small = told(training=pd.DataFrame({"kl_pull": [0.013, 0.022, math.nan]}))["KL term"]
    assert "at most 0.022" in small
    assert small.endswith("wants several base models before it is believed")
    assert told(training=pd.DataFrame({"kl_pull": [0.013, 0.3]})) == {}
    assert told(training=pd.DataFrame({"kl_pull": [math.nan]})) == {}
    findings = verdict(
        pd.DataFrame(columns=list(Difference._fields)),
        NOTHING_TRAINED,
        pd.DataFrame({"reason": [""]}),
        KNOWN,
    )
    assert verdict_section(findings).startswith("- **Not all of it**: ")


def test_the_table_of_differences_has_one_unit_a_row() -> None:
    one = differences_table(compare_all(two_tasks(), [("grpo_d", "sft")], MARGIN))
    assert one["unit"].tolist() == ["items"] * 6
    first = one.iloc[0]
    assert (first["method"], first["baseline"], first["scope"]) == ("grpo_d", "sft", "same")
    assert (first["points"], first["seeds"], first["cells"], first["pairs"]) == (25, 1, 2, 12)
    seeds = grid(
        *(cell("counting", "sft", seed, "counting", [0, 1, seed, 0]) for seed in range(3)),
        cell("none", "base", None, "counting", [0, 1, 0, 0]),
    )
    several = differences_table(compare_all(seeds.assign(), [], MARGIN))
    assert several[["unit", "seeds"]].to_numpy().tolist() == [["seeds", 3]]
    assert (several["p"] <= several["p_holm"]).all()


def test_equivalence_is_tested_between_methods_and_adjusted_among_such_tests() -> None:
    # On counting GRPO-D and SFT differ by 0, 0 and 1 of 100 items, on geometry by 0, 1 and 1.
    def right(wrong: int) -> list[int]:
        return [0] * wrong + [1] * (100 - wrong)

    cells = [
        cell(task, method, seed, task, right(wrong))
        for task, by_seed in {"counting": (0, 0, 1), "geometry": (0, 1, 1)}.items()
        for seed, wrong in enumerate(by_seed)
        for method, wrong in (("grpo_d", wrong), ("sft", 0))
    ]
    base = [cell("none", "base", None, task, right(50)) for task in ("counting", "geometry")]
    crossed = [
        cell("counting", method, seed, "geometry", right(wrong))
        for seed in range(3)
        for method, wrong in (("grpo_d", 3 * seed), ("sft", 0))
    ]
    pairs = [("grpo_d", "sft")]
    table = differences_table(compare_all(grid(*cells, *base, *crossed), pairs, 3.0))
    same, cross = table.iloc[0], table.iloc[1]
    assert (same["method"], same["scope"], cross["scope"]) == ("grpo_d", "same", "cross")
    # A seed's difference is the mean over both tasks: 0, -0.5 and -1 points.
    assert same["p_equivalent"] == pytest.approx(equivalence_p([0.0, -0.005, -0.01], 0.03))
    assert cross["p_equivalent"] == pytest.approx(equivalence_p([0.0, -0.03, -0.06], 0.03))
    assert same["p_equivalent_holm"] == pytest.approx(2 * same["p_equivalent"])
    assert cross["p_equivalent_holm"] == pytest.approx(cross["p_equivalent"]) == 0.5
    assert table.iloc[2:]["baseline"].eq("base").all()
    assert table.iloc[2:]["p_equivalent"].isna().all()
    assert table["p_holm"].notna().any()
