"""The beginning and the end of the runs of one `kedro run`, however it ends.

MLflow calls a run FINISHED when Ctrl-C stops the process and leaves it RUNNING for ever when the
process is killed; what is here says KILLED in both cases.

MLflow is imported inside the functions: `kedro registry list` imports this module.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from othink_pipeline import __version__

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]

PARENT_TAG = "mlflow.parentRunId"
FAILED_TAG = "failed"
"""Why a run failed."""


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


def end_run(run_id: str, status: Status, reason: str | None = None) -> None:
    """End a run that failed or was stopped; a server that is away is not waited for."""
    from mlflow import MlflowClient

    with _last_words(run_id):
        client = MlflowClient()
        if reason is not None:
            client.set_tag(run_id, FAILED_TAG, reason)
        client.set_terminated(run_id, status)


def failure(error: BaseException) -> str:
    """Why something failed, in one line without credentials."""
    text = " ".join(redact_uri(str(error)).split())
    return f"{type(error).__name__}: {text}"[:500]


def end_children(parent_id: str, status: Status) -> list[str]:
    """End the runs that one `kedro run` began or went on with and that still run; their ids.

    One that it went on with has an earlier `kedro run` as its parent, so the tag counts.
    """
    from mlflow import MlflowClient

    ended: list[str] = []
    with _last_words(parent_id):
        client = MlflowClient()
        experiment_id = client.get_run(parent_id).info.experiment_id
        for run in _running(client, experiment_id, f"tags.`{grid_tag(parent_id)}` != 'reused'"):
            client.set_terminated(run.info.run_id, status)
            ended.append(run.info.run_id)
    return ended


def end_parent(parent_id: str, status: Status) -> None:
    """End a parent and its children, and make MLflow forget that it was active."""
    import mlflow

    end_children(parent_id, status)
    # MLflow's own exit handler ends whatever is active as FINISHED: leave nothing to it.
    while (active := mlflow.active_run()) is not None:
        with _last_words(active.info.run_id):
            mlflow.end_run(status)  # forgets it first
    end_run(parent_id, status)


def reap_dead_runs(parent_id: str) -> list[str]:
    """Mark as KILLED the runs whose process on this machine is gone, and return their ids.

    A process ended by SIGKILL or a power cut cannot say so; its runs stay RUNNING for ever. Only
    the experiment of `parent_id` is looked at. Their tag ``ended_by`` says who ended them.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    experiment_id = client.get_run(parent_id).info.experiment_id
    runs = _running(client, experiment_id, f"tags.host = '{socket.gethostname()}'")
    dead = [run for run in runs if not _process_lives(run)]
    for run in dead:
        client.set_tag(run.info.run_id, "ended_by", "process gone")
        client.set_terminated(run.info.run_id, "KILLED")
    return [run.info.run_id for run in dead]


def process_tags() -> dict[str, str]:
    """Which process writes a run, and since when: what `reap_dead_runs` goes by."""
    return {
        "host": socket.gethostname(),
        "pid": str(os.getpid()),
        "opened_ms": str(int(time.time() * 1000)),
    }


def grid_tag(parent_id: str) -> str:
    """Name of the tag that a run carries for each `kedro run` that it is a part of."""
    return f"grid.{parent_id}"


def redact_uri(text: str) -> str:
    """A URI, or a message with URIs in it, with every user, password and token as ``***``."""
    text = re.sub(r"://[^\s'\"]*@", "://***@", text)
    return re.sub(r"(?i)((?:password|passwd|pwd|token|secret)=)[^&\s'\"]+", r"\1***", text)


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
    # The start time of a reopened run is older than its process; runs of former versions have
    # nothing else.
    opened_ms = int(run.data.tags.get("opened_ms", run.info.start_time))
    return not gone and bool(process.create_time() * 1000 <= opened_ms)


@contextmanager
def _last_words(run_id: str) -> Iterator[None]:
    """Send the block's requests once each; a store that does not take them is a warning.

    Whoever presses Ctrl-C must not wait the minutes for which MLflow repeats a request.
    """
    from mlflow.exceptions import MlflowException

    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    before = {name: os.environ.get(name) for name in quick}
    os.environ.update(quick)
    try:
        yield
    except MlflowException as error:
        logger.warning(
            "MLflow does not take the end of run %s (%s): it stays RUNNING there until the next "
            "`kedro run` on this machine marks it as KILLED",
            run_id,
            redact_uri(str(error)).partition("\n")[0][:200],
        )
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _git(project: Path, *arguments: str) -> str:
    """Output of a git command; empty outside a checkout, before a first commit, without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(project), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
