"""The whole grid of the embedded default against the same cells as a plain script on stock TRL."""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

from benchmarks.harness import ROOT, record, table

METHODS = ("sft", "grpo", "grpo_d")  # this and what follows: as conf/base
UPDATES, TEST_ITEMS = 48, 1000
CHECKPOINTS = 3
OWN_SETTINGS = ("KEDRO_ENV", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID")
"""Variables of the user's shell that would send a run elsewhere."""


def copy_project(folder: Path) -> Path:
    """A copy of what git tracks: runs there leave the user's data and records alone."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, tracked.stdout.split("\0")):
        if (ROOT / name).exists():  # not deleted since
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


class Done(NamedTuple):
    """A command that has ended well."""

    seconds: float
    """Wall-clock of the whole process."""
    output: str


def run(command: list[str], project: Path, limit_s: float | None = None, **variables: str) -> Done:
    """Run a command in a project, with the code of that project.

    Raises:
        CalledProcessError: it failed; what it said is printed.
        TimeoutExpired: it took longer than ``limit_s``.
    """
    environment = {name: value for name, value in os.environ.items() if name not in OWN_SETTINGS}
    environment |= {
        "PYTHONPATH": f"{project / 'src'}{os.pathsep}{ROOT}",
        "DO_NOT_TRACK": "true",
        "KEDRO_DISABLE_TELEMETRY": "true",
        **variables,
    }
    started = perf_counter()
    done = subprocess.run(
        command, cwd=project, env=environment, capture_output=True, text=True, timeout=limit_s
    )
    seconds = perf_counter() - started
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
    done.check_returncode()
    return Done(seconds, done.stdout)


def read_kedro(project: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of training by method, and accuracies, both named as in the plain script."""
    seconds: dict[str, float] = {}
    with (project / "data/08_reporting/training.csv").open() as file:
        for row in csv.DictReader(file):
            part = f"train {row['method']}"
            seconds[part] = seconds.get(part, 0.0) + float(row["seconds"])
    with (project / "data/08_reporting/transfer_matrix.csv").open() as file:
        accuracies = {
            f"{row['train_task']}.{row['method']}.{row['eval_task']}": float(row["accuracy"])
            for row in csv.DictReader(file)
        }
    return seconds, accuracies


def largest_difference(
    ours: dict[str, float], plain: dict[str, float], methods: list[str]
) -> float:
    """The largest difference of accuracies over some methods' rows of the matrix, in points.

    Raises:
        RuntimeError: the two did not test the same cells: their seconds compare nothing.
    """
    if set(ours) != set(plain):
        raise RuntimeError(f"not in both: {', '.join(sorted(set(ours) ^ set(plain)))}")
    return max(100 * abs(ours[n] - plain[n]) for n in plain if n.split(".")[1] in methods)


def measure(updates: int, test_items: int) -> list[dict[str, Any]]:
    """A row for each of: the plain script, the project as it is, and without shared prompts."""
    parameters = (
        f"training.updates={updates},"
        f"training.checkpoint_every_updates={max(updates // CHECKPOINTS, 1)},"
        f"data_preparation.splits.test={test_items}"
    )
    peers = {"kedro run": parameters}
    peers["kedro run, share_prompts: false"] = f"{parameters},compute.share_prompts=false"
    results: dict[str, tuple[float, dict[str, float], dict[str, float]]] = {}
    with TemporaryDirectory() as scratch:
        for peer, its_parameters in peers.items():
            project = copy_project(Path(scratch) / str(len(results)))
            command = [sys.executable, "-m", "kedro", "run", "--pipelines=cross_task"]
            done = run([*command, f"--params={its_parameters}"], project)
            results[peer] = (done.seconds, *read_kedro(project))
            print(f"{peer}: {results[peer][0]:.0f} s", flush=True)
        out = Path(scratch) / "plain.json"
        options = {
            "--updates": updates,
            "--test-items": test_items,
            "--examples": Path(scratch) / "0/data/03_primary",
            "--out": out,
        }
        command = [sys.executable, "-m", "benchmarks.plain_grid"]
        command += [str(word) for option in options.items() for word in option]
        seconds = run(command, ROOT).seconds
        plain = json.loads(out.read_text())
    results = {"plain TRL script": (seconds, plain["seconds"], plain["accuracies"]), **results}
    return [
        {
            "peer": peer,
            "s": seconds,
            "of plain": seconds / results["plain TRL script"][0],
            **{f"train {method} s": parts[f"train {method}"] for method in METHODS},
            "not training s": seconds - sum(parts[f"train {method}"] for method in METHODS),
            "points off, base and SFT": largest_difference(
                accuracies, plain["accuracies"], ["base", "sft"]
            ),
            "points off, RL": largest_difference(
                accuracies, plain["accuracies"], ["grpo", "grpo_d"]
            ),
        }
        for peer, (seconds, parts, accuracies) in results.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--test-items", type=int, default=TEST_ITEMS)
    options = parser.parse_args()
    rows = measure(options.updates, options.test_items)
    if (options.updates, options.test_items) != (UPDATES, TEST_ITEMS):
        print(f"{table(rows)}\nA trial: not recorded.")
        sys.exit()
    record(
        "grid",
        "The whole grid against a plain TRL script",
        rows,
        f"`kedro run --pipelines=cross_task`: the base model, and 2 tasks x 3 methods with "
        f"seed 0, {UPDATES} updates a cell, each checkpoint scored on "
        f"200 validation examples of each task, each cell tested on {TEST_ITEMS:,} items of each. "
        "The peer (`benchmarks/plain_grid.py`) runs the same cells on the same examples with TRL's "
        "own trainers and `model.generate` (batches of 64, in the order of the file) in one "
        "process, without tracking or report; it finds the examples made, the others make them "
        "first. Seconds: the whole process, imports included; the three run one after the other, "
        "not in turns. Training leaves out the scoring of checkpoints; the plain script's includes "
        "building the trainer. Points off: the largest difference of a test accuracy to the plain "
        "script's. RL samples: there a rounding grows into other completions.",
    )
