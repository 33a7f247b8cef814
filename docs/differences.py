"""Draw differences between methods, from the matrices of runs: ``python docs/differences.py``.

A point is a base model, the bar their mean and its 95 % interval (t), the band what counts as
equivalent.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from scipy import stats

RESULTS = Path("docs/results")
MARGIN = 3.0
"""Points within which two methods count as equivalent (``report.equivalence_margin``)."""


class Row(NamedTuple):
    """A difference, over the base models of one run or of several that share none but the first."""

    label: str
    method: str
    baseline: str
    runs: tuple[str, ...]


GRID = ("seeds", "seeds_again")
ROWS = [
    Row("GRPO-D − GRPO", "grpo_d", "grpo", GRID),
    Row("GRPO-D − constant of its mean", "grpo_d", "grpo_mean", GRID),
    Row(
        "larger weights: dip − constant of its mean", "explore_exploit", "kl_0111", ("kl_ablation",)
    ),
    Row("cosine upwards − downwards", "cosine", "cosine_down", ("kl_ablation",)),
    Row("constant 0.25 − next to none", "kl_025", "kl_1e6", ("kl_ablation",)),
    Row("the same from models that think already", "kl_025", "kl_1e6", ("cold_start",)),
    Row("dip − constant of its mean, from these", "explore_exploit", "kl_0111", ("cold_start",)),
]


def differences(row: Row, across: bool) -> pd.Series[float]:
    """Points by base model: the mean over train tasks of that over eval tasks."""
    found = []
    for number, run in enumerate(row.runs):
        matrix = pd.read_csv(RESULTS / run / "transfer_matrix.csv")
        asked = (matrix["train_task"] != matrix["eval_task"]) == across
        scores = matrix[asked].groupby(["method", "base_model", "train_task"])["accuracy"].mean()
        each = 100 * (scores[row.method] - scores[row.baseline]).groupby("base_model").mean()
        # The shipped base model stands in every run, with the same cells.
        found.append(each if number == 0 else each.drop(0))
    return pd.concat(found, ignore_index=True)


def draw(file: Path) -> None:
    """Two panels, a line for each of ``ROWS``."""
    figure, panels = plt.subplots(
        1, 2, figsize=(11, 0.5 * len(ROWS) + 1.3), layout="constrained", sharey=True
    )
    for panel, across in zip(panels, (False, True), strict=True):
        panel.axvspan(-MARGIN, MARGIN, color="grey", alpha=0.15, linewidth=0)
        panel.axvline(0, color="grey", linewidth=0.8)
        for place, row in enumerate(ROWS):
            points = differences(row, across)
            mean, n = points.mean(), len(points)
            half = stats.t.ppf(0.975, n - 1) * points.std() / n**0.5
            panel.plot(points, [place] * n, "o", color="C0", alpha=0.35, markersize=5)
            panel.errorbar(mean, place, xerr=half, fmt="D", color="C3", capsize=4, markersize=5)
            text = f"{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]".replace("-", "−")
            panel.annotate(
                text,
                (1.0, place - 0.32),
                xycoords=("axes fraction", "data"),
                ha="right",
                fontsize=8,
            )
        panel.set(title="across tasks" if across else "own task", xlabel="points of accuracy")
        panel.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(ROWS)), [row.label for row in ROWS])
    panels[0].set_ylim(len(ROWS) - 0.5, -0.6)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    target = RESULTS / "differences.png"
    draw(target)
    print(target)
