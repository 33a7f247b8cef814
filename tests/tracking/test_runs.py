"""What the UI of MLflow will show, read back from a real SQLite store."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from pandas import DataFrame
from PIL import Image

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.processes import process_start
from othink_pipeline.tracking import lifecycle, records, runs
from othink_pipeline.tracking.journal import DatasetRef
from othink_pipeline.tracking.runs import finished_run, open_run
from tests.support.store import open_store

TEST_SPLIT = DatasetRef("counting_test", digest="ab" * 32, source="data/test", examples=1000)


@pytest.fixture(scope="module")
def client(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """A store with one experiment."""
    with open_store(empty_store, tmp_path_factory.mktemp("store")):
        yield MlflowClient()


@pytest.fixture
def parent(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> str:
    experiment = client.get_experiment_by_name("tests")
    tags = {"mlflow.user": "ada", "mlflow.source.git.commit": "c0ffee", "git_dirty": "true"}
    tags["env"] = "smoke"
    run_id: str = client.create_run(experiment.experiment_id, tags=tags).info.run_id
    monkeypatch.setenv(runs.PARENT_VARIABLE, run_id)
    return run_id


@pytest.fixture
def cell(parent: str) -> str:
    return runs.start_run("counting/grpo/s0", "cell", {"task": "counting"})


def logged_model(client: MlflowClient, model_id: str) -> LoggedModel:
    return client.get_logged_model(model_id)


def test_the_parent_reaches_worker_processes_through_the_environment() -> None:
    runs.set_parent("abc")
    assert os.environ["OTHINK_PARENT_RUN_ID"] == runs.parent_run_id() == "abc"
    runs.set_parent(None)
    assert "OTHINK_PARENT_RUN_ID" not in os.environ
    assert runs.parent_run_id() is None


def test_a_run_is_the_child_of_the_parent_even_while_another_run_is_active(
    client: MlflowClient, parent: str
) -> None:
    with mlflow.start_run():
        run_id = runs.start_run(
            "counting/grpo/s0", "cell", {"task": "counting", "method": "grpo", "seed": "0"}
        )
    run = client.get_run(run_id)
    assert run.info.run_name == "counting/grpo/s0"
    assert run.info.status == "RUNNING"
    assert run.info.experiment_id == client.get_run(parent).info.experiment_id
    expected = {
        "mlflow.parentRunId": parent,
        "kind": "cell",
        "task": "counting",
        "method": "grpo",
        "seed": "0",
        runs.PID: str(os.getpid()),
        "mlflow.user": "ada",
        "mlflow.source.git.commit": "c0ffee",
        "git_dirty": "true",
        "env": "smoke",
    }
    assert {key: run.data.tags[key] for key in expected} == expected
    assert run.data.tags[runs.HOST]


def test_without_a_parent_a_run_is_on_the_top_level(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(runs.PARENT_VARIABLE, raising=False)
    run = client.get_run(runs.start_run("base", "base_model", {}))
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.data.tags["code_version"]
    assert run.info.experiment_id == client.get_experiment_by_name("tests").experiment_id


def test_parameters_are_flat_complete_and_batched(
    client: MlflowClient, parent: str, tmp_path: Path
) -> None:
    many = {f"key{index}": index for index in range(250)}  # MLflow takes 100 at a time
    parameters = {"kl": {"shape": {"start": 0.0}, "end": 0.2}, "none": None, "empty": {}, **many}
    run = client.get_run(open_run(tmp_path / "run.json", "a", "cell", {}, parameters))
    expected = {"kl.shape.start": "0.0", "kl.end": "0.2", "none": "None", "empty": "{}"}
    assert run.data.params == expected | {key: str(value) for key, value in many.items()}
    assert not client.list_artifacts(run.info.run_id)


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "FAILED")],
)
def test_a_run_that_is_left_early_says_how(
    client: MlflowClient, parent: str, error: type[BaseException], status: str
) -> None:
    run_id = runs.start_run("a", "cell", {})
    with pytest.raises(error), runs.ending(run_id):
        raise error
    assert client.get_run(run_id).info.status == status


def test_a_run_that_is_left_in_order_is_finished(client: MlflowClient, parent: str) -> None:
    run_id = runs.start_run("a", "cell", {})
    with runs.ending(run_id):
        assert client.get_run(run_id).info.status == "RUNNING"
    assert client.get_run(run_id).info.status == "FINISHED"


def test_metrics_keep_their_steps_and_what_is_unknown(client: MlflowClient, cell: str) -> None:
    records.log_scores(cell, {"train/reward": 0.25, "train/kl": math.nan}, step=1)
    runs.finish_run(cell)
    records.log_scores(cell, {"train/reward": 0.75}, step=2)  # after the end too
    history = client.get_metric_history(cell, "train/reward")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 0.25), (2, 0.75)]
    assert math.isnan(client.get_run(cell).data.metrics["train/kl"])


def test_a_dataset_has_our_digest_and_a_context(client: MlflowClient, cell: str) -> None:
    records.log_dataset(cell, TEST_SPLIT, "test")
    (logged,) = client.get_run(cell).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("counting_test", "ab" * 18)
    assert json.loads(logged.dataset.profile) == {"num_rows": 1000, "digest": "ab" * 32}
    assert json.loads(logged.dataset.source) == {"uri": "data/test"}
    assert [(tag.key, tag.value) for tag in logged.tags] == [("mlflow.data.context", "test")]


def test_a_checkpoint_is_a_model_by_reference_and_an_output_of_its_run(
    client: MlflowClient, cell: str, tmp_path: Path
) -> None:
    model_id = records.log_checkpoint(cell, "counting/grpo/s0", 60, tmp_path, {"digest": "beef"})
    model = logged_model(client, model_id)
    assert model.name == "counting-grpo-s0-step60"
    assert model.source_run_id == cell
    assert model.status == "READY"
    assert model.params == {"name": "counting/grpo/s0", "task": "counting", "step": "60"}
    tags = {"checkpoint": tmp_path.as_uri(), "step": "60", "digest": "beef"}
    assert {key: model.tags[key] for key in tags} == tags
    outputs = client.get_run(cell).outputs.model_outputs
    assert [(output.model_id, output.step) for output in outputs] == [(model_id, 60)]


def test_a_checkpoint_registered_again_is_the_same_model(
    client: MlflowClient, cell: str, tmp_path: Path
) -> None:
    first = records.log_checkpoint(cell, "counting/grpo/s0", 60, tmp_path, {"digest": "beef"})
    other = records.log_checkpoint(cell, "counting/grpo/s0", 6, tmp_path, {})
    again = records.log_checkpoint(cell, "counting/grpo/s0", 60, tmp_path, {"digest": "f00d"})
    assert first == again != other
    assert logged_model(client, first).tags["digest"] == "f00d"
    outputs = client.get_run(cell).outputs.model_outputs
    assert sorted((output.step, output.model_id) for output in outputs) == [(6, other), (60, first)]


def test_scores_stand_on_the_run_the_checkpoint_and_the_dataset(
    client: MlflowClient, cell: str, tmp_path: Path
) -> None:
    model_id = records.log_checkpoint(cell, "counting/grpo/s0", 60, tmp_path, {})
    other_id = records.log_checkpoint(cell, "counting/grpo/s0", 30, tmp_path, {})
    scores = {"eval/counting": 0.5, "eval/geometry": math.nan}
    records.log_scores(cell, scores, 60, model_id=model_id, dataset=TEST_SPLIT)
    run: Run = client.get_run(cell)
    assert run.data.metrics["eval/counting"] == 0.5
    assert math.isnan(run.data.metrics["eval/geometry"])
    # MLflow would turn the unknown score of a model into 0.
    (metric,) = logged_model(client, model_id).metrics
    assert (metric.key, metric.value, metric.step) == ("eval/counting", 0.5, 60)
    assert (metric.dataset_name, metric.dataset_digest) == ("counting_test", "ab" * 18)
    assert not logged_model(client, other_id).metrics


def test_without_a_parent_there_is_nothing_to_join(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(runs.PARENT_VARIABLE, raising=False)
    run_id = runs.start_run("a", "cell", {})
    runs.join_grid(run_id, "reused")
    assert not [tag for tag in client.get_run(run_id).data.tags if "grid." in tag]


def test_scores_that_were_logged_before_leave_no_trace(client: MlflowClient, cell: str) -> None:
    def history(name: str) -> list[tuple[int, float]]:
        points = client.get_metric_history(cell, name)
        return [(point.step, point.value) for point in points]

    scores = {"eval/counting": 0.5, "eval/geometry": math.nan}
    for _ in range(3):
        records.log_scores(cell, scores, 2)
    assert history("eval/counting") == [(2, 0.5)]
    assert [step for step, _ in history("eval/geometry")] == [2]
    records.log_scores(cell, {**scores, "eval/geometry": 0.25, "own/accuracy": 0.375}, 2)
    assert history("eval/counting") == [(2, 0.5)]
    assert history("eval/geometry")[-1] == (2, 0.25)
    assert history("own/accuracy") == [(2, 0.375)]
    records.log_scores(cell, {"eval/counting": math.nan}, 2)  # known, and then not: that is new
    assert len(history("eval/counting")) == 2


def test_a_run_is_remembered_and_goes_on(
    client: MlflowClient, parent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "s0" / "run.json"
    run_id = open_run(file, "counting/grpo/s0", "cell", {"task": "counting"}, {"a": 1})
    client.set_tag(run_id, runs.PID, "1")
    client.set_tag(run_id, runs.PROCESS_START, "1")
    client.set_tag(run_id, "ended_by", "process gone")
    client.set_terminated(run_id, "KILLED")
    experiment_id = client.get_run(parent).info.experiment_id
    later: str = client.create_run(experiment_id).info.run_id
    monkeypatch.setenv(runs.PARENT_VARIABLE, later)
    for resumed in ("1", "2"):
        changed = {"a": 2, "b": 3}  # what MLflow has of the parameters cannot change
        assert open_run(file, "counting/grpo/s0", "cell", {}, changed) == run_id
        run = client.get_run(run_id)
        assert run.info.status == "RUNNING"
        assert not run.info.end_time
        assert run.data.tags["resumed"] == resumed
    assert run.data.params == {"a": "1", "b": "3"}
    assert run.data.tags[runs.PID] == str(os.getpid())
    assert run.data.tags[runs.PROCESS_START] == process_start(os.getpid())
    assert "ended_by" not in run.data.tags
    grids = {tag: value for tag, value in run.data.tags.items() if "grid." in tag}
    assert grids == {runs.grid_tag(parent): "trained", runs.grid_tag(later): "resumed"}
    assert run.data.tags["mlflow.parentRunId"] == parent
    other = open_run(tmp_path / "other.json", "b", "cell", {}, {})
    client.set_tag(other, runs.grid_tag(later), "reused")  # and another process goes on with it
    lifecycle.end_children(later, "FAILED")  # though another's child
    assert client.get_run(run_id).info.status == "FAILED"
    assert client.get_run(other).info.status == "RUNNING"
    assert client.get_run(run_id).info.end_time


def test_a_run_that_is_older_than_its_process_is_not_taken_for_dead(
    client: MlflowClient, parent: str, tmp_path: Path
) -> None:
    experiment_id = client.get_run(parent).info.experiment_id
    run_id: str = client.create_run(experiment_id, start_time=1000).info.run_id
    (tmp_path / "run.json").write_text(json.dumps({"run_id": run_id}))
    assert open_run(tmp_path / "run.json", "a", "cell", {}, {}) == run_id
    assert run_id not in lifecycle.reap_dead_runs(parent)
    client.set_tag(run_id, runs.PROCESS_START, "1")  # its process id belongs to a later process now
    assert run_id in lifecycle.reap_dead_runs(parent)


@pytest.mark.parametrize("gone", ["deleted", "another store", "another experiment"])
def test_a_run_that_the_store_does_not_know_is_replaced(
    client: MlflowClient, parent: str, tmp_path: Path, gone: str
) -> None:
    file = tmp_path / "run.json"
    first = open_run(file, "a", "cell", {"task": "counting"}, {})
    assert finished_run(file) is None  # it runs
    client.set_terminated(first, "FAILED")
    assert finished_run(file) is None
    runs.finish_run(first)
    assert finished_run(file) == first
    assert runs.is_there(first)
    if gone == "deleted":
        client.delete_run(first)
    else:
        first = "0" * 32
        if gone == "another experiment":
            first = client.create_run("0").info.run_id
            runs.finish_run(first)
        file.write_text(json.dumps({"run_id": first}))
    assert runs.is_there(first) == (gone == "another experiment")
    assert finished_run(file) is None
    second = open_run(file, "a", "cell", {"task": "counting"}, {})
    tags = client.get_run(second).data.tags
    assert second != first
    assert (tags["replaces"], tags["task"]) == (first, "counting")
    assert open_run(file, "a", "cell", {}, {}) == second
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_file_without_a_run_id_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "run.json"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"run\.json: holds no run id"):
        open_run(file, "a", "cell", {}, {})


def test_samples_are_shown_with_their_pictures_and_take_the_place_of_those_before(
    client: MlflowClient, cell: str
) -> None:
    def log(answers: list[str], digest: str) -> None:
        pictures = [Image.new("RGB", (8, 4), answer) for answer in answers]
        table = DataFrame({"question": ["q"] * len(answers), "answer": answers})
        records.log_samples(cell, table.assign(picture=pictures), "samples.json", digest)

    def shown() -> DataFrame:
        return client.load_table(client.get_run(cell).info.experiment_id, "samples.json", [cell])

    log(["red", "green"], "first")
    log(["red", "blue"], "first")  # nothing new, says its digest
    assert shown()["answer"].tolist() == ["red", "green"]
    log(["blue"], "second")
    assert shown()["answer"].tolist() == ["blue"]
    tags = client.get_run(cell).data.tags
    tables = [{"path": "samples.json", "type": "table"}]
    assert json.loads(tags["mlflow.loggedArtifacts"]) == tables  # how its page finds it
    pictures = client.list_artifacts(cell, "table_images/samples")
    assert sorted(Path(file.path).suffix for file in pictures) == [".png", ".webp"]
    whole = json.loads(Path(client.download_artifacts(cell, "samples.json")).read_text())
    assert whole["data"][0][2]["type"] == "image"


def test_samples_that_are_refused_are_left_out_and_tried_again(
    client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    nowhere = client.create_experiment("no artifacts", f"file://{tmp_path}/file/artifacts")
    run_id = client.create_run(nowhere).info.run_id
    for times in (1, 2):
        records.log_samples(run_id, DataFrame({"answer": ["7"]}), "samples.json", "digest")
        told = f"run {run_id}: samples.json is left out, artifacts are refused"
        assert caplog.text.count(told) == times


def test_a_run_says_what_it_is_and_what_people_write_there_stays(
    client: MlflowClient, parent: str, cell: str
) -> None:
    def shown() -> tuple[str, str, str]:
        tags = client.get_run(cell).data.tags
        why = client.get_experiment_by_name("tests").tags["mlflow.note.content"]
        return tags["mlflow.note.content"], tags["mlflow.runColor"], why

    def describe(text: str, color: str) -> None:
        records.describe(cell, text, color)
        records.describe_experiment(parent, text)

    describe("x" * 7000 + "\n" + "y" * 999 + "\nz", "#0072B2")
    assert shown() == ("x" * 7000, "#0072B2", "x" * 7000), "whole lines only"
    describe("anew", "#E69F00")
    assert shown() == ("anew", "#E69F00", "anew")
    client.set_tag(cell, "mlflow.note.content", "mine")
    client.set_tag(cell, "mlflow.runColor", "#FFFFFF")
    experiment = client.get_experiment_by_name("tests")
    client.set_experiment_tag(experiment.experiment_id, "mlflow.note.content", "ours")
    describe("once more", "#E69F00")
    assert shown() == ("mine", "#FFFFFF", "ours")
    client.set_tag(cell, "mlflow.note.content", "")
    describe("once more", "#E69F00")
    assert shown() == ("", "#FFFFFF", "ours")


def test_a_note_is_ours_if_half_written_and_not_if_it_was_there_before(
    client: MlflowClient, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.get_experiment_by_name("tests").experiment_id

    def note() -> str:
        return client.get_experiment(experiment).tags["mlflow.note.content"]

    for tag in client.get_experiment(experiment).tags:  # of other tests
        client.delete_experiment_tag(experiment, tag)
    client.set_experiment_tag(experiment, "mlflow.note.content", "mine")
    records.describe_experiment(parent, "words")
    assert note() == "mine"
    client.delete_experiment_tag(experiment, "mlflow.note.content")
    records.describe_experiment(parent, "words")
    write, written = MlflowClient.set_experiment_tag, []

    def killed_after_the_first(*tag: str) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(tag)
        write(*tag)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(MlflowClient, "set_experiment_tag", killed_after_the_first)
        records.describe_experiment(parent, "other words")
    assert note() == "words"
    records.describe_experiment(parent, "again other words")
    assert note() == "again other words"
