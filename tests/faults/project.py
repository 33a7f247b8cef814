"""A small project to hurt, and what must come out of it whatever happened on the way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import yaml

from tests.conftest import shipped
from tests.support import commands
from tests.support.clone import make_clone

ROOT = Path(__file__).parents[2]
TASKS, METHODS = ("counting", "geometry"), ("sft", "grpo_d")
UPDATES = 5
SAVED_EVERY = 2
PARAMETERS: dict[str, Any] = {
    "experiment": {"tasks": list(TASKS), "methods": list(METHODS), "seeds": [0]},
    "data_preparation": {
        "seed": 0,
        "splits": {"base": 16, "train": 9, "validation": 4, "test": 16},
        "prompt": "{question}  Answer in <think> </think> and <answer> </answer> tags.",
        "max_rejected": 0,
        "train_examples": {},
        "sources": {},
    },
    "base_model": shipped("base_model", path="data/01_raw/tiny"),
    "training": {
        **shipped("training"),
        "updates": UPDATES,
        "prompts_per_update": 3,
        "checkpoint_every_updates": 3,
        "validation_examples": 4,
    },
    "evaluation": {
        "batch_size": 8,
        "max_completion_tokens": 10,
        "samples": 0,
        "sample_temperature": 1.0,
        "shuffle_images": False,
        "seed": 0,
    },
    "compute": shipped("compute", resume_every_updates=SAVED_EVERY),
    "rl": {
        **shipped("rl"),
        "learning_rate": 2.0e-3,
        "lr_schedule": "cosine",
        "warmup_ratio": 0.0,
        "max_grad_norm": 1.0,
        "weight_decay": 0.01,
        "completions_per_prompt": 4,
        "unbiased_kl": True,
        "max_completion_tokens": 10,
        "temperature": 1.0,
        "rewards": {"accuracy": 1.0, "format": 1.0, "answer": "any"},
    },
    "methods": {
        "sft": {"algorithm": "sft", "target": "steps", "learning_rate": 2.0e-3},
        "grpo_d": {
            "algorithm": "rl",
            "kl": {
                "schedule": "adaptive",
                "start": 0.3,
                "target": 0.02,
                "gain": 2.0,
                "low": 0.01,
                "high": 5.0,
            },
        },
    },
    "report": {"comparisons": [["grpo_d", "sft"]], "equivalence_margin": 3.0},
}


class Outcome(NamedTuple):
    """What does not depend on when it was made; two runs are alike if these are equal."""

    matrix: str
    """transfer_matrix.csv."""
    history: list[tuple[Any, ...]]
    """Every value of every curve."""
    weights: dict[str, str]
    """Digest of each cell's last checkpoint."""
    costs: list[tuple[Any, ...]]
    """Updates, prompts, tokens and change of each cell."""
    records: dict[str, dict[str, list[tuple[int, float]]]]
    """Cell -> metric -> (step, value), as MLflow has them; doubles would show."""
    ends: dict[str, str]
    """Run name -> status, of the cells and base models."""


def make_project(folder: Path, model: Path, **blocks: Any) -> Path:
    """A project with the tiny model, nothing prepared; some blocks of parameters may be others."""
    make_clone(folder)
    (folder / "conf" / "test").mkdir()
    parameters = folder / "conf" / "test" / "parameters.yml"
    parameters.write_text(yaml.safe_dump({**PARAMETERS, **blocks}))
    shutil.copytree(model, folder / "data/01_raw/tiny")
    return folder


ON_RAY = "--runner=othink_pipeline.cluster.runner.RayRunner"


def start(
    project: Path,
    wound: dict[str, Any] | None = None,
    *kedro_options: str,
    output: Path | None = None,
) -> commands.Command:
    """`kedro run` in a process of its own; what it says goes to ``log.txt`` in the project."""
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")},
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "OMP_NUM_THREADS": "1",
        "DO_NOT_TRACK": "true",
        "KEDRO_DISABLE_TELEMETRY": "true",
        "OTHINK_PARENT_RUN_ID": "",
    }
    options = [json.dumps(wound or {}), str(project / "steps")]
    options += ["--env=test", "--pipelines=cross_task", *kedro_options]
    log = output or project / "log.txt"
    return commands.start("tests.faults.victim", *options, cwd=project, output=log, env=environment)


def run(project: Path, wound: dict[str, Any] | None = None, *options: str) -> int:
    """The exit code of ``start``; negative for a signal."""
    return start(project, wound, *options).wait(timeout=600)


def steps_taken(project: Path) -> int:
    """Optimizer steps of all runs in the project so far."""
    file = project / "steps"
    return file.stat().st_size if file.exists() else 0


def read_outcome(project: Path, store: str | None = None) -> Outcome:
    """What is there after a finished run."""
    from mlflow import MlflowClient

    reports = project / "data/08_reporting"
    history = pd.read_csv(reports / "history.csv")
    history = history[history["metric"] != "cost/seconds"]
    training = pd.read_csv(reports / "training.csv")
    client = MlflowClient(store or f"sqlite:///{project}/mlflow.db")
    experiment = client.get_experiment_by_name("othink-pipeline")
    ends: dict[str, str] = {}
    for record in client.search_runs([experiment.experiment_id], "tags.kind != 'grid'"):
        name = record.info.run_name
        while name in ends:  # a second run of a cell must not hide behind the first
            name += " again"
        ends[name] = record.info.status
    manifests = {
        f"{file.parts[-3]}.{file.parts[-2]}": json.loads(file.read_text())
        for file in (project / "data/06_models").glob("*/*/s0.json")
    }
    records = {
        cell: {
            metric: sorted(
                (point.step, point.value)
                for point in client.get_metric_history(manifest["run_id"], metric)
            )
            for metric in client.get_run(manifest["run_id"]).data.metrics
            if metric != "cost/seconds"
        }
        for cell, manifest in manifests.items()
    }
    return Outcome(
        matrix=(reports / "transfer_matrix.csv").read_text(),
        history=_rows(history, ["task", "method", "seed", "step", "metric", "value"]),
        weights={cell: manifest["digest"] for cell, manifest in manifests.items()},
        costs=_rows(
            training,
            ["task", "method", "updates", "prompts", "completion_tokens", "weights_changed"],
        ),
        records=records,
        ends=ends,
    )


def leftovers(project: Path) -> list[str]:
    """Half-written files and states that nobody needs any more."""
    patterns = (".*.new", ".*.old", "resume/checkpoint-*")
    found = (path for pattern in patterns for path in (project / "data").rglob(pattern))
    return sorted(str(path.relative_to(project)) for path in found)


def _rows(table: pd.DataFrame, columns: Iterable[str]) -> list[tuple[Any, ...]]:
    return sorted(table[list(columns)].itertuples(index=False, name=None))
