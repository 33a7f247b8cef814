"""Data preparation: pictures a second, and memory over the number of examples."""

from __future__ import annotations

import subprocess
import sys
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import ROOT, record

SIZES = (1_000, 10_000, 100_000)
SCRIPT = """
import resource, sys, time
from pathlib import Path
from othink_pipeline.data.parameters import DataPreparation
from othink_pipeline.data.preparation import prepare_splits

task, split, count, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
splits = {"base": 1, "train": 1, "validation": 1, "test": 1, split: count}
blank = {"train_examples": {}, "sources": {}}
settings = DataPreparation(seed=0, splits=splits, prompt="{question}", max_rejected=0, **blank)
started = time.perf_counter()
prepare_splits(settings, task, (split,), folder / task)
seconds = time.perf_counter() - started
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure() -> list[dict[str, Any]]:
    """A row for each task and number of examples, each in a process of its own."""
    rows = []
    for task, split in (("counting", "train"), ("geometry", "base")):
        for count in SIZES:
            with TemporaryDirectory() as folder:
                command = [sys.executable, "-c", SCRIPT, task, split, str(count), folder]
                ran = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
            seconds, kilobytes = map(float, ran.stdout.split()[-2:])
            rows.append(
                {
                    "task": task,
                    "split": split,
                    "examples": count,
                    "pictures/s": round(count / seconds),
                    "peak memory (GB)": kilobytes * 1024 / 1e9,
                }
            )
    return rows


if __name__ == "__main__":
    record(
        "data_preparation",
        "Data preparation over the number of examples",
        measure(),
        "Examples drawn, rendered, checked, digested and published by one process "
        "(`prepare_splits`). The peer is the same at a tenth of the size: what grows with the "
        "number of examples are the keys that keep a problem from standing in `train` twice. "
        "Geometry has not so many distinct problems: its row is the split in which they repeat.",
    )
