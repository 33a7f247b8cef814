"""What a worker refuses, and what it makes of what a node raises."""

import os
import pickle
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kedro.pipeline import Node

from othink_pipeline.cluster import worker
from othink_pipeline.core.blocks import BadParametersError
from othink_pipeline.core.locks import lock


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that the workers of a run are to work in, and this process comes back from."""
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(worker.os, "environ", dict(os.environ))
    monkeypatch.setattr(worker.logging.config, "dictConfig", lambda _: None)
    return tmp_path


@pytest.fixture
def mark(project: Path) -> Iterator[str]:
    with lock(project / "mark.lock"):
        yield str(project / "mark.lock")


def surroundings(project: Path, **changes: Any) -> bytes:
    made = worker.describe_surroundings(["othink_pipeline.cluster.worker"])
    return pickle.dumps(made._replace(project=str(project), **changes))


def test_a_machine_that_is_fit_has_nothing_wrong(project: Path, mark: str) -> None:
    assert worker.check_node(surroundings(project), mark) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": "of another clone", "package": "/driver/src"}, "not the driver's in /driver/src"),
        ({"libraries": {"torch": "1.0"}}, r"torch [\d.+a-z]+ \(driver: 1.0\)"),
        ({"host": "elsewhere", "tracking_uri": "sqlite:////x/mlflow.db"}, "SQLite file of elsewh"),
    ],
)
def test_another_project_is_refused(
    project: Path, mark: str, changes: dict[str, Any], message: str
) -> None:
    fault = worker.check_node(surroundings(project, **changes), mark)
    assert fault is not None and re.search(message, fault)


def test_a_folder_that_is_not_shared_is_refused(project: Path, tmp_path: Path) -> None:
    nowhere = surroundings(tmp_path / "nowhere")
    assert f"no project in {tmp_path}/nowhere" in str(worker.check_node(nowhere, "mark"))
    unseen = str(tmp_path / "mark")
    assert f"does not see what the driver has just written, {unseen}" in str(
        worker.check_node(surroundings(project), unseen)
    )
    (tmp_path / "mark").write_text("")  # there, but nobody's lock reaches it
    assert "can be locked here, too" in str(worker.check_node(surroundings(project), unseen))


def test_a_server_may_be_on_another_machine(project: Path, mark: str) -> None:
    apart = surroundings(project, host="elsewhere", tracking_uri="http://store:5000")
    assert worker.check_node(apart, mark) is None
    assert worker.os.environ["MLFLOW_TRACKING_URI"] == "http://store:5000"


def test_variables_of_the_driver_reach_its_workers_and_others_do_not(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PATH_OF_MINE"):
        monkeypatch.setitem(worker.os.environ, name, "secret")
    variables = pickle.loads(surroundings(project)).variables
    assert {"HF_TOKEN", "MLFLOW_TRACKING_PASSWORD"} <= variables.keys()
    assert "PATH_OF_MINE" not in variables


def refuse() -> None:
    raise BadParametersError(["rl.lr: unknown key"])


def divide() -> float:
    return 1 / 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (refuse, "bad parameters\n  rl.lr: unknown key"),
        (divide, "ZeroDivisionError: division by zero"),
        (sys.exit, "SystemExit: "),
    ],
)
def test_what_a_node_raises_crosses_in_words(project: Path, function: Any, message: str) -> None:
    before = signal.getsignal(signal.SIGINT)
    task = pickle.dumps((Node(function, None, "out"), {}))
    with pytest.raises(worker.NodeFailedError) as error:
        worker.run_node(task, surroundings(project), 1)
    signal.signal(signal.SIGINT, before)
    assert pickle.loads(pickle.dumps(error.value)).message == message


def test_a_node_computes_with_as_many_threads_as_it_was_given(project: Path) -> None:
    import torch

    before = torch.get_num_threads()
    task = pickle.dumps((Node(torch.get_num_threads, None, "threads"), {}))
    try:
        assert worker.run_node(task, surroundings(project), 3) == {"threads": 3}
    finally:
        torch.set_num_threads(before)
