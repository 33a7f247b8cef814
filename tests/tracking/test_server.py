"""A real MLflow server that dies in the middle of a training, and one that never comes back."""

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import mlflow
import pytest
from mlflow import MlflowClient

from othink_pipeline.tracking import lifecycle, recorder, runs, views
from othink_pipeline.tracking.journal import DatasetRef, Journal
from othink_pipeline.tracking.recorder import Recorder, TrackingUnavailableError
from othink_pipeline.tracking.runs import open_run
from tests.support import commands
from tests.support.browser import CHROMIUM
from tests.support.handmade import two_tasks
from tests.support.recorded import begin, record, start_models

VALIDATION = DatasetRef("counting_validation", digest="ab" * 32, source="data/val", examples=200)
NAME = "counting/grpo/s0"
STEPS = 100


class Server:
    """`mlflow server` on one port and one store, started as often as wanted."""

    def __init__(self, folder: Path, store: str | None = None, workers: int = 1) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._folder, self._workers = folder, workers
        self._store = store or f"sqlite:///{folder}/mlflow.db"
        self._process: commands.Command | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = {
            "--backend-store-uri": self._store,
            "--artifacts-destination": str(self._folder / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": str(self._workers),
        }
        log = self._folder / "server.log"
        log.touch()
        self._process = commands.start(
            "tests.support.mlflow_server",
            *sum(options.items(), ()),
            cwd=self._folder,
            output=log,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
        deadline_s = time.monotonic() + 120
        while not self._answers():
            told = log.read_text()
            assert self._process.is_alive() and time.monotonic() < deadline_s, told
            time.sleep(0.1)

    def kill(self) -> None:
        """End it and its workers on the spot."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(60)
            self._process = None

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


@pytest.fixture(scope="module")
def server(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder)
    server = Server(folder)
    server.start()
    mlflow.set_tracking_uri(server.uri)
    mlflow.set_experiment("tests")
    yield server
    server.kill()
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_EXPERIMENT_ID")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on the PATH")
def test_its_pages_show_the_matrix_and_what_each_cell_scores(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the printed links open, as a reader sees it."""
    from playwright.sync_api import sync_playwright

    monkeypatch.chdir(tmp_path)
    client = MlflowClient()
    client.create_experiment("grid")
    parent = begin(client, "cross_task today", "base")
    models = start_models()
    record(two_tasks())
    runs.set_parent(None)
    views.save_views(parent)
    cell = models["counting/grpo_d/s0"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.goto(views.run_link(client.get_run(cell)))
        table = page.get_by_role("table").filter(has_text="trained on")
        table.wait_for()
        assert table.locator("th").all_inner_texts() == [
            *("trained on", "method", "seeds", "→ counting", "→ geometry")
        ]
        assert table.locator("td").all_inner_texts() == [
            *("counting", "grpo_d", "1", "62.5 [30.6, 86.3]", "50.0 [15.0, 85.0]")
        ]
        page.goto(views.view_links(parent)["Transfer matrix"])
        row = page.locator(f'[row-id="{cell}"]')
        scores = [
            row.locator(f'[col-id="metrics.`{scope}/accuracy`"]').inner_text()
            for scope in ("own", "other")
        ]
        assert scores == ["0.625", "0.5"]
        for name in models:
            page.get_by_role("gridcell").filter(has_text=name).first.wait_for()
        browser.close()


@pytest.fixture
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty database of a PostgreSQL of the test's own."""
    pytest.importorskip("psycopg", reason="pip install 'psycopg[binary]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("apt-get install postgresql")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # It refuses root, whose processes become those of its own user.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        if user:
            shutil.chown(folder, user)

        def call(command: str, *options: str) -> None:
            program = [str(found[-1].with_name(command)), "-D", f"{folder}/data", *options]
            subprocess.run(program, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        call("initdb", "--username=postgres", "--auth=trust")
        where = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
        call("pg_ctl", "start", "-w", f"--log={folder}/log", "-o", where)
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
        call("pg_ctl", "stop", "-m", "immediate")


@pytest.fixture(autouse=True)
def no_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runs.PARENT_VARIABLE, raising=False)


def train(record: Recorder, folder: Path, first: int, last: int) -> None:
    """What a cell records, from one update to another."""
    record.dataset(VALIDATION, "validation")
    for step in range(first, last + 1):
        record.metrics(step, {"train/loss": 1 / step, "train/kl": step / 3, "lost": float("nan")})
        if step % 20 == 0:
            record.checkpoint(step, folder / f"update-{step}", "beef")
            record.metrics(step, {"val/counting": step / 1000}, step, VALIDATION)


def check_delivered(run_id: str) -> None:
    """Everything is there, once and in order."""
    client = MlflowClient()
    for name, value in {"train/loss": lambda s: 1 / s, "train/kl": lambda s: s / 3}.items():
        history = client.get_metric_history(run_id, name)
        assert [m.step for m in history] == list(range(1, STEPS + 1))
        assert [m.value for m in history] == [value(step) for step in range(1, STEPS + 1)]
    assert len(client.get_metric_history(run_id, "lost")) == STEPS
    scored = list(range(20, STEPS + 1, 20))
    assert [m.step for m in client.get_metric_history(run_id, "val/counting")] == scored
    run = client.get_run(run_id)
    models = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run_id}'", max_results=100
    )
    assert sorted(int(model.tags["step"]) for model in models) == scored
    for model in models:
        assert model.status == "READY"
        assert [(m.step, m.value) for m in model.metrics or []] == [
            (int(model.tags["step"]), int(model.tags["step"]) / 1000)
        ]
    outputs = run.outputs.model_outputs if run.outputs else []
    assert sorted(output.step for output in outputs) == scored
    assert len(run.inputs.dataset_inputs) == 1


def test_a_server_that_is_killed_and_started_again_misses_nothing(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(recorder, "_LONGEST_PAUSE_S", 0.5)
    run_id = runs.start_run(NAME, "cell", {})
    halfway, killed = threading.Event(), threading.Event()

    def training(record: Recorder) -> None:
        train(record, tmp_path, 1, STEPS // 2)
        halfway.set()
        assert killed.wait(60)
        train(record, tmp_path, STEPS // 2 + 1, STEPS)

    journal = Journal(tmp_path / "journal.jsonl")
    with Recorder(run_id, NAME, journal) as record:
        thread = threading.Thread(target=training, args=[record])
        thread.start()
        assert halfway.wait(60)
        server.kill()  # with what it is just being told
        killed.set()
        thread.join(60)  # the training does not wait for it
        assert not thread.is_alive()
        assert journal.delivered(run_id) < len(journal.entries)
        server.start()
    check_delivered(run_id)
    # All of it once more, as after a power cut.
    lines = journal.path.read_text().splitlines(keepends=True)
    journal.path.write_text("".join(line for line in lines if '"delivered"' not in line))
    with Recorder(run_id, NAME, Journal(journal.path)):
        pass
    check_delivered(run_id)


@pytest.mark.slow
def test_workers_that_write_at_once_miss_nothing_on_postgresql(
    postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, before = Server(tmp_path, postgresql, workers=2), mlflow.get_tracking_uri()
    server.start()
    try:
        mlflow.set_tracking_uri(server.uri)
        experiment = MlflowClient().create_experiment("many")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
        folders = [tmp_path / f"cell_{number}" for number in range(4)]
        with multiprocessing.get_context("spawn").Pool(len(folders)) as pool:
            run_ids = pool.starmap(record_a_cell, [(server.uri, folder) for folder in folders])
        for run_id in run_ids:
            check_delivered(run_id)
    finally:
        mlflow.set_tracking_uri(before)
        server.kill()


def record_a_cell(uri: str, folder: Path) -> str:
    """What a worker of a grid writes; the id of its run."""
    folder.mkdir()
    mlflow.set_tracking_uri(uri)
    run_id = open_run(folder / "run.json", f"counting/grpo/{folder.name}", "cell", {}, {})
    with runs.ending(run_id), Recorder(run_id, NAME, Journal(folder / "journal.jsonl")) as record:
        train(record, folder, 1, STEPS)
    return run_id


DELIVER = """
import sys
from pathlib import Path
from othink_pipeline.tracking.journal import Journal
from othink_pipeline.tracking.recorder import Recorder
from othink_pipeline.tracking.runs import open_run

folder = Path(sys.argv[1])
run_id = open_run(folder / "run.json", sys.argv[2], "cell", {}, {})
with Recorder(run_id, sys.argv[2], Journal(folder / "journal.jsonl")):
    pass
"""


def test_what_one_process_could_not_deliver_another_does(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(recorder, "_NOTE_EVERY_S", 1.0)
    run_id = open_run(tmp_path / "run.json", NAME, "cell", {}, {})
    server.kill()
    with (
        pytest.raises(TrackingUnavailableError, match=f"MLflow at {server.uri} did not take"),
        Recorder(run_id, NAME, Journal(tmp_path / "journal.jsonl")) as record,
    ):
        train(record, tmp_path, 1, STEPS)
    runs.end_run(run_id, "FAILED")  # only says that it could not
    server.start()
    (tmp_path / "deliver.py").write_text(DELIVER)
    env = {**os.environ, "MLFLOW_TRACKING_URI": server.uri}
    done = commands.run("deliver", str(tmp_path), NAME, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout
    check_delivered(run_id)
    run = MlflowClient().get_run(run_id)
    assert (run.info.status, run.data.tags["resumed"]) == ("RUNNING", "1")
    # That process left it open and is gone: the next one sees it through the server, too.
    own = runs.start_run("another", "cell", {})
    assert lifecycle.reap_dead_runs(own) == [run_id]
    assert MlflowClient().get_run(run_id).info.status == "KILLED"
