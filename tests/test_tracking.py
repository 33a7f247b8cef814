"""What the UI of MLflow will show, read back from a real SQLite store."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

from othink_pipeline import tracking
from othink_pipeline.tracking import DatasetRef

TEST_SPLIT = DatasetRef("counting_test", digest="ab" * 32, source="data/test", examples=1000)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """A store with one experiment; making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    mlflow.create_experiment("tests", artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment("tests")
    yield MlflowClient()
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_EXPERIMENT_ID")


@pytest.fixture
def parent(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> str:
    experiment = client.get_experiment_by_name("tests")
    tags = {"mlflow.user": "ada", "mlflow.source.git.commit": "c0ffee", "git_dirty": "true"}
    run_id: str = client.create_run(experiment.experiment_id, tags=tags).info.run_id
    monkeypatch.setenv(tracking.PARENT_VARIABLE, run_id)
    return run_id


@pytest.fixture
def cell(parent: str) -> str:
    return tracking.start_run("counting/grpo/s0", "cell", {"task": "counting"}, {})


def logged_model(client: MlflowClient, model_id: str) -> LoggedModel:
    return client.get_logged_model(model_id)


def test_the_parent_reaches_worker_processes_through_the_environment() -> None:
    tracking.set_parent("abc")
    assert os.environ["OTHINK_PARENT_RUN_ID"] == tracking.parent_run_id() == "abc"
    tracking.set_parent(None)
    assert "OTHINK_PARENT_RUN_ID" not in os.environ
    assert tracking.parent_run_id() is None


def test_a_run_is_the_child_of_the_parent_even_while_another_run_is_active(
    client: MlflowClient, parent: str
) -> None:
    with mlflow.start_run():
        run_id = tracking.start_run(
            "counting/grpo/s0", "cell", {"task": "counting", "method": "grpo", "seed": "0"}, {}
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
        "pid": str(os.getpid()),
        "mlflow.user": "ada",
        "mlflow.source.git.commit": "c0ffee",
        "git_dirty": "true",
    }
    assert {key: run.data.tags[key] for key in expected} == expected
    assert run.data.tags["host"]


def test_without_a_parent_a_run_is_on_the_top_level(
    client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(tracking.PARENT_VARIABLE, raising=False)
    run = client.get_run(tracking.start_run("base", "base_model", {}, {}))
    assert "mlflow.parentRunId" not in run.data.tags
    assert run.data.tags["code_version"]
    assert run.info.experiment_id == client.get_experiment_by_name("tests").experiment_id


def test_parameters_are_flat_complete_and_batched(client: MlflowClient, parent: str) -> None:
    many = {f"key{index}": index for index in range(250)}  # MLflow takes 100 at a time
    parameters = {"kl": {"shape": {"start": 0.0}, "end": 0.2}, "none": None, "empty": {}, **many}
    run = client.get_run(tracking.start_run("a", "cell", {}, parameters))
    expected = {"kl.shape.start": "0.0", "kl.end": "0.2", "none": "None", "empty": "{}"}
    assert run.data.params == expected | {key: str(value) for key, value in many.items()}
    assert not client.list_artifacts(run.info.run_id)


def test_a_parameter_above_the_limit_is_cut_and_kept_whole_in_an_artifact(
    client: MlflowClient, parent: str
) -> None:
    parameters = {"prompt": {"text": "x" * 7000, "fits": "y" * 6000}}
    run_id = tracking.start_run("a", "cell", {}, parameters)
    logged = client.get_run(run_id).data.params
    assert logged["prompt.text"] == "x" * 5999 + "…"
    assert logged["prompt.fits"] == "y" * 6000
    whole = Path(client.download_artifacts(run_id, "parameters.json")).read_text()
    assert json.loads(whole) == parameters


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "FAILED")],
)
def test_a_run_that_is_left_early_says_how(
    client: MlflowClient, parent: str, error: type[BaseException], status: str
) -> None:
    with pytest.raises(error), tracking.child_run("a", "cell", {}, {}) as run_id:
        raise error
    assert client.get_run(run_id).info.status == status


def test_a_run_that_is_left_in_order_is_finished(client: MlflowClient, parent: str) -> None:
    with tracking.child_run("a", "cell", {}, {}) as run_id:
        assert client.get_run(run_id).info.status == "RUNNING"
    assert client.get_run(run_id).info.status == "FINISHED"


def test_metrics_keep_their_steps_and_what_is_unknown(client: MlflowClient, cell: str) -> None:
    tracking.log_metrics(cell, {"train/reward": 0.25, "train/kl": math.nan}, step=1)
    tracking.finish_run(cell)
    tracking.log_metrics(cell, {"train/reward": 0.75}, step=2)  # after the end too
    history = client.get_metric_history(cell, "train/reward")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 0.25), (2, 0.75)]
    assert math.isnan(client.get_run(cell).data.metrics["train/kl"])


def test_more_metrics_than_one_request_takes(client: MlflowClient, cell: str) -> None:
    tracking.log_metrics(cell, {f"m{index}": float(index) for index in range(1500)}, step=0)
    assert len(client.get_run(cell).data.metrics) == 1500


def test_a_dataset_has_our_digest_and_a_context(client: MlflowClient, cell: str) -> None:
    tracking.log_dataset(cell, TEST_SPLIT, "test")
    (logged,) = client.get_run(cell).inputs.dataset_inputs
    assert (logged.dataset.name, logged.dataset.digest) == ("counting_test", "ab" * 18)
    assert json.loads(logged.dataset.profile) == {"num_rows": 1000, "digest": "ab" * 32}
    assert json.loads(logged.dataset.source) == {"uri": "data/test"}
    assert [(tag.key, tag.value) for tag in logged.tags] == [("mlflow.data.context", "test")]


def test_a_checkpoint_is_a_model_by_reference_and_an_output_of_its_run(
    client: MlflowClient, cell: str, tmp_path: Path
) -> None:
    model_id = tracking.log_checkpoint(cell, "counting/grpo/s0", 60, tmp_path, {"digest": "beef"})
    model = logged_model(client, model_id)
    assert model.name == "counting-grpo-s0-step60"
    assert model.source_run_id == cell
    assert model.status == "READY"
    tags = {"checkpoint": tmp_path.as_uri(), "step": "60", "digest": "beef"}
    assert {key: model.tags[key] for key in tags} == tags
    outputs = client.get_run(cell).outputs.model_outputs
    assert [(output.model_id, output.step) for output in outputs] == [(model_id, 60)]


def test_scores_stand_on_the_run_the_checkpoint_and_the_dataset(
    client: MlflowClient, cell: str, tmp_path: Path
) -> None:
    model_id = tracking.log_checkpoint(cell, "counting/grpo/s0", 60, tmp_path, {})
    other_id = tracking.log_checkpoint(cell, "counting/grpo/s0", 30, tmp_path, {})
    scores = {"eval/counting": 0.5, "eval/geometry": math.nan}
    tracking.log_metrics(cell, scores, 60, model_id=model_id, dataset=TEST_SPLIT)
    run: Run = client.get_run(cell)
    assert run.data.metrics["eval/counting"] == 0.5
    assert math.isnan(run.data.metrics["eval/geometry"])
    # MLflow would turn the unknown score of a model into 0.
    (metric,) = logged_model(client, model_id).metrics
    assert (metric.key, metric.value, metric.step) == ("eval/counting", 0.5, 60)
    assert (metric.dataset_name, metric.dataset_digest) == ("counting_test", "ab" * 18)
    assert not logged_model(client, other_id).metrics


def test_the_link_filters_by_parent_and_sorts_by_mean_score(
    client: MlflowClient, parent: str, cell: str
) -> None:
    address = urlsplit(tracking.comparison_link(parent))
    path, _, query = address.fragment.partition("?")
    experiment_id = client.get_run(parent).info.experiment_id
    assert (address.scheme, address.netloc) == ("http", "127.0.0.1:5000")
    assert path == f"/experiments/{experiment_id}/runs"
    values = {key: value for key, (value,) in parse_qs(query).items()}
    assert values["orderByKey"] == "metrics.`eval/mean`"
    assert values["orderByAsc"] == "false"
    # The filter is one that MLflow understands, and it finds the child and nothing else.
    found = client.search_runs([experiment_id], values["searchFilter"])
    assert [run.info.run_id for run in found] == [cell]
    assert " " not in tracking.comparison_link(parent)
