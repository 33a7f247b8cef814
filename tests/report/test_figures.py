"""What stands in the figures: numbers, outlines, holes, labels, colours, a panel for each curve."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from othink_pipeline.report.figures import PALETTE, heat_map, training_curves
from tests.support.handmade import KNOWN, METHODS, cell, grid, matrix_of, two_tasks


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


def labels_of(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def test_heat_map_values_outlines_and_holes() -> None:
    predictions = two_tasks()
    is_hole = (predictions["method"] == "sft") & (predictions["eval_task"] == "geometry")
    figure = heat_map(matrix_of(predictions[~is_hole]), KNOWN)
    axes = figure.axes[0]
    assert labels_of(figure) == [
        "base model",
        *("SFT on counting", "GRPO-D on counting", "SFT on geometry", "GRPO-D on geometry"),
    ]
    values = axes.images[0].get_array()
    assert values is not None
    assert values.tolist() == [[25, 25], [37.5, None], [62.5, 50], [12.5, None], [25, 75]]
    written = [text.get_text() for text in axes.texts]
    assert written[4:8] == ["37.5", "[13.7, 69.4]", "—", ""]
    white = {text.get_text() for text in axes.texts if text.get_color() == "white"}
    assert white == {"62.5", "[30.6, 86.3]", "75.0", "[30.1, 95.4]"}  # on dark blue
    # Same-task: rows 1 and 2 on counting, row 4 on geometry; row 3 is a hole there.
    corners = [box.get_xy() for box in axes.patches]  # type: ignore[attr-defined]
    assert {(round(y + 0.38), round(x + 0.455)) for x, y in corners} == {(1, 0), (2, 0), (4, 1)}


def test_heat_map_of_several_seeds_has_their_spread_and_a_name_without_a_label() -> None:
    seeds = (cell("counting", "mine", seed, "counting", [0, 1, seed]) for seed in range(2))
    figure = heat_map(matrix_of(grid(*seeds)), KNOWN)
    assert [text.get_text() for text in figure.axes[0].texts] == ["50.0", "33.3 to 66.7, 2 seeds"]
    assert labels_of(figure) == ["mine on counting"]


def test_training_curves_put_each_series_in_its_panel(history: pd.DataFrame) -> None:
    figure = training_curves(history, METHODS, KNOWN)
    on_counting, on_geometry = figure.axes[::2], figure.axes[1::2]
    rows = {axes.get_ylabel(): number for number, axes in enumerate(on_counting)}
    assert list(rows) == ["reward", "KL weight", "validation:\ncounting", "validation:\ngeometry"]
    assert on_geometry[0].get_title() == "trained on geometry"
    forgetting = on_counting[rows["validation:\ngeometry"]].lines[0]
    assert list(forgetting.get_xdata()) == [0, 20]  # type: ignore[arg-type]
    assert list(forgetting.get_ydata()) == [0.4, 0.1]  # type: ignore[arg-type]
    assert len(on_counting[rows["reward"]].lines) == 2  # a line for each seed
    assert len(on_geometry[rows["validation:\ngeometry"]].lines) == 1
    assert sum(len(axes.lines) for axes in figure.axes) == 6
    outlined = [axes.spines["top"].get_visible() for axes in figure.axes]
    assert outlined == [False] * 4 + [True, False, False, True]  # own tasks
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["SFT", "GRPO-D"]


def test_colours_follow_the_order_of_the_grid(history: pd.DataFrame) -> None:
    def colors(*methods: str) -> dict[str, str]:
        figure = training_curves(history, methods, KNOWN)
        (legend,) = figure.legends
        handles = zip(legend.get_texts(), legend.get_lines(), strict=True)
        found = {text.get_text(): to_hex(line.get_color()).upper() for text, line in handles}
        reward = next(axes for axes in figure.axes if axes.get_ylabel() == "reward")
        assert to_hex(reward.lines[0].get_color()).upper() == found["GRPO-D"]
        return found

    first, second, third = PALETTE[:3]
    assert colors("sft", "grpo_d") == {"SFT": first, "GRPO-D": second}
    assert colors("grpo_d", "sft") == {"GRPO-D": first, "SFT": second}
    # One that has not been trained, or failed, keeps its colour.
    assert colors("sft", "grpo", "grpo_d") == {"SFT": first, "GRPO-D": third}
    assert colors("grpo") == {"GRPO-D": second, "SFT": third}  # unknown ones: by name
    many = [f"m{number}" for number in range(len(PALETTE))]
    assert colors(*many, "sft", "grpo_d") == {"SFT": first, "GRPO-D": second}  # in turns
    assert len(set(PALETTE)) == len(PALETTE)


@pytest.mark.parametrize("count", [2, 6, 14])
def test_no_label_is_cut_off(count: int) -> None:
    methods = [f"a method's name {number}" for number in range(count)]
    cells = [cell("counting", method, 0, "counting", [0, 1]) for method in methods]
    rows = [("counting", method, 0, 1, "train/reward", 1.0) for method in methods]
    columns = ["task", "method", "seed", "step", "metric", "value"]
    for figure in (
        heat_map(matrix_of(grid(*cells)), KNOWN),
        training_curves(pd.DataFrame(rows, columns=columns), methods, KNOWN),
    ):
        figure.draw_without_rendering()
        drawn = figure.get_tightbbox()
        width, height = figure.get_size_inches()
        assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) >= 0
        assert figure.axes[0].get_position().height * height > 0.4, "the panel is still there"


def test_figures_render(history: pd.DataFrame, tmp_path: Path) -> None:
    for name, figure in (
        ("heat_map", heat_map(matrix_of(two_tasks()), KNOWN)),
        ("training_curves", training_curves(history, METHODS, KNOWN)),
        ("nothing", training_curves(history.iloc[:0], METHODS, KNOWN)),
    ):
        figure.savefig(tmp_path / f"{name}.png", dpi=50)
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
