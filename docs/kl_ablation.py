"""Draw accuracy against KL weight, from the tables of a run: python docs/kl_ablation.py."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes


def draw(folder: Path, file: Path) -> None:
    """A panel for each train task and eval task: constants as a line, dynamic weights as points.

    Args:
        folder: holds ``transfer_matrix.csv`` and ``training.csv``.
        file: the picture.
    """
    matrix = pd.read_csv(folder / "transfer_matrix.csv")
    training = pd.read_csv(folder / "training.csv").rename(columns={"task": "train_task"})
    weights = training.groupby("method")[["kl_weight_mean", "kl_weight_end"]].mean()
    is_constant = weights["kl_weight_mean"].sub(weights["kl_weight_end"]).abs() < 1e-9
    tasks = sorted(matrix["eval_task"].unique())
    base = matrix[matrix["method"] == "base"].groupby("eval_task")["accuracy"].mean()
    figure, panels = plt.subplots(
        len(tasks), len(tasks), figsize=(11, 7), layout="constrained", sharex=True, squeeze=False
    )
    for row, train_task in enumerate(tasks):
        for column, eval_task in enumerate(tasks):
            panel = panels[row][column]
            cells = matrix[
                (matrix["train_task"] == train_task) & (matrix["eval_task"] == eval_task)
            ]
            scores = cells.groupby("method")["accuracy"].agg(["mean", "min", "max"]) * 100
            scores = scores.join(weights).sort_values("kl_weight_mean")
            _constants(panel, scores[is_constant.reindex(scores.index)])
            _dynamic(panel, scores[~is_constant.reindex(scores.index)])
            panel.axhline(100 * base[eval_task], color="grey", linestyle=":", label="base model")
            panel.set(xscale="log", title=f"trained on {train_task} → {eval_task}")
            panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("KL weight (dynamic ones: mean over the updates)")
    for panels_of_row in panels:
        panels_of_row[0].set_ylabel("accuracy, %")
    figure.legend(
        *panels[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _constants(panel: Axes, scores: pd.DataFrame) -> None:
    panel.fill_between(scores["kl_weight_mean"], scores["min"], scores["max"], alpha=0.15)
    panel.plot(scores["kl_weight_mean"], scores["mean"], marker=".", label="constant")


def _dynamic(panel: Axes, scores: pd.DataFrame) -> None:
    markers = dict(zip(sorted(scores.index), "ov^sDP*X", strict=False))
    for method, score in scores.iterrows():
        spread = [[score["mean"] - score["min"]], [score["max"] - score["mean"]]]
        panel.errorbar(
            score["kl_weight_mean"],
            score["mean"],
            yerr=spread,
            fmt=markers[method],
            capsize=2,
            label=method,
        )


if __name__ == "__main__":
    folder, file = (
        sys.argv[1:]
        if len(sys.argv) > 1
        else (
            "docs/results/kl_ablation",
            "docs/results/kl_ablation/weights.png",
        )
    )
    draw(Path(folder), Path(file))
    print(file)
