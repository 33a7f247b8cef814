"""What a machine is refused for, and what reaches it of the driver's surroundings."""

import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from othink_pipeline.cluster import surroundings as entered
from othink_pipeline.core.locks import lock


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project that the workers of a run are to work in, and this process comes back from."""
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(entered.os, "environ", dict(os.environ))
    monkeypatch.setattr(entered.logging.config, "dictConfig", lambda _: None)
    return tmp_path


@pytest.fixture
def mark(project: Path) -> Iterator[str]:
    with lock(project / "mark.lock"):
        yield str(project / "mark.lock")


def surroundings(project: Path, **changes: Any) -> bytes:
    made = entered.describe_surroundings(["othink_pipeline.cluster.worker"])
    return pickle.dumps(made._replace(project=str(project), **changes))


def test_a_machine_that_is_fit_has_nothing_wrong(project: Path, mark: str) -> None:
    assert entered.check_node(surroundings(project), [mark], []) is None


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
    fault = entered.check_node(surroundings(project, **changes), [mark], [])
    assert fault is not None and re.search(message, fault)


def test_a_folder_that_is_not_shared_is_refused(project: Path, mark: str, tmp_path: Path) -> None:
    nowhere = surroundings(tmp_path / "nowhere")
    assert f"no project in {tmp_path}/nowhere" in str(entered.check_node(nowhere, [mark], []))
    marks = [mark, str(tmp_path / "cache")]
    assert f"does not see what the driver has just written, {marks[1]}" in str(
        entered.check_node(surroundings(project), marks, [])
    )
    (tmp_path / "cache").write_text("")  # there, but nobody's lock reaches it
    assert "can be locked here, too" in str(entered.check_node(surroundings(project), marks, []))


def test_a_base_model_that_is_not_there_and_a_folder_that_cannot_be_entered_are_told(
    project: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = surroundings(project)
    assert entered.check_node(here, [mark], [str(project)]) is None
    told = entered.check_node(here, [mark], [str(project / "snapshot")])
    assert told is not None and f"does not see the base model, {project}/snapshot" in told

    def refuse(_: bytes) -> None:
        raise PermissionError(13, "Permission denied", "/closed/pyproject.toml")

    monkeypatch.setattr(entered, "enter", refuse)
    told = entered.check_node(here, [mark], [])
    assert told is not None and "/closed/pyproject.toml (Permission denied)" in told


def test_a_server_may_be_on_another_machine(project: Path, mark: str) -> None:
    apart = surroundings(project, host="elsewhere", tracking_uri="http://store:5000")
    assert entered.check_node(apart, [mark], []) is None
    assert entered.os.environ["MLFLOW_TRACKING_URI"] == "http://store:5000"


def test_variables_of_the_driver_reach_its_workers_and_others_do_not(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PATH_OF_MINE"):
        monkeypatch.setitem(entered.os.environ, name, "secret")
    variables = pickle.loads(surroundings(project)).variables
    assert {"HF_TOKEN", "MLFLOW_TRACKING_PASSWORD"} <= variables.keys()
    assert "PATH_OF_MINE" not in variables
