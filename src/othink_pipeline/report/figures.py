"""The report's figures, each as a Plotly figure (kedro viz, MLflow) and as a Matplotlib one (PNG).

Plotly and Matplotlib are imported inside the functions: this module is cheap to import.
Matplotlib is used through ``Figure`` objects only; no global state, no display.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from othink_pipeline.report.matrix import BASE, HOLE, sort_methods, tested

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind readers too.
METHOD_COLORS = {
    BASE: "#7f7f7f",
    "sft": "#E69F00",
    "sft_cot": "#CC79A7",
    "grpo": "#0072B2",
    "grpo_d": "#D55E00",
    "grpo_format": "#56B4E9",
}
OTHER_COLORS = (
    *("#009E73", "#8C6BB1", "#A6761D", "#000000", "#E7298A", "#66A61E", "#999999", "#1B4F72"),
    *("#F0E442", "#C51B7D", "#4D9221", "#B35806", "#35978F", "#7F3B08", "#542788", "#BF812D"),
)
"""Further methods take turns with them."""
COLOR_SCALE = ("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b")
DARK_ABOVE = 0.55  # accuracies above it stand on dark blue and are written in white
LABELS = {BASE: "base", "sft": "SFT", "sft_cot": "SFT-CoT", "grpo": "GRPO", "grpo_d": "GRPO-D"}
TRAIN_METRICS = {"train/reward": "reward", "train/kl": "KL to base", "train/kl_weight": "KL weight"}


class _HeatMap(NamedTuple):
    """[rows x columns] of mean accuracies (None: a hole), their texts and the row labels."""

    rows: list[tuple[str, str]]
    tasks: list[str]
    accuracy: list[list[float | None]]
    text: list[list[tuple[str, str]]]

    def labels(self) -> list[str]:
        return [
            "base model" if method == BASE else f"{_label(method)} on {task}"
            for task, method in self.rows
        ]


class _Curve(NamedTuple):
    """One line of the training curves, and the panel where it belongs."""

    row: int
    column: int
    method: str
    seed: str
    steps: list[int]
    values: list[float]


def method_colors(methods: list[str]) -> dict[str, str]:
    """A colour for each method: the same in every figure; unknown ones take the spare colours."""
    spare = [method for method in sort_methods(methods) if method not in METHOD_COLORS]
    extra = {m: OTHER_COLORS[place % len(OTHER_COLORS)] for place, m in enumerate(spare)}
    return {method: {**METHOD_COLORS, **extra}[method] for method in sort_methods(methods)}


def heat_map_plotly(matrix: pd.DataFrame) -> go.Figure:
    """The transfer matrix as a heat map; outlined cells are same-task."""
    import plotly.graph_objects as go

    heat = _heat_map(matrix)
    labels, columns = heat.labels(), [f"→ {task}" for task in heat.tasks]
    figure = go.Figure(
        go.Heatmap(
            x=columns,
            y=labels,
            z=[[None if value is None else 100 * value for value in row] for row in heat.accuracy],
            text=[["<br>".join(filter(None, texts)) for texts in row] for row in heat.text],
            texttemplate="%{text}",
            hovertemplate="%{y} %{x}: %{text}<extra></extra>",
            colorscale=list(COLOR_SCALE),
            zmin=0,
            zmax=100,
            xgap=3,
            ygap=3,
            colorbar={"title": "accuracy, %"},
        )
    )
    for row, column in _same_task_cells(heat):
        box = {"x0": column - 0.49, "x1": column + 0.49, "y0": row - 0.49, "y1": row + 0.49}
        figure.add_shape(type="rect", line={"color": "#222222", "width": 2}, **box)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(side="top", showgrid=False)
    figure.update_layout(
        title="Accuracy of the tagged answer, % [95 % interval]; outlined: same task",
        template="plotly_white",
        height=220 + 55 * len(labels),
        width=280 + 210 * len(columns),
    )
    return figure


def heat_map_png(matrix: pd.DataFrame) -> Figure:
    """The transfer matrix as a heat map; outlined cells are same-task."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    heat = _heat_map(matrix)
    height, width = len(heat.rows), len(heat.tasks)
    figure = Figure(figsize=(2.6 + 1.7 * width, 1.1 + 0.55 * height), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    colors = LinearSegmentedColormap.from_list("accuracy", list(COLOR_SCALE), bad="#eeeeee")
    values = [[float("nan") if v is None else 100 * v for v in row] for row in heat.accuracy]
    image = axes.imshow(values, cmap=colors, vmin=0, vmax=100, aspect="auto")
    for row, (scores, texts) in enumerate(zip(heat.accuracy, heat.text, strict=True)):
        for column, (score, (value, spread)) in enumerate(zip(scores, texts, strict=True)):
            ink = "white" if score is not None and score > DARK_ABOVE else "#222222"
            lift = 0.13 if spread else 0
            axes.text(column, row - lift, value, ha="center", va="center", color=ink, size=10)
            axes.text(column, row + 0.24, spread, ha="center", va="center", color=ink, size=6.5)
    # White lines between cells, a wider one where the train task changes.
    for row in range(1, height):
        is_new_task = heat.rows[row][0] != heat.rows[row - 1][0]
        axes.axhline(row - 0.5, color="white", linewidth=5 if is_new_task else 1.5)
    for column in range(1, width):
        axes.axvline(column - 0.5, color="white", linewidth=1.5)
    for row, column in _same_task_cells(heat):
        corner = (column - 0.455, row - 0.38)
        axes.add_patch(Rectangle(corner, 0.91, 0.76, fill=False, edgecolor="#111111", lw=1.3))
    axes.set_xticks(range(width), [f"tested on\n{task}" for task in heat.tasks], size=9)
    axes.set_yticks(range(height), heat.labels(), size=9)
    axes.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    colorbar = figure.colorbar(image, ax=axes, fraction=0.06, pad=0.03)
    colorbar.set_label("accuracy of the tagged answer, %", size=8)
    colorbar.ax.tick_params(labelsize=7)
    colorbar.outline.set_visible(False)
    return figure


def training_curves_plotly(history: pd.DataFrame) -> go.Figure:
    """Reward, KL, KL weight and validation accuracy on every task; one row for each train task."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    tasks, metrics = _panels(history)
    colors = method_colors(list(history["method"].unique()))
    titles = [title for task in tasks for title in _titles(metrics, task)]
    figure = make_subplots(
        rows=max(1, len(tasks)),
        cols=max(1, len(metrics)),
        subplot_titles=titles,
        row_titles=[f"trained on {task}" for task in tasks],
        horizontal_spacing=0.04,
        vertical_spacing=0.14,
    )
    in_legend: set[str] = set()
    for curve in _curves(history, tasks, list(metrics)):
        figure.add_trace(
            go.Scatter(
                x=curve.steps,
                y=curve.values,
                name=_label(curve.method),
                legendgroup=curve.method,
                showlegend=curve.method not in in_legend,
                line={"color": colors[curve.method], "width": 2},
                mode="lines+markers" if len(curve.steps) < 20 else "lines",
                hovertemplate=f"seed {curve.seed}: step %{{x}}, %{{y:.3g}}",
            ),
            row=curve.row + 1,
            col=curve.column + 1,
        )
        in_legend.add(curve.method)
    figure.update_xaxes(title_text="optimizer step", row=max(1, len(tasks)))
    for column, metric in enumerate(metrics, start=1):
        if metric.startswith("val/"):
            figure.update_yaxes(range=[0, 1], tickformat=".0%", col=column)
    figure.update_layout(
        title="Training curves",
        template="plotly_white",
        height=160 + 260 * max(1, len(tasks)),
        width=160 + 260 * max(1, len(metrics)),
    )
    return figure


def training_curves_png(history: pd.DataFrame) -> Figure:
    """Reward, KL, KL weight and validation accuracy on every task; one row for each train task."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    tasks, metrics = _panels(history)
    methods = sort_methods(history["method"].unique())
    colors = method_colors(methods)
    rows, columns = max(1, len(tasks)), max(1, len(metrics))
    size = (0.6 + 2.4 * columns, 0.7 + 1.9 * rows)
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex="row")
    for curve in _curves(history, tasks, list(metrics)):
        panels[curve.row, curve.column].plot(
            curve.steps,
            curve.values,
            color=colors[curve.method],
            linewidth=1.4,
            alpha=0.9,
            marker="o" if len(curve.steps) < 20 else "",
            markersize=3,
        )
    for row, task in enumerate(tasks):
        for column, (metric, title) in enumerate(zip(metrics, _titles(metrics, task), strict=True)):
            axes = panels[row, column]
            axes.set_title(title, size=8)
            axes.tick_params(labelsize=7)
            axes.grid(color="#e6e6e6", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            if metric.startswith("val/"):
                axes.set_ylim(0, 1)
                axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            if row == len(tasks) - 1:
                axes.set_xlabel("optimizer step", size=8)
        panels[row, 0].set_ylabel(f"trained on {task}", size=9, weight="bold")
    handles = [Line2D([], [], color=colors[m], linewidth=2, label=_label(m)) for m in methods]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=8
    )
    return figure


def _label(method: str) -> str:
    return LABELS.get(method, method)


def _heat_map(matrix: pd.DataFrame) -> _HeatMap:
    """Average over seeds, or over the base models themselves; see ``_cell_text``."""
    tasks = sorted(matrix["eval_task"].unique())
    rows, accuracy, text = [], [], []
    for (train_task, method), group in matrix.groupby(["train_task", "method"], sort=False):
        rows.append((str(train_task), str(method)))
        cells = [tested(group[group["eval_task"] == task]) for task in tasks]
        accuracy.append([None if cell.empty else float(cell["accuracy"].mean()) for cell in cells])
        text.append([_cell_text(cell) for cell in cells])
    return _HeatMap(rows, tasks, accuracy, text)


def _cell_text(cell: pd.DataFrame) -> tuple[str, str]:
    """Accuracy in %, and the interval of one seed, or the spread of several."""
    if cell.empty:
        return HOLE, ""
    percent = 100 * cell["accuracy"]
    if len(cell) > 1:
        units = "base models" if cell["seed"].isna().all() else "seeds"
        spread = f"{percent.min():.1f} to {percent.max():.1f}, {len(cell)} {units}"
        return f"{percent.mean():.1f}", spread
    low, high = 100 * cell["ci_low"].iloc[0], 100 * cell["ci_high"].iloc[0]
    return f"{percent.iloc[0]:.1f}", f"[{low:.1f}, {high:.1f}]"


def _same_task_cells(heat: _HeatMap) -> list[tuple[int, int]]:
    """(row, column) of each cell that was trained on the task it is tested on."""
    return [
        (row, column)
        for row, (train_task, _) in enumerate(heat.rows)
        for column, task in enumerate(heat.tasks)
        if train_task == task and heat.accuracy[row][column] is not None
    ]


def _panels(history: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
    """Train tasks (rows) and metrics with titles (columns); only metrics that were recorded."""
    recorded = set(history["metric"])
    metrics = {metric: title for metric, title in TRAIN_METRICS.items() if metric in recorded}
    validation = sorted(m for m in recorded if m.startswith("val/") and m.count("/") == 1)
    metrics |= {metric: f"validation: {metric.removeprefix('val/')}" for metric in validation}
    return sorted(history["task"].unique()), metrics


def _titles(metrics: dict[str, str], task: str) -> list[str]:
    own = f"val/{task}"
    return [f"{title} (own task)" if metric == own else title for metric, title in metrics.items()]


def _curves(history: pd.DataFrame, tasks: list[str], metrics: list[str]) -> Iterator[_Curve]:
    """One curve for each task, metric, method and seed, methods in their canonical order."""
    for method in sort_methods(history["method"].unique()):
        cells = history[history["method"] == method].sort_values("step")
        for (task, seed, metric), points in cells.groupby(["task", "seed", "metric"], sort=True):
            if metric in metrics:
                yield _Curve(
                    tasks.index(str(task)),
                    metrics.index(str(metric)),
                    method,
                    str(seed),
                    points["step"].astype(int).tolist(),
                    points["value"].astype(float).tolist(),
                )
