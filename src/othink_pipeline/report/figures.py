"""The report's figures, for a page (PNG), for Kedro-Viz and for MLflow.

Kedro-Viz stretches a preview to 457 x 300 pixels: what is about as wide can be read there.

Matplotlib is imported inside the functions: this module is cheap to import. It is used through
``Figure`` objects only; no global state, no display.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import pandas as pd

from othink_pipeline.report.matrix import HOLE, by_base_model, sort_methods, tested
from othink_pipeline.report.parameters import KnownMethods

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

PALETTE = (  # begins with Okabe and Ito's: told apart by colour-blind readers too
    *("#E69F00", "#0072B2", "#D55E00", "#CC79A7", "#56B4E9", "#009E73", "#8C6BB1", "#A6761D"),
    *("#000000", "#E7298A", "#66A61E", "#999999", "#1B4F72", "#F0E442", "#C51B7D", "#4D9221"),
    *("#B35806", "#35978F", "#7F3B08", "#542788", "#BF812D"),
)
"""Methods take them in their order; where there are more methods, in turns."""
COLOR_SCALE = ("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b")
DARK_ABOVE = 55  # accuracies above it, in %, stand on dark blue and are written in white
TRAIN_METRICS = {"train/reward": "reward", "train/kl": "KL to base", "train/kl_weight": "KL weight"}


def colors_of(found: Iterable[str], methods: Sequence[str]) -> dict[str, str]:
    """The colour of each method, which follows from the order of the grid's.

    Args:
        found: methods that are shown, of the grid or not.
        methods: the order of the grid's methods.
    """
    names = sort_methods({*methods, *found}, methods)
    return dict(zip(names, cycle(PALETTE), strict=False))


def heat_map(matrix: pd.DataFrame, known: KnownMethods) -> Figure:
    """The transfer matrix as a heat map; outlined cells are same-task."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    tasks = sorted(matrix["eval_task"].unique())
    rows = {
        (str(train_task), str(method)): [tested(group[group["eval_task"] == t]) for t in tasks]
        for (train_task, method), group in matrix.groupby(["train_task", "method"], sort=False)
    }
    size = (1.8 + 1.7 * len(tasks), 0.95 + 0.42 * len(rows))
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    axes = figure.add_subplot()
    colors = LinearSegmentedColormap.from_list("accuracy", list(COLOR_SCALE), bad="#eeeeee")
    means = [[100 * by_base_model(entry).mean() for entry in row] for row in rows.values()]
    axes.imshow(means, cmap=colors, vmin=0, vmax=100, aspect="auto")  # NaN: a hole
    above = None
    for row, ((train_task, _), entries) in enumerate(rows.items()):
        for column, (task, entry) in enumerate(zip(tasks, entries, strict=True)):
            _write_entry(axes, row, column, entry)
            if train_task == task and not entry.empty:
                corner = (column - 0.455, row - 0.38)
                box = Rectangle(corner, 0.91, 0.76, fill=False, edgecolor="#111111", lw=1.3)
                axes.add_patch(box)
        if row:  # a white line between rows, a wider one where the train task changes
            axes.axhline(row - 0.5, color="white", linewidth=1.5 if train_task == above else 5)
        above = train_task
    for column in range(1, len(tasks)):
        axes.axvline(column - 0.5, color="white", linewidth=1.5)
    labels = [known.name(train_task, method) for train_task, method in rows]
    axes.set_xticks(range(len(tasks)), [f"tested on {task}" for task in tasks], size=9)
    # Of the figure: the layout gives a label of the axes no more room than they are wide.
    figure.supxlabel(
        "accuracy of the tagged answer, %\noutlined: the task that was trained on", size=7
    )
    axes.set_yticks(range(len(rows)), labels, size=9)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def entry_texts(entry: pd.DataFrame) -> tuple[str, str]:
    """Accuracy in %, and the interval of one training or the spread of several.

    Args:
        entry: the matrix's rows of one method on one task, a row for each training, without holes.
    """
    percent = 100 * entry["accuracy"]
    if entry.empty:
        return HOLE, ""
    if len(entry) > 1:
        units = "base models" if entry["seed"].isna().all() else "seeds"
        spread = f"{percent.min():.1f} to {percent.max():.1f}, {len(entry)} {units}"
    else:
        low, high = 100 * entry[["ci_low", "ci_high"]].to_numpy()[0]
        spread = f"[{low:.1f}, {high:.1f}]"
    return f"{100 * by_base_model(entry).mean():.1f}", spread


def _write_entry(axes: Axes, row: int, column: int, entry: pd.DataFrame) -> None:
    value, spread = entry_texts(entry)
    ink = "white" if 100 * by_base_model(entry).mean() > DARK_ABOVE else "#222222"
    lift = 0.16 if spread else 0
    axes.text(column, row - lift, value, ha="center", va="center", color=ink, size=10)
    axes.text(column, row + 0.24, spread, ha="center", va="center", color=ink, size=7)


def training_curves(history: pd.DataFrame, methods: Sequence[str], known: KnownMethods) -> Figure:
    """Reward, KL, KL weight and validation accuracy on every task; a column for each train task.

    The own task is outlined, as in the heat map.

    Args:
        history: columns task, method, seed, step, metric, value.
        methods: the order of the grid's methods, which decides their colours.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    tasks, metrics = sorted(history["task"].unique()), _metrics(history)
    colors = colors_of(history["method"], methods)
    rows, columns = max(1, len(metrics)), max(1, len(tasks))
    size = (1.2 + 2.1 * columns, 0.8 + 0.6 * rows)
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex="col")
    for column, task in enumerate(tasks):
        for axes, metric in zip(panels[:, column], metrics, strict=True):
            _style_panel(axes, is_share=metric.startswith("val/"), is_own=metric == f"val/{task}")
        panels[0, column].set_title(f"trained on {task}", size=9, weight="bold")
        panels[-1, column].set_xlabel("optimizer step", size=8)
    for axes, title in zip(panels[:, 0], metrics.values(), strict=False):
        axes.set_ylabel(title, size=8, rotation=0, ha="right", va="center")
    handles = []
    for method in sort_methods(history["method"], methods):
        cells = history[history["method"] == method].sort_values("step")
        style = {"color": colors[method], "linewidth": 1.4, "alpha": 0.9, "markersize": 3}
        for (trained_on, _, name), points in cells.groupby(["task", "seed", "metric"]):
            if name in metrics:
                axes = panels[list(metrics).index(name), tasks.index(trained_on)]
                marker = "o" if len(points) < 20 else ""
                axes.plot(points["step"], points["value"], marker=marker, **style)
        label = known.label(method)
        handles.append(Line2D([], [], color=colors[method], linewidth=2, label=label))
    _add_legend(figure, handles)
    return figure


def _add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Above all panels, in as many columns as there is room for; the figure grows by its rows."""
    from matplotlib.textpath import TextPath

    size = 8  # points, and the em of the distances: line 2, to its label 0.8, to the next one 2
    widths = [TextPath((0, 0), str(line.get_label()), size).get_extents().width for line in handles]
    columns = max(1, int(72 * figure.get_figwidth() / (max(widths, default=0) + 4.8 * size)))
    figure.set_figheight(figure.get_figheight() + 0.18 * (max(len(handles) - 1, 0) // columns))
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=size
    )


def _metrics(history: pd.DataFrame) -> dict[str, str]:
    """What has a panel, with its title: only metrics that were recorded."""
    recorded = set(history["metric"])
    metrics = {metric: title for metric, title in TRAIN_METRICS.items() if metric in recorded}
    validation = sorted(m for m in recorded if m.startswith("val/") and m.count("/") == 1)
    return metrics | {m: f"validation:\n{m.removeprefix('val/')}" for m in validation}


def _style_panel(axes: Axes, is_share: bool, is_own: bool) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    axes.tick_params(labelsize=7)
    axes.grid(color="#e6e6e6", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(is_own)  # outlined, as in the heat map
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(2))
    if is_share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
