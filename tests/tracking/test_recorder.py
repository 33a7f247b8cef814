"""Records reach a real SQLite store once each, whatever its server does on the way."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE

from othink_pipeline.tracking import mlflow_store, records, runs
from othink_pipeline.tracking import recorder as recording
from othink_pipeline.tracking.journal import DatasetRef, Journal
from othink_pipeline.tracking.recorder import (
    Recorder,
    TrackingRefusedError,
    TrackingUnavailableError,
)
from tests.support.store import open_store

VALIDATION = DatasetRef("counting_validation", digest="ab" * 32, source="data/val", examples=200)
STEPS = 30
TABLE = "completions/update-000001.json"


class Server:
    """The real store behind a line that can be cut, before a request or after it."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.down = threading.Event()
        self.hangs = threading.Event()
        self.goes_on = threading.Event()
        self.failures = self.refusals = 0
        self.loses: list[str] = []  # requests whose next answer is lost
        self.requests: list[str] = []
        self.asked = threading.Condition()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def request(*args: Any, **kwargs: Any) -> Any:
            with self.asked:
                self.requests.append(name)
                self.asked.notify_all()
            if self.hangs.is_set():
                self.goes_on.wait(60)
            if self.refusals:
                self.refusals -= 1
                raise MlflowException("no such thing", INVALID_PARAMETER_VALUE)
            if self.down.is_set() or self.failures:
                self.failures = max(self.failures - 1, 0)
                raise MlflowException("to http://ada:pw@host failed: refused", INTERNAL_ERROR)
            answer = getattr(self.store, name)(*args, **kwargs)
            if name in self.loses:
                self.loses.remove(name)
                raise MlflowException("failed with timeout exception", INTERNAL_ERROR)
            return answer

        return request

    def wait_for_requests(self, count: int) -> None:
        with self.asked:
            assert self.asked.wait_for(lambda: len(self.requests) >= count, 30)


@pytest.fixture(scope="module")
def client(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowClient]:
    """A store with one experiment."""
    with open_store(empty_store, tmp_path_factory.mktemp("store")):
        yield MlflowClient()


@pytest.fixture
def server(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server(mlflow_store.patient_store())
    monkeypatch.setattr(mlflow_store, "quick_store", lambda: server)
    pause_after(monkeypatch, 0.001, 0.01)
    wait_for_at_most(monkeypatch, 30.0)
    return server


def pause_after(patch: pytest.MonkeyPatch, first_s: float, longest_s: float) -> None:
    patch.setattr(recording, "_FIRST_PAUSE_S", first_s)
    patch.setattr(recording, "_LONGEST_PAUSE_S", longest_s)


def wait_for_at_most(patch: pytest.MonkeyPatch, patience_s: float) -> None:
    patch.setattr(recording, "_PATIENCE_S", patience_s)
    patch.setattr(recording, "_NOTE_EVERY_S", patience_s / 4)


@pytest.fixture
def cell(client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv(runs.PARENT_VARIABLE, raising=False)
    return runs.start_run("counting/grpo/s0", "cell", {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def recorder(run_id: str, file: Path, base_model_id: str | None = None) -> Recorder:
    return Recorder(run_id, "counting/grpo/s0", Journal(file), base_model_id=base_model_id)


def train(record: Recorder, folder: Path, first: int = 1, last: int = STEPS) -> None:
    """What a cell records, from one update to another."""
    record.dataset(VALIDATION, "validation")
    record.table(TABLE, ["question", "advantage"], [["two\nlines", 0.5], ["π", None]])
    for step in range(first, last + 1):
        record.metrics(step, {"train/loss": 1 / step, "train/kl": float("nan")})
        if step % 10 == 0:
            record.checkpoint(step, folder / f"update-{step}", "beef")
            record.metrics(step, {"val/counting": step / 100}, step, VALIDATION)
    record.tag("ended", "well")


def check_delivered(client: MlflowClient, run_id: str, last: int = STEPS) -> list[str]:
    """Everything is there, once, in order; returns the ids of the models."""
    run = client.get_run(run_id)
    losses = client.get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in losses] == [(s, 1 / s) for s in range(1, last + 1)]
    assert len(client.get_metric_history(run_id, "train/kl")) == last
    scored = list(range(10, last + 1, 10))
    scores = client.get_metric_history(run_id, "val/counting")
    assert [(m.step, m.value) for m in scores] == [(step, step / 100) for step in scored]
    models = client.search_logged_models(
        [run.info.experiment_id],
        f"source_run_id = '{run_id}'",
        order_by=[{"field_name": "creation_time"}],
    )
    assert [model.tags["step"] for model in models] == [str(step) for step in scored]
    assert {model.status for model in models} <= {"READY"}
    for model, step in zip(models, scored, strict=True):
        assert [(m.step, m.value, m.dataset_name) for m in model.metrics or []] == [
            (step, step / 100, VALIDATION.name)
        ]
    outputs = run.outputs.model_outputs if run.outputs else []
    assert sorted(output.step for output in outputs) == scored
    assert len(run.inputs.dataset_inputs) == 1
    assert run.data.tags["ended"] == "well"
    (table,) = json.loads(run.data.tags["mlflow.loggedArtifacts"])
    assert table == {"path": TABLE, "type": "table"}
    shown = mlflow.load_table(TABLE, [run_id])
    assert shown["question"].tolist() == ["two\nlines", "π"]
    assert shown["advantage"].fillna(-1).tolist() == [0.5, -1]
    return [model.model_id for model in models]


def test_all_that_is_recorded_is_delivered(
    client: MlflowClient, server: Server, cell: str, file: Path
) -> None:
    with recorder(cell, file) as record:
        train(record, file.parent)
    models = check_delivered(client, cell)
    assert [Journal(file).model_id(cell, step) for step in (10, 20, 30)] == models
    model = client.get_logged_model(models[0])
    assert model.name == "counting-grpo-s0-step10"
    assert model.tags["checkpoint"] == (file.parent / "update-10").as_uri()
    assert model.tags["digest"] == "beef"


def refused_by_a_proxy(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError(f"{status}", response=response)


@pytest.mark.parametrize("error", [refused_by_a_proxy(403), PermissionError("not yours")])
def test_a_table_that_is_refused_keeps_no_curve_back(
    client: MlflowClient,
    cell: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    def refuse(*_: Any) -> None:
        raise error

    monkeypatch.setattr(MlflowClient, "log_text", refuse)
    with recorder(cell, file) as record:
        record.table(TABLE, ["question"], [["?"]])
        record.metrics(1, {"train/loss": 0.5})
    assert [m.value for m in client.get_metric_history(cell, "train/loss")] == [0.5]
    assert f"{TABLE} is left out, artifacts are refused ({error})" in caplog.text


@pytest.mark.parametrize(
    "error", [refused_by_a_proxy(503), refused_by_a_proxy(429), requests.ConnectionError("away")]
)
def test_a_table_waits_for_a_store_that_is_away(
    client: MlflowClient, cell: str, file: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fails, log_text = [error], MlflowClient.log_text

    def fail_once(*arguments: Any) -> None:
        if fails:
            raise fails.pop()
        log_text(*arguments)

    monkeypatch.setattr(MlflowClient, "log_text", fail_once)
    monkeypatch.setattr(recording, "_FIRST_PAUSE_S", 0.01)
    with recorder(cell, file) as record:
        record.table(TABLE, ["question"], [["?"]])
    assert mlflow.load_table(TABLE, [cell])["question"].tolist() == ["?"]


def test_records_are_batched(client: MlflowClient, server: Server, cell: str, file: Path) -> None:
    journal = Journal(file)
    for step in range(250):
        journal.metrics(step, 1000 + step, {f"m{index}": float(step) for index in range(10)})
    with recorder(cell, file):
        pass
    assert server.requests == ["log_batch"] * 3
    assert sum('"delivered"' in line for line in file.open()) == 3
    assert len(client.get_metric_history(cell, "m9")) == 250


def test_one_step_may_hold_more_values_than_a_request(
    client: MlflowClient, server: Server, cell: str, file: Path
) -> None:
    with recorder(cell, file) as record:
        record.metrics(1, {f"m{index}": 0.5 for index in range(1100)})
        record.checkpoint(1, file.parent, "beef")
        record.metrics(1, {f"v{index}": 0.5 for index in range(150)}, 1, VALIDATION)
    assert len(client.get_run(cell).data.metrics) == 1250
    file.write_text("".join(x for x in file.open() if '"delivered"' not in x))
    with recorder(cell, file):
        pass
    (model,) = client.search_logged_models(["1"], f"source_run_id = '{cell}'")
    assert len(model.metrics or []) == 150
    assert len(client.get_metric_history(cell, "v149")) == 1


@pytest.mark.parametrize("forgotten", [0, 1, 5, 1000])
def test_delivered_again_nothing_is_there_twice(
    client: MlflowClient, server: Server, cell: str, file: Path, forgotten: int
) -> None:
    """The process died after a delivery, before it had noted it."""
    with recorder(cell, file) as record:
        train(record, file.parent)
    models = check_delivered(client, cell)
    lines = file.read_text().splitlines(keepends=True)
    notes = [line for line in lines if '"delivered"' in line]
    for note in notes[max(len(notes) - forgotten, 0) :]:
        lines.remove(note)
    file.write_text("".join(lines))
    server.requests.clear()
    with recorder(cell, file):
        pass
    assert [Journal(file).model_id(cell, step) for step in (10, 20, 30)] == models
    assert check_delivered(client, cell) == models
    assert bool(server.requests) == bool(forgotten)


def test_an_answer_that_is_lost_changes_nothing(
    client: MlflowClient, server: Server, cell: str, file: Path
) -> None:
    """The store did what it was asked, the delivery does not know, and asks again."""
    writes = ["create_logged_model", "finalize_logged_model", "log_outputs", "log_inputs"]
    server.loses = [*writes, "log_batch", "log_batch", "log_batch"]
    with recorder(cell, file) as record:
        train(record, file.parent)
    assert not server.loses
    check_delivered(client, cell)


def test_training_goes_on_while_the_server_is_away(
    client: MlflowClient,
    server: Server,
    cell: str,
    file: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.down.set()
    with caplog.at_level("WARNING", "othink_pipeline"), recorder(cell, file) as record:
        train(record, file.parent)
        assert len(Journal(file).history()) == 2 * STEPS + 3
        server.wait_for_requests(5)
        server.down.clear()
    check_delivered(client, cell)
    away, back = caplog.messages
    assert "does not answer" in away and "nothing is lost" in away and str(file) in away
    assert "ada" not in away and "pw@" not in away
    assert "MLflow is back" in back and "the 39 records" in back
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_a_server_that_stays_away_is_an_error_in_time_and_nothing_is_lost(
    client: MlflowClient,
    server: Server,
    cell: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.down.set()
    with (
        monkeypatch.context() as patch,
        pytest.raises(TrackingUnavailableError, match=r"did not take 39 records within 0 s") as e,
        recorder(cell, file) as record,
    ):
        wait_for_at_most(patch, 0.2)
        train(record, file.parent)
    assert not record._thread.is_alive()
    assert str(file) in str(e.value) and "run the same command again" in str(e.value)
    server.down.clear()
    with recorder(cell, file):
        pass
    check_delivered(client, cell)


def test_waiting_is_told(
    server: Server,
    cell: str,
    file: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wait_for_at_most(monkeypatch, 0.2)
    server.down.set()
    with (
        pytest.raises(TrackingUnavailableError),
        caplog.at_level("INFO", "othink_pipeline"),
        recorder(cell, file) as record,
    ):
        record.tag("a", "b")
    assert sum("1 records wait for MLflow" in line for line in caplog.messages) == 4


def test_a_flush_does_not_sit_out_a_long_pause(
    client: MlflowClient,
    server: Server,
    cell: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pause_after(monkeypatch, 1000.0, 1000.0)
    server.failures = 1
    with recorder(cell, file) as record:
        record.tag("a", "b")
        server.wait_for_requests(1)
    assert client.get_run(cell).data.tags["a"] == "b"


def test_a_refusal_is_told_once_and_raised(
    client: MlflowClient,
    server: Server,
    cell: str,
    file: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.refusals = 1000
    with (
        pytest.raises(TrackingRefusedError, match="no such thing") as caught,
        recorder(cell, file) as record,
    ):
        train(record, file.parent)
    assert cell in str(caught.value)
    assert len(server.requests) == 3  # and no more
    assert [line for line in caplog.messages if "refuses" in line] == caplog.messages[-1:]
    server.refusals = 0
    with recorder(cell, file):
        pass
    check_delivered(client, cell)


def test_a_refusal_that_passes_is_forgotten(
    client: MlflowClient,
    server: Server,
    cell: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy, while the server behind it starts; and once more later."""
    refuses = iter([True, True, False] * 2)
    write_tag = mlflow_store.write_tag

    def refuse_at_first(*arguments: Any) -> None:
        if next(refuses):
            raise MlflowException("no such thing", INVALID_PARAMETER_VALUE)
        write_tag(*arguments)

    monkeypatch.setattr(mlflow_store, "write_tag", refuse_at_first)
    with recorder(cell, file) as record:
        record.tag("a", "1")
        record.tag("b", "2")
    tags = client.get_run(cell).data.tags
    assert (tags["a"], tags["b"]) == ("1", "2")


def test_a_deleted_run_is_a_refusal(
    client: MlflowClient, server: Server, cell: str, file: Path
) -> None:
    client.delete_run(cell)
    with pytest.raises(TrackingRefusedError, match="active"), recorder(cell, file) as record:
        record.metrics(1, {"train/loss": 0.5})


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupt_takes_what_can_be_delivered_with_it(
    client: MlflowClient,
    server: Server,
    cell: str,
    file: Path,
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recording, "_LEAVING_S", 60.0)  # this machine may be busy
    with pytest.raises(error), recorder(cell, file) as record:
        train(record, file.parent)
        raise error
    check_delivered(client, cell)


def test_an_interrupt_does_not_wait_for_a_server_that_is_away(
    client: MlflowClient,
    server: Server,
    cell: str,
    file: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pause_after(monkeypatch, 1000.0, 1000.0)
    server.down.set()
    with pytest.raises(KeyboardInterrupt), recorder(cell, file) as record:
        train(record, file.parent)
        server.wait_for_requests(1)
        raise KeyboardInterrupt
    assert not record._thread.is_alive()  # in the midst of a pause
    assert "39 records are not in MLflow yet" in caplog.messages[-1]
    server.down.clear()
    with recorder(cell, file):
        pass
    check_delivered(client, cell)


def test_an_interrupt_does_not_wait_for_a_request_that_hangs(
    client: MlflowClient,
    server: Server,
    cell: str,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recording, "_LEAVING_S", 0.2)
    server.hangs.set()
    with pytest.raises(KeyboardInterrupt), recorder(cell, file) as record:
        train(record, file.parent)
        server.wait_for_requests(1)
        raise KeyboardInterrupt
    size = file.stat().st_size
    server.hangs.clear()
    server.goes_on.set()  # long after, the request comes through: it must not confuse the next
    for thread in threading.enumerate():
        if thread.name.startswith("records"):
            thread.join(30)
    assert file.stat().st_size == size
    assert len(server.requests) == 1
    with recorder(cell, file):
        pass
    check_delivered(client, cell)


def test_a_training_that_goes_on_in_a_new_run_brings_all_of_its_records(
    client: MlflowClient, server: Server, cell: str, file: Path
) -> None:
    with recorder(cell, file) as record:
        train(record, file.parent, last=15)
    client.delete_run(cell)
    anew = runs.start_run("counting/grpo/s0", "cell", {})
    with recorder(anew, file) as record:
        train(record, file.parent, first=11)
    check_delivered(client, anew)


def test_the_scores_of_the_base_model_stand_on_it_where_the_store_has_it(
    client: MlflowClient, server: Server, cell: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = runs.start_run("base/b0", "base_model", {})
    base_id = records.log_checkpoint(base, "base/b0", 0, file.parent, {})
    with recorder(cell, file, base_model_id=base_id) as record:
        record.metrics(0, {"val/counting": 0.5}, 0, VALIDATION)
    (metric,) = client.get_logged_model(base_id).metrics or []
    assert (metric.key, metric.value, metric.run_id) == ("val/counting", 0.5, cell)
    for known in ("m-of-another-store", None):
        run_id = runs.start_run("counting/grpo/s0", "cell", {})
        with recorder(run_id, file, base_model_id=known):
            pass
        assert client.get_run(run_id).data.metrics == {"val/counting": 0.5}
    assert sum("m-of-another-store" in line for line in caplog.messages) == 1
