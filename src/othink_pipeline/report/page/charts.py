"""Intervals and curves as coordinates: the page draws them, in the colours of its theme."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.comparison import read_differences
from othink_pipeline.report.matrix import sort_methods
from othink_pipeline.report.parameters import KnownMethods
from othink_pipeline.report.tables import p_text, signed
from othink_pipeline.report.training import kl_pull
from othink_pipeline.report.verdict import SCOPE_NAMES, conclusion


class Whisker(NamedTuple):
    """One difference in a forest plot; places in % of the plot's width."""

    label: str
    scope: str
    low: float
    value: float
    high: float
    text: str
    p: str
    """With its unit."""
    conclusion: str
    margin: tuple[float, float] | None
    """Start and width of what counts as equivalent; None against the base model."""


class Forest(NamedTuple):
    """Differences on one axis."""

    whiskers: list[Whisker]
    zero: float
    ticks: list[tuple[float, str]]
    margin: float
    """In points either way, between methods; 0 where no two are compared."""


class Line(NamedTuple):
    """One curve: its method and its points in a frame of 100 x 100, y downwards."""

    method: str
    points: str


class Panel(NamedTuple):
    """Curves on common axes."""

    title: str
    lines: list[Line]
    top: str
    bottom: str
    last_step: int
    summary: str
    """The text alternative: where each method begins and ends."""


def forest(differences: pd.DataFrame, known: KnownMethods) -> Forest:
    """All tested differences.

    Args:
        differences: as from :func:`comparison.differences_table`.
    """
    from matplotlib.ticker import MaxNLocator

    rows = read_differences(differences)
    ends = [0.0, *(end for row in rows for end in (row.low, row.high, row.points))]
    ends += [end for row in rows if row.baseline != BASE for end in (-row.margin, row.margin)]
    low, high = np.nanmin(ends), np.nanmax(ends) if rows else 1.0
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
    start, width = ticks[0], ticks[-1] - ticks[0]

    def place(points: float) -> float:
        return round(100 * (points - start) / width, 2)

    whiskers = []
    for row in rows:
        baseline = "base model" if row.baseline == BASE else known.label(row.baseline)
        p = f"p = {p_text(row.p_holm)}".replace("= <", "<")
        whiskers.append(
            Whisker(
                label=f"{known.label(row.method)} − {baseline}",
                scope=SCOPE_NAMES[row.scope],
                low=place(row.low),
                value=place(row.points),
                high=place(row.high),
                text=signed(row.widest, 1).replace("-", "−"),
                p=f"{'no test' if math.isnan(row.p_holm) else p}, {row.basis}",
                conclusion=conclusion(row),
                margin=None
                if row.baseline == BASE
                else (place(-row.margin), round(200 * row.margin / width, 2)),
            )
        )
    margin = max((row.margin for row in rows if row.baseline != BASE), default=0.0)
    return Forest(whiskers, place(0), [(place(tick), _signed(tick)) for tick in ticks], margin)


def _signed(points: float) -> str:
    return f"{points:+g}".replace("-", "−") if points else "0"


def curve_panels(
    history: pd.DataFrame, methods: Sequence[str], known: KnownMethods
) -> dict[str, list[Panel]]:
    """Curves by train task: accuracy on the own and on the other tasks, then what RL reports.

    Args:
        history: columns task, method, seed, step, metric, value.
        methods: the order of the grid's methods.
    """
    curves = pd.concat([history, _kl_pulls(history)], ignore_index=True)
    recorded = set(curves["metric"])
    validated = sorted(m for m in recorded if m.startswith("val/") and m.count("/") == 1)
    panels: dict[str, list[Panel]] = {}
    for task in sorted(curves["task"].unique()):
        own = f"val/{task}"
        titles = {m: f"{m.removeprefix('val/')} (other task)" for m in validated}
        titles = {own: f"{task} (own task)", **{m: t for m, t in titles.items() if m != own}}
        titles = {m: f"accuracy, {title}" for m, title in titles.items()}
        titles |= RL_TITLES
        of_task = curves[curves["task"] == task]
        panels[task] = [
            _panel(title, of_task[of_task["metric"] == metric], methods, known)
            for metric, title in titles.items()
            if metric in set(of_task["metric"])
        ]
    return panels


KL_PULL = "kl_pull"
RL_TITLES = {
    "train/reward": "reward",
    "train/completion_tokens": "completion length, tokens",
    KL_PULL: "KL weight × √(2 KL)",
}


def _kl_pulls(history: pd.DataFrame) -> pd.DataFrame:
    """The KL term's pull at each step that has a KL and a weight."""
    keys = ["task", "method", "seed", "step"]
    factors = history[history["metric"].isin(["train/kl_weight", "train/kl"])]
    both = factors.pivot(index=keys, columns="metric", values="value").dropna()
    if both.shape[1] < 2:
        return history.iloc[:0]
    pull = kl_pull(both["train/kl_weight"], both["train/kl"])
    return pull.rename("value").reset_index().assign(metric=KL_PULL)


def _panel(title: str, curves: pd.DataFrame, methods: Sequence[str], known: KnownMethods) -> Panel:
    from matplotlib.ticker import MaxNLocator

    is_share = title.startswith("accuracy")
    top = 1.0 if is_share else MaxNLocator(4).tick_values(0, curves["value"].max())[-1]
    bottom = min(0.0, curves["value"].min())
    last = max(1, int(curves["step"].max()))
    lines, ends = [], []
    for method in sort_methods(curves["method"], methods):
        of_method = curves[curves["method"] == method].sort_values("step")
        for _, line in of_method.groupby("seed"):
            lines.append(Line(method, _points(line, last, bottom, top)))
        by_step = of_method.groupby("step")["value"].mean()
        first, final = (_figure(by_step.iloc[end], is_share) for end in (0, -1))
        ends.append(f"{known.label(method)} {first} → {final}")
    summary = f"{title}, first → last step: {'; '.join(ends)}"
    return Panel(title, lines, _figure(top, is_share), _figure(bottom, is_share), last, summary)


def _points(line: pd.DataFrame, last: int, bottom: float, top: float) -> str:
    height = (top - bottom) or 1
    return " ".join(
        f"{100 * step / last:.1f},{100 * (top - value) / height:.1f}"
        for step, value in zip(line["step"], line["value"], strict=True)
        if value == value  # NaN: it was not recorded
    )


def _figure(value: float, is_share: bool) -> str:
    return f"{100 * value:.0f} %" if is_share else f"{value:.3g}"


def dashes(methods: Sequence[str]) -> Mapping[str, str]:
    """A pattern of dashes for each method: told apart without colours, too."""
    patterns = ("none", "7 3", "3 3", "9 3 2 3", "12 4", "2 5")
    return {method: patterns[n % len(patterns)] for n, method in enumerate(methods)}
