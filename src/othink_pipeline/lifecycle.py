"""The beginning and the end of the runs of one `kedro run`, however it ends.

MLflow calls a run FINISHED when Ctrl-C stops the process and leaves it RUNNING for ever when the
process is killed; what is here says KILLED in both cases.

MLflow is imported inside the functions: `kedro registry list` imports this module.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from othink_pipeline import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

Status = Literal["FINISHED", "FAILED", "KILLED"]

PARENT_TAG = "mlflow.parentRunId"


def name_parent(run_id: str, name: str, tags: Mapping[str, str]) -> None:
    """Rename the run that kedro-mlflow opened and tag it so that `reap_dead_runs` knows it."""
    from mlflow import MlflowClient
    from mlflow.entities import RunTag

    client = MlflowClient()
    client.update_run(run_id, name=name)
    tags = {"kind": "grid", **process_tags(), **tags}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def active_run_id() -> str | None:
    """Id of the run that is active in this thread: after kedro-mlflow's hook, the parent."""
    import mlflow

    run = mlflow.active_run()
    return None if run is None else str(run.info.run_id)


def end_children(parent_id: str, status: Status) -> list[str]:
    """End a parent's children that still run, and return their ids."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment_id = client.get_run(parent_id).info.experiment_id
    children = _running(client, experiment_id, f"tags.`{PARENT_TAG}` = '{parent_id}'")
    for run in children:
        client.set_terminated(run.info.run_id, status)
    return [run.info.run_id for run in children]


def end_parent(parent_id: str, status: Status) -> None:
    """End a parent and its children, and make MLflow forget that it was active."""
    import mlflow

    end_children(parent_id, status)
    # MLflow's own exit handler ends whatever is active as FINISHED: leave nothing to it.
    while mlflow.active_run() is not None:
        mlflow.end_run(status)
    mlflow.MlflowClient().set_terminated(parent_id, status)


def reap_dead_runs(parent_id: str) -> list[str]:
    """Mark as KILLED the runs whose process on this machine is gone, and return their ids.

    A process ended by SIGKILL or a power cut cannot say so; its runs stay RUNNING for ever.
    Only the experiment of `parent_id` is looked at.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment_id = client.get_run(parent_id).info.experiment_id
    runs = _running(client, experiment_id, f"tags.host = '{socket.gethostname()}'")
    dead = [run for run in runs if not _process_lives(run)]
    for run in dead:
        client.set_terminated(run.info.run_id, "KILLED")
    return [run.info.run_id for run in dead]


def process_tags() -> dict[str, str]:
    """Which process writes a run: what `reap_dead_runs` goes by."""
    return {"host": socket.gethostname(), "pid": str(os.getpid())}


def code_tags(project: Path) -> dict[str, str]:
    """Which code runs: the package's version and, inside a git checkout, commit and state."""
    tags = {"code_version": __version__}
    commit = _git(project, "rev-parse", "HEAD")
    if commit:
        dirty = bool(_git(project, "status", "--porcelain"))
        tags |= {"mlflow.source.git.commit": commit, "git_dirty": str(dirty).lower()}
    return tags


def _running(client: MlflowClient, experiment_id: str, condition: str) -> list[Run]:
    return list(
        client.search_runs([experiment_id], f"{condition} and attributes.status = 'RUNNING'")
    )


def _process_lives(run: Run) -> bool:
    """False when the run's process is gone, or its id now belongs to a later process."""
    import psutil  # type: ignore[import-untyped]

    try:
        process = psutil.Process(int(run.data.tags["pid"]))
    except psutil.NoSuchProcess:
        return False
    gone = process.status() == psutil.STATUS_ZOMBIE
    return not gone and bool(process.create_time() * 1000 <= run.info.start_time)


def _git(project: Path, *arguments: str) -> str:
    """Output of a git command; empty outside a checkout, before a first commit, without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(project), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
