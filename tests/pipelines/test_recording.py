"""What MLflow's pages say of a grid and its models, read back from a real store."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from othink_pipeline.tracking import records, runs
from tests.support.handmade import two_tasks
from tests.support.recorded import begin, record, start_models
from tests.support.store import open_store

COUNTING = "counting/grpo_d/s0"


@pytest.fixture
def client(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MlflowClient]:
    """A store with one experiment."""
    monkeypatch.chdir(tmp_path)
    with open_store(empty_store, tmp_path, "grid"):
        yield MlflowClient()
    runs.set_parent(None)


def note(client: MlflowClient, run_id: str) -> str:
    return str(client.get_run(run_id).data.tags.get("mlflow.note.content", ""))


def test_other_pictures_leave_the_descriptions_of_cells_as_they_are(client: MlflowClient) -> None:
    first = begin(client, "cross_task today", "base")
    models = start_models()
    made = {"method": "base"}  # `--pipelines=base_model,cross_task`: it is none of the grid's
    runs.start_run("base", "base_model", made)
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
    models["a"] = runs.start_run("a", "cell", about)
    record(two_tasks())
    assert linked() == sorted(models.items())[:4]
    text = note(client, parent)
    assert text.endswith(") · and 2 more: see the view Transfer matrix")
    assert len(text) <= records.NOTE_CHARACTERS
