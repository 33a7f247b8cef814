"""A tiny grid whose figures can be computed by hand, then every kind of hole in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import pytest
from matplotlib.figure import Figure

from othink_pipeline.comparison import compare
from othink_pipeline.figures import (
    heat_map_plotly,
    heat_map_png,
    method_colors,
    training_curves_plotly,
    training_curves_png,
)
from othink_pipeline.matrix import matrix_text, sort_methods, transfer_matrix
from othink_pipeline.report import report_markdown

MATRIX_COLUMNS = [
    *("train_task", "method", "seed", "eval_task", "n", "correct", "accuracy"),
    *("ci_low", "ci_high", "accuracy_any", "format_rate", "think_rate", "unparseable_rate"),
    "completion_tokens_mean",
]


def cell(
    train_task: str, method: str, seed: int | None, eval_task: str, correct: Sequence[int]
) -> pd.DataFrame:
    """Predictions of one cell on one task; the first item has no tag, the first two no thought."""
    first = [True] + [False] * (len(correct) - 1)
    return pd.DataFrame(
        {
            "train_task": train_task,
            "method": method,
            "seed": pd.array([seed] * len(correct), dtype="Int64"),
            "eval_task": eval_task,
            "example_id": [f"{eval_task}-{place}" for place in range(len(correct))],
            "correct": [bool(right) for right in correct],
            "correct_any": [
                bool(right) or here for right, here in zip(correct, first, strict=True)
            ],
            "format_ok": [not here for here in first],
            "unparseable": first,
            "thought": [place > 1 for place in range(len(correct))],
            "completion_tokens": range(10, 10 + len(correct)),
        }
    )


def grid(*cells: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(cells, ignore_index=True)


SFT_ON_COUNTING = [0, 1, 1, 1, 0, 0, 0, 0]
GRPO_D_ON_COUNTING = [0, 1, 1, 1, 1, 1, 0, 0]


@pytest.fixture
def predictions() -> pd.DataFrame:
    """Two tasks of unequal size, two methods, one seed, the base model."""
    return grid(
        cell("geometry", "grpo_d", 0, "geometry", [0, 1, 1, 1]),
        cell("geometry", "grpo_d", 0, "counting", [0, 1, 1, 0, 0, 0, 0, 0]),
        cell("geometry", "sft", 0, "geometry", [0, 1, 1, 0]),
        cell("geometry", "sft", 0, "counting", [0, 1, 0, 0, 0, 0, 0, 0]),
        cell("counting", "grpo_d", 0, "counting", GRPO_D_ON_COUNTING),
        cell("counting", "grpo_d", 0, "geometry", [0, 1, 1, 0]),
        cell("counting", "sft", 0, "counting", SFT_ON_COUNTING),
        cell("counting", "sft", 0, "geometry", [0, 0, 1, 0]),
        cell("none", "base", None, "counting", [0, 1, 0, 0, 0, 0, 0, 1]),
        cell("none", "base", None, "geometry", [0, 1, 0, 0]),
    )


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


@pytest.fixture
def history() -> pd.DataFrame:
    rows = [
        ("counting", "sft", 0, 20, "val/geometry", 0.1),
        ("counting", "sft", 0, 0, "val/geometry", 0.4),
        ("counting", "sft", 0, 20, "val/counting", 0.5),
        ("counting", "sft", 0, 20, "val/think_rate/counting", 0.9),
        ("counting", "sft", 0, 1, "train/loss", 3.0),
        ("counting", "grpo_d", 0, 1, "train/reward", 1.0),
        ("counting", "grpo_d", 0, 2, "train/reward", 1.5),
        ("counting", "grpo_d", 1, 1, "train/reward", 1.1),
        ("counting", "grpo_d", 0, 1, "train/kl_weight", 0.001),
        ("geometry", "sft", 0, 20, "val/geometry", 0.6),
    ]
    return pd.DataFrame(rows, columns=["task", "method", "seed", "step", "metric", "value"])


def test_matrix_values_by_hand(predictions: pd.DataFrame) -> None:
    matrix = transfer_matrix(predictions)
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
    matrix = transfer_matrix(predictions)
    assert list(matrix["method"]) == ["base"] * 2 + (["sft"] * 2 + ["grpo_d"] * 2) * 2
    assert list(matrix["eval_task"]) == ["counting", "geometry"] * 5
    assert list(matrix["train_task"]) == ["none"] * 2 + ["counting"] * 4 + ["geometry"] * 4
    assert matrix["seed"].dtype == "Int64"
    assert matrix["seed"].isna().sum() == 2


def test_matrix_survives_csv(predictions: pd.DataFrame, tmp_path: object) -> None:
    matrix = transfer_matrix(predictions)
    path = f"{tmp_path}/transfer_matrix.csv"
    matrix.to_csv(path, index=False)
    read = pd.read_csv(path, dtype={"seed": "Int64"})
    pd.testing.assert_frame_equal(read, matrix)


def test_matrix_text_is_fixed_width_with_marks_and_holes(predictions: pd.DataFrame) -> None:
    is_hole = (predictions["method"] == "sft") & (predictions["eval_task"] == "geometry")
    lines = matrix_text(transfer_matrix(predictions[~is_hole])).splitlines()
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


def test_unknown_methods_come_last_and_every_method_has_one_color() -> None:
    methods = ["zeta", "grpo_d", "base", "alpha", "sft"]
    assert sort_methods(methods) == ["base", "sft", "grpo_d", "alpha", "zeta"]
    colors = method_colors(methods)
    assert len(set(colors.values())) == 5
    assert method_colors(["grpo_d"])["grpo_d"] == colors["grpo_d"]


def test_same_task_comparison_by_hand(predictions: pd.DataFrame) -> None:
    comparison = compare(predictions, "grpo_d", "sft", "same")
    assert comparison is not None
    assert (comparison.cells, comparison.pairs) == (2, 12)
    # Tasks count alike: counting 5/8 - 3/8, geometry 3/4 - 2/4. Pooled it would be the same 1/4;
    # the relative one is not: (11/16) / (7/16) - 1, pooled (8/12) / (5/12) - 1 = 60 %.
    assert comparison.over_items.value == pytest.approx(0.25)
    assert comparison.relative.value == pytest.approx(100 * (11 / 7 - 1))
    assert comparison.p == pytest.approx(0.25)  # 3 discordant pairs, all one way: 2 * 0.5^3
    assert math.isnan(comparison.over_seeds.low)


def test_cross_task_comparison_by_hand(predictions: pd.DataFrame) -> None:
    comparison = compare(predictions, "grpo_d", "sft", "cross")
    assert comparison is not None
    # counting 2/8 - 1/8, geometry 2/4 - 1/4
    assert comparison.over_items.value == pytest.approx((1 / 8 + 1 / 4) / 2)


def test_items_are_paired_by_id_not_by_place(predictions: pd.DataFrame) -> None:
    expected = compare(predictions, "grpo_d", "sft", "same")
    shuffled = predictions.sample(frac=1, random_state=0)
    assert compare(shuffled, "grpo_d", "sft", "same") == expected


def test_the_base_model_stands_against_every_cell(predictions: pd.DataFrame) -> None:
    comparison = compare(predictions, "sft", "base", "cross")
    assert comparison is not None
    # counting: 1/8 - 2/8; geometry: 1/4 - 1/4
    assert comparison.over_items.value == pytest.approx(-1 / 16)
    one = compare(predictions, "sft", "base", "same", "correct_any", train_task="geometry")
    assert one is not None
    assert one.pairs == 4
    assert one.over_items.value == pytest.approx(3 / 4 - 2 / 4)


def test_a_comparison_uses_only_the_cells_that_both_have(predictions: pd.DataFrame) -> None:
    is_hole = (predictions["method"] == "sft") & (predictions["train_task"] == "geometry")
    comparison = compare(predictions[~is_hole], "grpo_d", "sft", "same")
    assert comparison is not None
    assert (comparison.cells, comparison.pairs) == (1, 8)
    assert comparison.over_items.value == pytest.approx(5 / 8 - 3 / 8)
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
    assert comparison.cells == 5
    # Items: counting (0 + 0 + 1 + 1/3) / 4 = 1/3, geometry 1/2.
    assert comparison.over_items.value == pytest.approx((1 / 3 + 1 / 2) / 2)
    # Seeds 0 and 1 only: counting (0 + 0 + 1 + 1/2) / 4 = 3/8.
    assert comparison.over_seeds.value == pytest.approx((3 / 8 + 1 / 2) / 2)
    assert not math.isnan(comparison.over_seeds.low)


def test_no_complete_seed_is_unknown_not_an_error() -> None:
    predictions = grid(
        cell("counting", "sft", 0, "counting", [0, 1]),
        cell("counting", "grpo_d", 0, "counting", [1, 1]),
        cell("geometry", "sft", 1, "geometry", [0, 1]),
        cell("geometry", "grpo_d", 1, "geometry", [1, 1]),
    )
    comparison = compare(predictions, "grpo_d", "sft", "same")
    assert comparison is not None
    assert comparison.over_items.value == 0.5
    assert math.isnan(comparison.over_seeds.value)


def test_report_by_hand(predictions: pd.DataFrame, training: pd.DataFrame) -> None:
    lineage = {"parent run": "abc123", "commit": "f00"}
    text = report_markdown(transfer_matrix(predictions), predictions, training, lineage)
    for expected in (
        "- parent run: abc123\n- commit: f00",
        "| counting | grpo_d | 1 | **62.5 [30.6, 86.3]** | 50.0 [15.0, 85.0] |",
        "| none | base | — | 25.0 [7.1, 59.1] | 25.0 [4.6, 69.9] |",
        "| base | 25.0 (2) | 25.0 (2) |",
        "| grpo_d | 68.8 (2) | 37.5 (2) |",
        "| grpo_d minus sft | same-task | 2 | 12 | +25.0 [",
        "| sft | same-task | +57.1 [",
        "| +5.72 |",
        "| +61.63 |",
        "**another model's**",
        "one training seed: **the variation between seeds is unknown**",
        "| geometry | grpo_d | 0 | 60 | 960 | 1,234,567 | — |",
        "| counting | grpo_d | counting | 62.5 | 75.0 | 87.5 | 75.0 | 12.5 | 13.5 |",
        "| counting | grpo_d | counting | 66.7 (n = 6) | 50.0 (n = 2) |",
    ):
        assert expected in text
    assert "13.59" not in text  # no GRPO in this run, so nothing stands beside that figure
    assert text.index("in points") < text.index("Relative improvement")


def test_report_adjusts_for_all_its_tests(
    predictions: pd.DataFrame, training: pd.DataFrame
) -> None:
    text = report_markdown(transfer_matrix(predictions), predictions, training)
    rows = [line for line in text.splitlines() if " minus " in line]
    assert len(rows) == 6
    assert "for the 6 tests here" in text
    # GRPO-D beats the base on 6 items and loses on 1: p = 2 * (1 + 7) / 2^7, times 6 tests.
    smallest = [row for row in rows if row.startswith("| grpo_d minus base | same-task")]
    assert [row.split(" | ")[-2:] for row in smallest] == [["0.125", "0.750 |"]]
    assert sum(row.endswith("| 1.000 |") for row in rows) == 5


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
    text = report_markdown(transfer_matrix(predictions), predictions, training)
    assert f"interval above zero): {verdict} on counting." in text


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
    matrix = transfer_matrix(part)
    text = report_markdown(matrix, part, training.iloc[:0])
    assert "nan" not in text
    assert "Nothing was trained." in text
    assert heat_map_plotly(matrix).data[0].type == "heatmap"
    assert isinstance(heat_map_png(matrix), Figure)


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
    matrix = transfer_matrix(predictions)
    text = report_markdown(matrix, predictions, training)
    assert "There are 2 training seeds" in text
    assert "[?]" not in text
    assert "Negative control: `grpo_format`" in text
    # Mean of 2/6 and 3/6; a Wilson interval of 6 or 12 items would not end at these sixths.
    row = next(line for line in text.splitlines() if line.startswith("| charts | mine | 2 |"))
    assert "| **41.7 [" in row
    assert "| — |" in row
    texts = [axis.get_text() for axis in heat_map_png(matrix).axes[0].texts]
    assert "33.3 to 50.0, 2 seeds" in texts
    assert texts.count("—") == 1


def test_heat_map_values_outlines_and_holes(predictions: pd.DataFrame) -> None:
    is_hole = (predictions["method"] == "sft") & (predictions["eval_task"] == "geometry")
    figure = heat_map_plotly(transfer_matrix(predictions[~is_hole]))
    heat = figure.data[0]
    assert list(heat.y) == [
        "base model",
        *("SFT on counting", "GRPO-D on counting", "SFT on geometry", "GRPO-D on geometry"),
    ]
    assert [list(row) for row in heat.z] == [
        *([25, 25], [37.5, None], [62.5, 50], [12.5, None], [25, 75]),
    ]
    assert heat.text[1][1] == "—"
    # Same-task: rows 1 and 2 on counting, row 4 on geometry; row 3 is a hole there.
    centers = {(round(shape.y0 + 0.49), round(shape.x0 + 0.49)) for shape in figure.layout.shapes}
    assert centers == {(1, 0), (2, 0), (4, 1)}


def test_training_curves_put_each_series_in_its_panel(history: pd.DataFrame) -> None:
    png = training_curves_png(history)
    panels = {
        (axes.get_subplotspec().rowspan.start, axes.get_title()): axes  # type: ignore[union-attr]
        for axes in png.axes
    }
    assert [title for row, title in panels if row == 0] == [
        *("reward", "KL weight", "validation: counting (own task)", "validation: geometry"),
    ]
    forgetting = panels[0, "validation: geometry"].lines[0]
    assert list(forgetting.get_xdata()) == [0, 20]  # type: ignore[arg-type]
    assert list(forgetting.get_ydata()) == [0.4, 0.1]  # type: ignore[arg-type]
    assert len(panels[0, "reward"].lines) == 2  # a line for each seed
    assert len(panels[1, "validation: geometry (own task)"].lines) == 1
    assert [text.get_text() for text in png.legends[0].get_texts()] == ["SFT", "GRPO-D"]
    plotly = training_curves_plotly(history)
    assert sum(len(axes.lines) for axes in png.axes) == len(plotly.data) == 6
    assert sorted(trace.name for trace in plotly.data if trace.showlegend) == ["GRPO-D", "SFT"]


def test_figures_render(predictions: pd.DataFrame, history: pd.DataFrame, tmp_path: object) -> None:
    matrix = transfer_matrix(predictions)
    heat_map_png(matrix).savefig(f"{tmp_path}/heat_map.png", dpi=50)
    training_curves_png(history).savefig(f"{tmp_path}/training_curves.png", dpi=50)
    for figure in (heat_map_plotly(matrix), training_curves_plotly(history)):
        assert figure.to_json()


def test_curves_of_a_run_that_recorded_nothing(history: pd.DataFrame) -> None:
    empty = history.iloc[:0]
    assert isinstance(training_curves_png(empty), Figure)
    assert len(training_curves_plotly(empty).data) == 0
