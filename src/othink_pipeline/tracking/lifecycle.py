"""The run of one `kedro run`: its name, its end, and the end of what it and others left RUNNING.

MLflow calls a run FINISHED when Ctrl-C stops the process and leaves it RUNNING for ever when the
process is killed; what is here says KILLED in both cases.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment, Run, RunTag

from othink_pipeline.core.processes import lives
from othink_pipeline.tracking.runs import (
    HOST,
    PID,
    PROCESS_SPACE,
    PROCESS_START,
    Status,
    end_run,
    grid_tag,
    last_words,
    process_tags,
)

BASE_ENVIRONMENT = "base"
"""What a parent's tag ``env`` says of a `kedro run` without --env."""
TAGS_OF_THE_PLUGIN = {
    *("kedro_command", "kedro_version", "pipeline_names", "project_path", "run_id", "runner"),
}
"""Tags of kedro-mlflow: ``command`` and ``pipeline`` say it better, ``run_id`` is a session's."""


def name_parent(run_id: str, name: str, tags: Mapping[str, str]) -> None:
    """Rename the run that kedro-mlflow opened and tag it so that `reap_dead_runs` knows it.

    What ours say better, or misleads, is taken off (``TAGS_OF_THE_PLUGIN``).
    """
    client = MlflowClient()
    client.update_run(run_id, name=name)
    tags = {"kind": "grid", **process_tags(), **tags}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    for tag in client.get_run(run_id).data.tags.keys() & TAGS_OF_THE_PLUGIN:
        client.delete_tag(run_id, tag)


def current_experiment() -> Experiment | None:
    """The experiment that kedro-mlflow has made the current one."""
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID")
    return MlflowClient().get_experiment(experiment_id) if experiment_id else None


def active_run_id() -> str | None:
    """Id of the run that is active in this thread: after kedro-mlflow's hook, the parent."""
    run = mlflow.active_run()
    return None if run is None else str(run.info.run_id)


def end_children(parent_id: str, status: Status) -> None:
    """End the runs that one `kedro run` began or went on with and that still run.

    One that it went on with has an earlier `kedro run` as its parent, so the tag counts.
    """
    with last_words(parent_id):
        for run in _running_beside(parent_id, f"tags.`{grid_tag(parent_id)}` != 'reused'"):
            MlflowClient().set_terminated(run.info.run_id, status)


def kill_parent(parent_id: str) -> None:
    """End a parent and its children as KILLED, and make MLflow forget that it was active."""
    end_children(parent_id, "KILLED")
    # MLflow's own exit handler ends whatever is active as FINISHED: leave nothing to it.
    while (active := mlflow.active_run()) is not None:
        with last_words(active.info.run_id):
            mlflow.end_run("KILLED")  # forgets it first
    end_run(parent_id, "KILLED")


def reap_dead_runs(parent_id: str) -> list[str]:
    """Mark as KILLED the runs whose process on this machine is gone, and return their ids.

    A process ended by SIGKILL or a power cut cannot say so; its runs stay RUNNING for ever. Only
    the experiment of `parent_id` is looked at. Their tag ``ended_by`` says who ended them.
    """
    client = MlflowClient()
    runs = _running_beside(parent_id, f"tags.`{HOST}` = '{socket.gethostname()}'")
    dead = [run for run in runs if not _process_lives(run)]
    for run in dead:
        client.set_tag(run.info.run_id, "ended_by", "process gone")
        client.set_terminated(run.info.run_id, "KILLED")
    return [run.info.run_id for run in dead]


def _running_beside(parent_id: str, condition: str) -> list[Run]:
    """The runs of the parent's experiment that are RUNNING and meet a condition."""
    client = MlflowClient()
    experiment_id = client.get_run(parent_id).info.experiment_id
    condition = f"{condition} and attributes.status = 'RUNNING'"
    return list(client.search_runs([experiment_id], condition))


def _process_lives(run: Run) -> bool:
    """False when the run's process is gone, or its id now belongs to another one."""
    tags = run.data.tags
    return lives(int(tags[PID]), tags[PROCESS_SPACE], tags[PROCESS_START])
