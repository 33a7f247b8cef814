"""A grid by hand in MLflow: the run of a `kedro run`, its models' and their scores."""

from __future__ import annotations

import pandas as pd
from mlflow import MlflowClient

from othink_pipeline.pipelines.cross_task.recording import record_results
from othink_pipeline.report.comparison import compare_all, differences_table
from othink_pipeline.report.matrix import sort_rows
from othink_pipeline.tracking import lifecycle, runs
from tests.support.handmade import KNOWN, MARGIN, METHODS, matrix_of

VERDICT = pd.DataFrame([("GRPO-D", "gains")], columns=["about", "finding"])
CELLS = [(task, method) for task in ("counting", "geometry") for method in ("sft", "grpo_d")]


def begin(client: MlflowClient, name: str, env: str) -> str:
    """A `kedro run`, in the experiment ``grid``; its id."""
    experiment_id = client.get_experiment_by_name("grid").experiment_id
    parent: str = client.create_run(experiment_id).info.run_id
    lifecycle.name_parent(parent, name, {"env": env})
    runs.set_parent(parent)
    return parent


def start_models() -> dict[str, str]:
    """The runs of the grid's models: name -> id."""
    tags = {
        f"{task}/{method}/s0": {"task": task, "method": method, "seed": "0"}
        for task, method in CELLS
    }
    tags["base/b0"] = {"method": "base", "base_model": "0"}
    return {name: runs.start_run(name, "cell", about) for name, about in tags.items()}


def record(predictions: pd.DataFrame) -> None:
    """What the last node records of ``predictions``."""
    differences = differences_table(compare_all(sort_rows(predictions, METHODS), [], MARGIN))
    tables = matrix_of(predictions), predictions, differences, VERDICT
    record_results(*tables, KNOWN, methods=METHODS)
