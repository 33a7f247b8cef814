"""What MLflow's pages say of a grid and its models, read back from a real store."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from othink_pipeline.pipelines.cross_task.recording import record_results
from othink_pipeline.report.comparison import compare_all, differences_table
from othink_pipeline.report.matrix import sort_rows
from othink_pipeline.tracking import lifecycle, records, runs
from tests.support.handmade import KNOWN, MARGIN, METHODS, matrix_of, two_tasks

VERDICT = pd.DataFrame([("GRPO-D", "gains")], columns=["about", "finding"])
CELLS = [(task, method) for task in ("counting", "geometry") for method in ("sft", "grpo_d")]
COUNTING = "counting/grpo_d/s0"


@pytest.fixture
def client(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MlflowClient]:
    """A store with one experiment."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    mlflow.set_experiment("grid")
    yield MlflowClient()
    runs.set_parent(None)
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_EXPERIMENT_ID")


def begin(client: MlflowClient, name: str, env: str) -> str:
    """A `kedro run`; its id."""
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
    return {name: runs.start_run(name, "cell", about, {}) for name, about in tags.items()}


def record(predictions: pd.DataFrame) -> None:
    differences = differences_table(compare_all(sort_rows(predictions, METHODS), [], MARGIN))
    tables = matrix_of(predictions), predictions, differences, VERDICT
    record_results(*tables, KNOWN, methods=METHODS)


def note(client: MlflowClient, run_id: str) -> str:
    return str(client.get_run(run_id).data.tags.get("mlflow.note.content", ""))


def test_other_pictures_leave_the_descriptions_of_cells_as_they_are(client: MlflowClient) -> None:
    first = begin(client, "cross_task today", "base")
    models = start_models()
    made = {"method": "base"}  # `--pipelines=base_model,cross_task`: it is none of the grid's
    runs.start_run("base", "base_model", made, {})
    record(two_tasks())
    experiment = client.get_experiment_by_name("grid")
    assert "As of cross_task today, environment base:" in experiment.tags["mlflow.note.content"]
    before = note(client, models[COUNTING])
    assert before.startswith("GRPO-D on counting, seed 0.\n\n| trained on")  # a table of its own

    second = begin(client, "evaluation", "blind")
    for run_id in models.values():
        runs.join_grid(run_id, "tested")
    record(two_tasks().assign(image_of="another", correct=False))
    cell = client.get_run(models[COUNTING]).data
    assert cell.metrics["own/accuracy"] == 5 / 8
    assert cell.metrics["own_shuffled/accuracy"] == 0
    assert note(client, models[COUNTING]) == before
    told = client.get_experiment_by_name("grid").tags["mlflow.note.content"]
    assert told == note(client, second) != note(client, first)
    assert "As of evaluation, environment blind:" in told


def test_of_many_models_as_many_are_linked_as_there_is_room_for(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = begin(client, "cross_task", "seeds")
    models = start_models()

    def linked() -> list[tuple[str, str]]:
        return re.findall(r"\[(\S+)\]\(\S+/runs/(\w{32})\)", note(client, parent))

    record(two_tasks())
    assert linked() == sorted(models.items())
    monkeypatch.setattr(records, "NOTE_CHARACTERS", len(note(client, parent)))
    about = {"task": "counting", "method": "sft", "seed": "1"}  # it has no answers here
    models["a"] = runs.start_run("a", "cell", about, {})
    record(two_tasks())
    assert linked() == sorted(models.items())[:4]
    text = note(client, parent)
    assert text.endswith(") · and 2 more: see the view Transfer matrix")
    assert len(text) <= records.NOTE_CHARACTERS
