"""A tiny grid whose figures can be computed by hand, then every kind of hole in it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

from othink_pipeline.report.comparison import differences_table
from othink_pipeline.report.figures import heat_map
from othink_pipeline.report.markdown import Results, report_markdown
from othink_pipeline.report.matrix import matrix_text, sort_methods, transfer_matrix
from othink_pipeline.report.parameters import Improvement, KnownMethods, Published
from tests.support.handmade import (
    KNOWN,
    NO_FAILURES,
    NOTHING_PUBLISHED,
    cell,
    grid,
    matrix_of,
    report_on,
    two_tasks,
)

MATRIX_COLUMNS = [
    *("train_task", "method", "seed", "base_model", "eval_task", "n", "correct", "accuracy"),
    *("ci_low", "ci_high", "accuracy_any", "format_rate", "think_rate", "unparseable_rate"),
    "completion_tokens_mean",
]


@pytest.fixture
def predictions() -> pd.DataFrame:
    return two_tasks()


@pytest.fixture
def training() -> pd.DataFrame:
    cells = [(task, method) for task in ("counting", "geometry") for method in ("sft", "grpo_d")]
    return pd.DataFrame(
        {
            "task": [task for task, _ in cells],
            "method": [method for _, method in cells],
            "seed": 0,
            "updates": 60,
            "prompts": 960,
            "completion_tokens": [1000, 2000, 3000, 1234567],
            "seconds": [1.5, 2.5, 3.5, math.nan],
        }
    )


def test_matrix_values_by_hand(predictions: pd.DataFrame) -> None:
    matrix = matrix_of(predictions)
    assert list(matrix.columns) == MATRIX_COLUMNS
    assert len(matrix) == 10
    row = matrix.query("train_task=='counting' and method=='grpo_d' and eval_task=='counting'")
    values = row.iloc[0]
    assert (values["n"], values["correct"], values["seed"]) == (8, 5, 0)
    assert values["accuracy"] == 0.625
    # Wilson: (5 + z2/2 +- z*sqrt(5*3/8 + z2/4)) / (8 + z2), z2 = 3.841459
    spread = math.sqrt(3.841459 * (15 / 8 + 3.841459 / 4))
    assert values["ci_low"] == pytest.approx((5 + 1.9207295 - spread) / 11.841459, abs=1e-6)
    assert values["ci_high"] == pytest.approx((5 + 1.9207295 + spread) / 11.841459, abs=1e-6)
    assert values["accuracy_any"] == 0.75
    assert (values["format_rate"], values["think_rate"]) == (0.875, 0.75)
    assert values["unparseable_rate"] == 0.125
    assert values["completion_tokens_mean"] == 13.5


def test_matrix_order_and_the_base_model(predictions: pd.DataFrame) -> None:
    matrix = matrix_of(predictions)
    assert list(matrix["method"]) == ["base"] * 2 + (["sft"] * 2 + ["grpo_d"] * 2) * 2
    assert list(matrix["eval_task"]) == ["counting", "geometry"] * 5
    assert list(matrix["train_task"]) == ["none"] * 2 + ["counting"] * 4 + ["geometry"] * 4
    assert matrix["seed"].dtype == "Int64"
    assert matrix["seed"].isna().sum() == 2


def test_matrix_text_is_fixed_width_with_marks_and_holes(predictions: pd.DataFrame) -> None:
    is_hole = (predictions["method"] == "sft") & (predictions["eval_task"] == "geometry")
    lines = matrix_text(matrix_of(predictions[~is_hole])).splitlines()
    assert lines[0].split() == [
        "trained",
        "on",
        "method",
        "seed",
        *("->", "counting"),
        "->",
        "geometry",
    ]
    grpo_d = next(line for line in lines if line.startswith("counting    grpo_d"))
    assert "62.5 [30.6, 86.3]*" in grpo_d
    assert grpo_d.count("*") == 1
    sft = next(line for line in lines if line.startswith("counting    sft"))
    assert sft.endswith("—")
    assert sft.index("—") == lines[0].index("-> geometry")
    assert lines[2].split()[:3] == ["none", "base", "—"]


def test_methods_stand_in_the_order_of_the_grid_and_others_after_them() -> None:
    found = ["zeta", "sft", "base", "alpha", "grpo_d", "sft"]
    assert sort_methods(found, ["grpo_d", "grpo", "sft"]) == [
        *("base", "grpo_d", "sft", "alpha", "zeta")
    ]


def test_the_grid_alone_decides_the_order_of_rows(
    predictions: pd.DataFrame, training: pd.DataFrame
) -> None:
    """Whatever the methods are called, and in whatever order their rows come."""
    names = {"sft": "b", "grpo_d": "a"}
    mine = predictions.replace({"method": names}).sample(frac=1, random_state=0)
    costs = training.replace({"method": names})
    for methods in (("a", "b"), ("b", "a")):
        matrix = transfer_matrix(mine, NO_FAILURES, methods)
        assert matrix["method"].tolist() == [
            *["base"] * 2,
            *[method for _ in ("counting", "geometry") for method in methods for _ in range(2)],
        ]
        results = Results(matrix, mine, costs, NO_FAILURES, differences_table([]), [])
        text = report_markdown(results, methods, KNOWN, NOTHING_PUBLISHED, {})
        for title in ("Accuracy", "Means", "Format", "Does thinking help?", "Costs"):
            rows = section(text, title).splitlines()[2:]
            named = [
                word for row in rows for word in row.split(" | ") if word.strip("| ") in methods
            ]
            assert [word.strip("| ") for word in dict.fromkeys(named)] == list(methods), title


def test_report_by_hand(predictions: pd.DataFrame, training: pd.DataFrame) -> None:
    text = report_on(predictions, training, comparisons=[("grpo_d", "sft")])
    for expected in (
        "- parent run: abc123\n- commit: f00",
        "| counting | grpo_d | 1 | **62.5 [30.6, 86.3]** | 50.0 [15.0, 85.0] |",
        "| none | base | — | 25.0 [7.1, 59.1] | 25.0 [4.6, 69.9] |",
        "| base | 25.0 (2) | 25.0 (2) |",
        "| grpo_d | 68.8 (2) | 37.5 (2) |",
        "| grpo_d minus sft | same-task | 2 | 12 | +25.0 [",
        "| grpo_d | sft | same-task | +57.1 [",
        "**The variation between seeds is unknown**",
        "| geometry | grpo_d | 0 | 60 | 960 | 1,234,567 | — |",
        "| counting | grpo_d | counting | 62.5 | 75.0 | 87.5 | 75.0 | 12.5 | 13.5 |",
        "| counting | grpo_d | counting | 66.7 (n = 6) | 16.7 | 50.0 (n = 2) | 50.0 | — |",
    ):
        assert expected in text
    assert "published" not in text
    assert text.index("in points") < text.index("Relative improvement")
    assert section(text, "Relative improvement").count("\n| grpo_d | sft |") == 2
    assert "| base |" not in section(text, "Relative improvement")


PUBLISHED = Published(
    source="a paper",
    accuracy={
        "counting": {"2B": {"base": 42.5, "grpo_d": 76.5}, "7B": {"base": 76.0, "ppo": 78.0}},
        "chess": {"2B": {"base": 1.0}},
    },
    improvements=tuple(
        Improvement(trained_on=own, tested_on=other, method="grpo_d", over=over, percent=percent)
        for own, other, over, percent in (
            ("counting", "geometry", "base", 4.25),
            ("geometry", "counting", "base", 63.53),
            ("counting", "geometry", "ppo", -77.77),
        )
    ),
)


def test_published_figures_stand_beside_ours_each_direction_apart(
    predictions: pd.DataFrame, training: pd.DataFrame
) -> None:
    text = report_on(predictions, training, published=PUBLISHED)
    text = section(text, "Beside published figures")
    assert "| trained and tested on | method | this run, % | 2B, % | 7B, % |" in text
    assert "| counting | base | 25.0 [7.1, 59.1] | 42.50 | 76.00 |" in text
    assert "| counting | grpo_d | 62.5 [30.6, 86.3] | 76.50 | — |" in text
    assert "| counting | ppo | — | — | 78.00 |" in text
    assert "chess" not in text
    # 50.0 over 25.0 from counting to geometry; 25.0 over 25.0 back.
    assert "| counting | geometry | grpo_d over base | +100.0 [" in text
    assert "| +4.25 |" in text
    assert "| geometry | counting | grpo_d over base | +0.0 [" in text
    assert "| +63.53 |" in text
    assert "77.77" not in text  # this run has no such method
    assert "**other models, on other data**: a paper" in text


def test_figures_of_methods_that_are_not_in_the_run_are_left_out(
    predictions: pd.DataFrame, training: pd.DataFrame
) -> None:
    others = predictions.replace({"method": {"grpo_d": "mine"}})
    text = report_on(others, training, published=PUBLISHED)
    assert "published" not in text


def test_report_adjusts_for_all_its_tests(
    predictions: pd.DataFrame, training: pd.DataFrame
) -> None:
    report = report_on(predictions, training, comparisons=[("grpo_d", "sft")])
    text = section(report, "Paired tests: differences in points")
    rows = [line for line in text.splitlines() if " minus " in line]
    assert len(rows) == 6
    assert "(2 between methods; 4 against the base model)" in text
    # GRPO-D beats the base on 4 items of counting and 2 of geometry and loses on 1 of counting:
    # z = (3/16 + 2/8) / sqrt(5/16² + 2/8²) = 7 / √13, p = 0.052, times 4 tests.
    smallest = [row for row in rows if row.startswith("| grpo_d minus base | same-task")]
    assert [row.split(" | ")[-6:] for row in smallest] == [
        ["0.052", "?", "0.209", "—", "—", "undecided, one seed |"]
    ]
    assert rows[0].endswith(" | ? | ? | undecided, one seed |")
    # Against SFT 4 / √6 and 3 / √5: 0.102 and 0.180, times 2.
    assert [row.split(" | ")[-4] for row in rows[:2]] == ["0.205", "0.205"]


@pytest.mark.parametrize(
    ("trained", "verdict"),
    [
        ([1] * 30 + [0] * 70, "**met**"),
        ([1] * 24 + [0] * 76, "**not met**"),  # interval above zero, only 4 points
        ([1] * 1 + [0] * 73 + [1] * 26, "**not met**"),  # 7 points, interval includes zero
    ],
)
def test_positive_control(trained: list[int], verdict: str, training: pd.DataFrame) -> None:
    predictions = grid(
        cell("none", "base", None, "counting", [1] * 20 + [0] * 80),
        cell("counting", "grpo", 0, "counting", trained),
        cell("geometry", "grpo_d", 0, "counting", [1] * 100),
    )
    text = report_on(predictions, training)
    assert f"interval above zero): {verdict} on counting." in text


def test_controls_are_those_that_the_configuration_names(training: pd.DataFrame) -> None:
    predictions = grid(
        cell("none", "base", None, "counting", [1] * 20 + [0] * 80),
        cell("counting", "mine", 0, "counting", [1] * 30 + [0] * 70),
        cell("counting", "grpo", 0, "counting", [1] * 20 + [0] * 80),
    )
    known = KnownMethods(
        labels={"mine": "Mine"}, positive_controls=("mine", "absent"), format_control="grpo"
    )
    said = section(report_on(predictions, training, known=known), "Controls")
    assert "on its own task Mine or absent gains" in said
    assert "**met** on counting." in said
    assert said.count("counting: mine +10.0 [") == 1
    assert "counting: grpo" not in said
    assert "Negative control: `grpo` is rewarded" in said
    none = KnownMethods(labels={}, positive_controls=(), format_control=None)
    assert "## Controls" not in report_on(predictions, training, known=none)


@pytest.mark.parametrize(
    "query",
    [
        "train_task == eval_task",
        "train_task == eval_task or method == 'base'",
        "method == 'base'",
        "method == 'sft'",
        "method != 'base'",
        "method != 'grpo_d'",
        "train_task == 'counting'",
        "not (method == 'sft' and train_task == 'counting' and eval_task == 'geometry')",
    ],
)
def test_any_subset_of_the_grid_has_a_report_and_figures(
    predictions: pd.DataFrame, training: pd.DataFrame, query: str
) -> None:
    part = predictions.query(query)
    text = report_on(part, training.iloc[:0])
    assert "nan" not in text
    assert "Nothing was trained." in text
    assert heat_map(matrix_of(part), KNOWN).axes[0].images


def test_more_tasks_and_seeds_have_a_report(training: pd.DataFrame) -> None:
    tasks = ("counting", "geometry", "charts")
    predictions = grid(
        *(
            cell(train, method, seed, test, [0, 1, seed, int(method == "grpo_d"), 0, 1])
            for train in tasks
            for method in ("sft", "grpo", "grpo_d", "grpo_format", "mine")
            for seed in range(2)
            for test in tasks
            if (train, method, test) != ("charts", "mine", "geometry")
        )
    )
    pairs = [("grpo_d", "sft"), ("mine", "grpo")]
    text = report_on(predictions, training, comparisons=pairs)
    assert "Differences are told over 2 seeds of one base model:" in text
    tests = [line for line in text.splitlines() if " minus " in line]
    assert tests
    assert "[?]" not in "".join(tests)
    assert "Negative control: `grpo_format`" in text
    # Mean of 2/6 and 3/6; a Wilson interval of 6 or 12 items would not end at these sixths.
    row = next(line for line in text.splitlines() if line.startswith("| charts | mine | 2 |"))
    assert "| **41.7 [" in row
    assert "| — |" in row


def test_directions_that_go_apart_are_told_apart(training: pd.DataFrame) -> None:
    """GRPO-D is better than GRPO from one task and worse from the other: the mean says nothing."""
    right = {("counting", "grpo_d"): 5, ("counting", "grpo"): 3}
    right |= {("geometry", "grpo_d"): 2, ("geometry", "grpo"): 4}
    predictions = grid(
        *(
            cell(train, method, 0, test, [1] * count + [0] * (8 - count))
            for (train, method), count in right.items()
            for test in ("counting", "geometry")
        )
    )
    text = report_on(predictions, training, comparisons=[("grpo_d", "grpo")])
    assert "| grpo_d minus grpo | cross-task | 2 | 16 | +0.0 [" in text
    rows = section(text, "Each direction apart").splitlines()
    told = [row.partition(" [")[0] for row in rows if " minus " in row]
    assert told == [
        f"| grpo_d minus grpo | {task} | {scope}-task | 1 | {points}"
        for scope in ("same", "cross")
        for task, points in (("counting", "+25.0"), ("geometry", "-25.0"))
    ]
    # McNemar's exact test of 2 items against none; one seed shows no equivalence.
    assert {row.partition("] | ")[2] for row in rows if " minus " in row} == {"0.500 | ? |"}
    one = predictions[predictions["train_task"] == "counting"]
    assert "Each direction apart" not in report_on(one, training, comparisons=[("grpo_d", "grpo")])


FAILURES = pd.DataFrame(
    [
        ["geometry", "grpo_d", 0, 0, "counting", "OSError: no space"],
        ["counting", "sft_cot", 0, 0, "counting", "RuntimeError: a | b"],
        ["counting", "sft_cot", 0, 0, "geometry", "RuntimeError: a | b"],
    ],
    columns=["train_task", "method", "seed", "base_model", "eval_task", "reason"],
)


def test_what_failed_is_a_row_of_holes_and_changes_no_other(
    predictions: pd.DataFrame, training: pd.DataFrame, tmp_path: Path
) -> None:
    tests = [("geometry", "grpo_d", "counting")]
    cells = predictions[["train_task", "method", "eval_task"]].apply(tuple, axis=1)
    left = predictions[~cells.isin(tests)]
    matrix = matrix_of(left, FAILURES)
    assert list(matrix.columns) == MATRIX_COLUMNS
    holes = matrix[matrix["n"] == 0]
    assert list(zip(holes["method"], holes["eval_task"], strict=True)) == [
        ("sft_cot", "counting"),
        ("sft_cot", "geometry"),
        ("grpo_d", "counting"),
    ]
    assert holes["correct"].tolist() == [0, 0, 0]
    assert holes.loc[:, "accuracy":].isna().all().all()
    pd.testing.assert_frame_equal(matrix[matrix["n"] > 0].reset_index(drop=True), matrix_of(left))
    matrix.to_csv(tmp_path / "matrix.csv", index=False)
    read = pd.read_csv(tmp_path / "matrix.csv", dtype={"seed": "Int64"})
    pd.testing.assert_frame_equal(read, matrix)

    text = report_on(left, training, failures=FAILURES)
    without = report_on(left, training)
    assert "nan" not in text
    said = [line for line in text.splitlines() if line not in without.splitlines()]
    assert said[0].endswith("3 scores are missing (—): see What failed.")
    assert said[1:3] == ["## What failed", "| trained on | method | seed | no score | reason |"]
    assert "| geometry | grpo_d | 0 | → counting | OSError: no space |" in said
    assert r"| counting | sft_cot | 0 | → counting, → geometry | RuntimeError: a \| b |" in said
    assert "| counting | sft_cot | 0 | — | — |" in said
    assert "What failed" not in without
    assert "What failed" not in report_on(left, training, failures=FAILURES[:0])

    written = [text.get_text() for text in heat_map(matrix, KNOWN).axes[0].texts]
    assert written.count("—") == len(holes)
    lines = matrix_text(matrix).splitlines()
    sft_cot = next(line for line in lines if "sft_cot" in line)
    assert sft_cot.split() == ["counting", "sft_cot", "0", "—", "—"]


def section(text: str, title: str) -> str:
    """One section of the report, without its title."""
    return text.split(f"## {title}\n\n")[1].split("\n## ")[0].rstrip()


@pytest.fixture
def two_bases() -> pd.DataFrame:
    """Two base models of unlike strength and four seeds of GRPO-D, which start from them in turn.

    The first base model is right on items 1 and 2 of 8, the second on 1 to 4.
    """
    return grid(
        cell("none", "base", None, "counting", [0, 1, 1, 0, 0, 0, 0, 0], base_model=0),
        cell("none", "base", None, "counting", [0, 1, 1, 1, 1, 0, 0, 0], base_model=1),
        cell("counting", "grpo_d", 0, "counting", [0, 1, 1, 1, 1, 0, 0, 0], base_model=0),
        cell("counting", "grpo_d", 1, "counting", [0, 1, 1, 1, 1, 1, 0, 0], base_model=1),
        cell("counting", "grpo_d", 2, "counting", [0, 1, 1, 1, 0, 0, 0, 0], base_model=0),
        cell("counting", "grpo_d", 3, "counting", [0, 1, 1, 0, 0, 0, 0, 0], base_model=1),
    )


def test_base_models_have_a_row_each_in_the_matrix_and_one_in_the_report(
    two_bases: pd.DataFrame, training: pd.DataFrame
) -> None:
    matrix = matrix_of(two_bases)
    assert matrix["base_model"].tolist() == [0, 1, 0, 1, 0, 1]
    assert matrix["base_model"].dtype == "int64"
    assert matrix["accuracy"].tolist()[:2] == [2 / 8, 4 / 8]
    lines = matrix_text(matrix).splitlines()
    assert lines[0].split()[:6] == ["trained", "on", "method", "seed", "base", "model"]
    assert [line.split()[:4] for line in lines[2:5]] == [
        ["none", "base", "—", "0"],
        ["none", "base", "—", "1"],
        ["counting", "grpo_d", "0", "0"],
    ]
    text = report_on(two_bases, training)
    base = next(line for line in text.splitlines() if line.startswith("| none | base |"))
    assert base.startswith("| none | base | 2 base models | 37.5 [")  # mean of 25 and 50
    low, high = map(float, base.split("[")[1].split("]")[0].split(", "))
    assert low < 20 < 55 < high  # wider than one base model's: over both and the items
    assert "Differences are told over 2 base models, 4 seeds:" in text
    assert "speak for base models made like these 2" in text
    assert "another base model would do" not in text
    # Own base model: 2/8, 1/8, 1/8 and -2/8; against the first one alone it would be 14/32 - 1/4.
    assert "| grpo_d minus base | same-task | 4 | 32 | +6.2 [" in text
    written = [text.get_text() for text in heat_map(matrix, KNOWN).axes[0].texts]
    assert written[:2] == ["37.5", "25.0 to 50.0, 2 base models"]
    assert written[2:4] == ["43.8", "25.0 to 62.5, 4 seeds"]


@pytest.mark.parametrize(("bases", "interval"), [(1, "[2.1, 97.9]"), (2, "[0.0, 100.0]")])
def test_an_accuracy_over_seeds_draws_base_models_first(
    training: pd.DataFrame, bases: int, interval: str
) -> None:
    # Half of six seeds are always right: they alone start from the second base model, if any.
    cells = (
        cell("counting", "grpo", seed, "counting", [seed % 2] * 40, seed % bases)
        for seed in range(6)
    )
    predictions = grid(*cells)
    text = report_on(predictions, training)
    assert f"| counting | grpo | 6 | **50.0 {interval}** |" in text


def test_one_base_model_is_said_to_be_one(
    predictions: pd.DataFrame, training: pd.DataFrame
) -> None:
    text = report_on(predictions, training)
    assert "what another base model would do is unknown" in text
    assert "base model" not in matrix_text(matrix_of(predictions))


def test_pairs_to_compare_are_those_asked_for_and_each_method_with_the_base_model(
    predictions: pd.DataFrame, training: pd.DataFrame
) -> None:
    def tested(comparisons: list[tuple[str, str]]) -> list[str]:
        text = report_on(predictions, training, comparisons=comparisons)
        rows = [line.split(" | ") for line in text.splitlines() if " minus " in line]
        return [row[0].removeprefix("| ") for row in rows if row[1] == "same-task"]

    with_base = ["sft minus base", "grpo_d minus base"]
    assert tested([]) == with_base
    assert tested([("sft", "grpo_d")]) == ["sft minus grpo_d", *with_base]
    assert tested([("sft", "base"), ("sft", "not_here")]) == with_base


def test_gains_and_forgetting_by_hand(predictions: pd.DataFrame, training: pd.DataFrame) -> None:
    text = report_on(predictions, training)
    rows = section(text, "Gain over the base model, and forgetting")
    # 7 of 8 answers parse in both: all of 5/8 - 2/8 is ability.
    start = "| counting | grpo_d | counting | same-task | 1 | +37.5 ["
    row = next(line for line in rows.splitlines() if line.startswith(start))
    assert " | +0.0 [+0.0, +0.0] | +37.5 [" in row
    assert "| geometry | sft | counting | cross-task | 1 | -12.5 [" in rows  # forgotten
    assert "| none |" not in rows


def test_a_gain_in_format_is_no_ability(training: pd.DataFrame) -> None:
    base = cell("none", "base", None, "counting", [1, 0] * 20)
    base = base.assign(unparseable=[False, True] * 20)  # every answer that parses is right
    sft = cell("counting", "sft", 0, "counting", [1, 1] * 20).assign(unparseable=False)
    predictions = grid(base, sft)
    text = report_on(predictions, training)
    row = next(
        line for line in text.splitlines() if line.startswith("| counting | sft | counting | same")
    )
    total, in_format, ability = row.split(" | ")[5:]
    assert total == in_format
    assert total.startswith("+50.0 [")
    assert ability == "+0.0 [+0.0, +0.0] |"
    silent = grid(base.assign(unparseable=True, correct=False), sft)
    text = report_on(silent, training)
    assert "| same-task | 1 | +100.0 [+100.0, +100.0] | ? [?] | ? [?] |" in text


def test_thinking_stands_beside_the_base_model_on_the_same_items(training: pd.DataFrame) -> None:
    base = cell("none", "base", None, "counting", [1, 0, 0, 1, 0, 0] * 10)
    base = base.assign(thought=[True, False, False, False, False, False] * 10)
    grpo = cell("counting", "grpo", 0, "counting", [1, 1, 1, 0, 0, 1] * 10)
    grpo = grpo.assign(thought=[True, True, True, True, False, False] * 10)
    predictions = grid(base, grpo)
    text = report_on(predictions, training)
    # It thought about items 0 to 3: 3/4 right, the base 2/4. On 1 to 3, where the base did not
    # think, it has 2/3 and the base 1/3.
    start = "| counting | grpo | counting | 75.0 (n = 40) | 50.0 | 50.0 (n = 20) | 0.0 | +33.3 ["
    row = next(line for line in text.splitlines() if line.startswith(start))
    assert row.endswith("] (n = 30) |")
    assert "| none | base | counting | 100.0 (n = 10) | — | 20.0 (n = 50) | — | — |" in text


def rewarded(first: float, last: float, seeds: int = 1) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "task": "counting",
            "method": "grpo",
            "seed": range(seeds),
            "updates": 60,
            "kl_weight_mean": 0.04,
            "kl_weight_end": 0.08,
            "reward_first": first,
            "reward_last": last,
            "accuracy_first": 0.25,
            "accuracy_last": 0.5,
        }
    )


@pytest.mark.parametrize(
    ("first", "last", "trained", "flagged"),
    [
        (1.0, 1.2, [1] * 10 + [0] * 30, "0"),  # reward up, accuracy as before
        (1.0, 1.2, [1] * 5 + [0] * 35, "0"),  # reward up, accuracy down
        (1.0, 1.2, [1] * 12 + [0] * 28, "0"),  # 5 points that may be chance
        (1.0, 1.2, [1] * 30 + [0] * 10, "none"),  # both up
        (1.0, 1.05, [1] * 10 + [0] * 30, "none"),  # neither
        (1.2, 1.0, [1] * 10 + [0] * 30, "none"),
    ],
)
def test_a_reward_that_rises_alone_is_flagged(
    first: float, last: float, trained: list[int], flagged: str
) -> None:
    predictions = grid(
        cell("none", "base", None, "counting", [1] * 10 + [0] * 30),
        cell("counting", "grpo", 0, "counting", trained),
    )
    text = report_on(predictions, rewarded(first, last))
    row = section(text, "Is the reward gamed?").splitlines()[2]
    assert row.startswith(f"| counting | grpo | 1 | {first:.2f} → {last:.2f} | 25.0 → 50.0 | ")
    assert row.endswith(f"] | {flagged} |")


def test_the_seeds_that_are_flagged_are_named() -> None:
    better, same = [1] * 30 + [0] * 10, [1] * 10 + [0] * 30
    predictions = grid(
        cell("none", "base", None, "counting", same),
        *(
            cell("counting", "grpo", seed, "counting", same if seed == 1 else better)
            for seed in range(3)
        ),
    )
    text = report_on(predictions, rewarded(0.5, 1, 3))
    rows = section(text, "Is the reward gamed?")
    assert "| counting | grpo | 3 | 0.50 → 1.00 | 25.0 → 50.0 | +33.3 [" in rows
    assert rows.splitlines()[2].endswith("| 1 |")
    assert "kl_weight_mean | kl_weight_end |" in section(text, "Costs")
    assert "| counting | grpo | 0 | 60 | 0.04 | 0.08 |" in text


@pytest.mark.parametrize("absent", ["columns", "values", "base"])
def test_without_rewards_or_a_base_model_nothing_is_said_of_gaming(
    predictions: pd.DataFrame, training: pd.DataFrame, absent: str
) -> None:
    if absent == "values":  # as SFT has it
        training = rewarded(math.nan, math.nan)
    if absent == "base":
        training = rewarded(0.5, 1).assign(method="grpo_d")
        predictions = predictions[predictions["method"] != "base"]
    text = report_on(predictions, training)
    said = section(text, "Is the reward gamed?")
    if absent == "base":
        assert said.splitlines()[2].endswith("| ? | ? |")
        assert section(text, "Gain over the base model, and forgetting").endswith(
            "not in this run."
        )
    else:
        assert said == "Needs RL cells with their rewards: not in this run."


def test_sampled_answers_by_hand(predictions: pd.DataFrame, training: pd.DataFrame) -> None:
    assert "## Several samples" not in report_on(predictions, training)
    answers = [["7", "7", "8"], ["7", "8", None], ["8", "8", "8"], [None, None, None]]
    samples = pd.DataFrame(
        {
            "sampled_correct": [[answer == "7" for answer in row] for row in answers],
            "sampled_answers": answers,
        }
    )
    base = cell("none", "base", None, "counting", [1, 0, 0, 1]).join(samples)
    text = report_on(base, training.iloc[:0])
    rows = section(text, "Several samples").splitlines()
    header = "| trained on | method | tested on | greedy | pass@1 | pass@2 | pass@3 | majority@3 |"
    assert rows[0] == header
    # pass@1: (2/3 + 1/3) / 4; pass@2: (1 + 2/3) / 4; pass@3: 2/4; majority@3: (1 + 1/2) / 4.
    assert rows[2].startswith("| none | base | counting | 50.0 | 25.0 | 41.7 | 50.0 [")
    assert "] | 37.5 [" in rows[2]


def test_shuffled_pictures_are_announced(predictions: pd.DataFrame, training: pd.DataFrame) -> None:
    words = "another example's picture"
    assert words not in report_on(predictions, training)
    shown = predictions.assign(image_of="another")
    assert words in report_on(shown, training)


def test_families_of_tests_over_seeds(two_bases: pd.DataFrame, training: pd.DataFrame) -> None:
    predictions = grid(
        two_bases,
        *(
            cell("counting", "sft", s, "counting", [0] + [1] * s + [0] * (7 - s), s % 2)
            for s in range(4)
        ),
    )
    text = report_on(predictions, training, comparisons=[("grpo_d", "sft")])
    rows = [line.split(" | ") for line in text.splitlines() if " minus " in line]
    assert len(rows) == 3
    # One degree of freedom: t = tan(π / 2 · (1 - 0.05)), of two tests the first tan(π / 2 · 0.975).
    assert "1 between methods, over 2 units: a difference needs t > 12.7;" in text
    assert "2 against the base model, over 2 units: a difference needs t > 25.5)" in text
    between, *against_base = ((float(row[7]), float(row[8])) for row in rows)
    assert between[1] == between[0]
    assert min(against_base)[1] == pytest.approx(min(1, 2 * min(against_base)[0]), abs=0.002)


def test_question_forms_are_told_apart(training: pd.DataFrame) -> None:
    forms = ["price", "total", "price", "price"]
    predictions = grid(
        cell("none", "base", None, "counting", [1, 0, 0, 0]).assign(form=forms),
        cell("counting", "sft", 0, "counting", [1, 0, 1, 0]).assign(form=forms),
        cell("counting", "sft", 1, "counting", [1, 1, 1, 0]).assign(form=forms),
        cell("counting", "sft", 1, "geometry", [1, 1, 1, 0]),  # it has no forms
    )
    said = section(report_on(predictions, training), "By question form").splitlines()
    assert said[0] == "Tested on counting:"
    assert said[2] == "| trained on | method | price (3) | total (1) |"
    assert said[4:6] == ["| none | base | 33.3 | 0.0 |", "| counting | sft | 66.7 | 50.0 |"]
    assert not any("geometry" in line for line in said)


def test_settings_that_differ_are_told_and_no_others(training: pd.DataFrame) -> None:
    sft = {"algorithm": "sft", "updates": 60, "target": "answer"}
    rl = {"algorithm": "rl", "updates": 60, "kl": {"schedule": "linear", "low": None}}
    rl["completions_per_prompt"] = 8
    settings = [json.dumps(sft), json.dumps(rl)] * 2
    differ = report_on(two_tasks(), training.assign(settings=settings))
    said = section(differ, "Settings that differ")
    assert said.startswith("| parameter | sft on counting | grpo_d on counting | sft on geometry |")
    assert "| `kl.schedule` | — | linear | — | linear |" in said
    assert "| `completions_per_prompt` | — | 8 | — | 8 |" in said  # no fraction
    assert "updates" not in said
    assert "bare `<answer> n </answer>`" in said
    alike = report_on(two_tasks(), training.assign(settings=json.dumps(rl)))
    assert section(alike, "Settings that differ").endswith("with the same parameters.")


def test_times_have_two_digits_and_tokens_all(training: pd.DataFrame) -> None:
    costs = section(report_on(two_tasks(), training.assign(seconds=123.4)), "Costs")
    assert "| geometry | grpo_d | 0 | 60 | 960 | 1,234,567 | 120 |" in costs
    assert "are no comparison" in costs
