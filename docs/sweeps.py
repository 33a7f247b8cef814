"""Draw accuracy against what was swept, from the tables of a run.

    python docs/sweeps.py FOLDER FILE                   the KL weight, dynamic ones at their mean
    python docs/sweeps.py FOLDER FILE kl.weight         a key of the methods (conf/kl_constants*)
    python docs/sweeps.py FOLDER FILE rewards.format    (conf/format_weights)

``FOLDER`` holds ``transfer_matrix.csv`` and ``training.csv``; without arguments the figures of
``docs/results`` are drawn.
"""

from __future__ import annotations

import json
import sys
from functools import reduce
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

CELL = ["train_task", "method", "seed"]


def draw(folder: Path, file: Path, key: str | None = None) -> None:
    """A panel for each train task and eval task: a line of what is constant, points of what is not.

    The mean over base models (over seeds, of one base model) is drawn strongly, each of them
    faintly: levels differ between them, and what counts is whether they bend alike. Of a single
    seed the interval over items is drawn: a curve within it is none.

    Args:
        key: of a method's settings, with dots; None: the mean KL weight, logarithmic above 0.02.
    """
    matrix = pd.read_csv(folder / "transfer_matrix.csv")
    training = pd.read_csv(folder / "training.csv").rename(columns={"task": "train_task"})
    training["x"], training["constant"] = training["kl_weight_mean"], True
    if key:
        training["x"] = [_value(json.loads(text), key) for text in training["settings"]]
    else:
        spread = (training["kl_weight_mean"] - training["kl_weight_end"]).abs()
        training["constant"] = spread < 1e-9
    cells = matrix.merge(training[[*CELL, "x", "constant"]], on=CELL)
    tasks = sorted(matrix["eval_task"].unique())
    base = matrix[matrix["method"] == "base"].groupby("eval_task")["accuracy"].mean()
    figure, panels = plt.subplots(
        len(tasks), len(tasks), figsize=(11, 7), layout="constrained", sharex=True, squeeze=False
    )
    for row, train_task in zip(panels, tasks, strict=True):
        for panel, eval_task in zip(row, tasks, strict=True):
            of_both = (cells["train_task"] == train_task) & (cells["eval_task"] == eval_task)
            _panel(panel, cells[of_both], key or "constant")
            if not key or train_task != eval_task:  # far below it would flatten a paper's curve
                panel.axhline(
                    100 * base[eval_task], color="grey", linestyle=":", label="base model"
                )
            panel.set(title=f"trained on {train_task} → {eval_task}")
            panel.grid(alpha=0.3)
    if not key:
        panels[0][0].set_xscale("symlog", linthresh=0.02)
        panels[0][0].set_xlim(-0.004, 1.3 * cells["x"].max())
    for panel in panels[-1]:
        panel.set_xlabel(key or "KL weight (dynamic ones: mean over the updates)")
    for row in panels:
        row[0].set_ylabel("accuracy, %")
    figure.legend(
        *panels[0][-1].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _value(settings: dict[str, object], key: str) -> float:
    return float(reduce(lambda block, name: block[name], key.split("."), settings))  # type: ignore


def _panel(panel: Axes, cells: pd.DataFrame, line_label: str) -> None:
    unit = "base_model" if cells["base_model"].nunique() > 1 else "seed"
    by_unit = cells.groupby(["constant", "method", unit])[["x", "accuracy"]].mean()
    by_unit["accuracy"] *= 100
    scores = by_unit.groupby(["constant", "method"]).mean()
    for _, line in by_unit.loc[True].reset_index().groupby(unit):
        line = line.sort_values("x")
        panel.plot(line["x"], line["accuracy"], color="C0", alpha=0.3, linewidth=0.8)
    mean = scores.loc[True].sort_values("x")
    panel.plot(mean["x"], mean["accuracy"], color="C0", marker=".", label=line_label)
    if cells[unit].nunique() == 1:
        line = cells[cells["constant"]].sort_values("x")
        bounds = 100 * line["ci_low"], 100 * line["ci_high"]
        panel.fill_between(line["x"], *bounds, color="C0", alpha=0.15, label="95 %, over items")
    if False not in scores.index.get_level_values("constant"):
        return
    for place, (method, (x, accuracy)) in enumerate(scores.loc[False].iterrows(), start=1):
        style = {"color": f"C{place}", "marker": "ov^sDP*Xd"[place % 9], "linestyle": ""}
        each = by_unit.loc[(False, method)]
        panel.plot(each["x"], each["accuracy"], **style, alpha=0.3, markersize=4)
        panel.plot(x, accuracy, **style, label=method)


if __name__ == "__main__":
    results = Path("docs/results")
    published = (
        *(["kl_ablation"], ["kl_ablation_trl"], ["drift"], ["cold_start"]),
        *(["kl_constants_bases", "kl.weight"], ["format_weights", "rewards.format"]),
    )
    homes = [(results / name, results / name / "weights.png", *key) for name, *key in published]
    for folder, file, *key in [sys.argv[1:]] if sys.argv[1:] else homes:
        draw(Path(folder), Path(file), *map(str, key))
        print(file)
