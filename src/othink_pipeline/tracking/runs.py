"""The MLflow runs of cells and base models: started, gone on with, ended.

One `kedro run` is one parent run (kedro-mlflow opens it, `hooks.py` hands its id on); each cell
and the base model is one run, the child of the `kedro run` that started it. A later `kedro run`
reopens it, or uses it as it is, and joins it to its own by a tag. Every call names its run by id:
MLflow's "active run" belongs to a thread, and in a worker process it would silently be another.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Param, Run, RunTag
from mlflow.exceptions import MlflowException

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.code import code_tags
from othink_pipeline.core.files import write_json
from othink_pipeline.core.processes import process_space, process_start
from othink_pipeline.core.redaction import failure
from othink_pipeline.tracking.mlflow_store import is_unknown, patient_store, write_running

logger = logging.getLogger(__name__)

Kind = Literal["cell", "base_model"]
Part = Literal["trained", "resumed", "reused", "tested"]
"""What a `kedro run` did with a run: made it, went on with it, used it as it is, only tested it."""
Status = Literal["FINISHED", "FAILED", "KILLED"]

FILE = "run.json"
"""The file, in the folder of what a run is about, that remembers it."""
PARENT_VARIABLE = "OTHINK_PARENT_RUN_ID"
"""Environment variable with the parent's run id: the one thing that worker processes inherit."""

HIDDEN = "mlflow.othink."
"""What the names of housekeeping tags begin with: MLflow's pages hide what bears its own name."""
HOST, PID = f"{HIDDEN}host", f"{HIDDEN}pid"
PROCESS_SPACE, PROCESS_START = f"{HIDDEN}process_space", f"{HIDDEN}process_start"

_FAILED_TAG = "failed"  # why a run failed
# What a child shares with its parent: who ran which code.
_INHERITED_TAGS = (
    "mlflow.user",
    "mlflow.source.name",
    "mlflow.source.type",
    "mlflow.source.git.commit",
    "git_dirty",
    "code_version",
    "env",
)


def parent_run_id() -> str | None:
    """Id of the run of this `kedro run`; None when nothing tracks it."""
    return os.environ.get(PARENT_VARIABLE) or None


def set_parent(run_id: str | None) -> None:
    """Make `run_id` the parent of the runs started from here on, worker processes included."""
    if run_id is None:
        os.environ.pop(PARENT_VARIABLE, None)
    else:
        os.environ[PARENT_VARIABLE] = run_id


def grid_tag(parent_id: str) -> str:
    """Name of the tag that a run carries for each `kedro run` that it is a part of."""
    return f"{HIDDEN}grid.{parent_id}"


def grid_runs(parent_id: str) -> list[Run]:
    """The runs of cells and base models that are part of a `kedro run`, by name."""
    found: list[Run] = mlflow.search_runs(
        [MlflowClient().get_run(parent_id).info.experiment_id],
        f"tags.`{grid_tag(parent_id)}` != ''",
        order_by=["attributes.run_name"],
        output_format="list",
    )
    return found


def grids_of(run_ids: Iterable[str]) -> list[Run]:
    """The runs of the `kedro run`s that all of these runs are part of."""
    found = [_find_run(run_id) for run_id in run_ids]
    tags = [set(run.data.tags) if run else set() for run in found]
    shared = set.intersection(*tags) if tags else set()
    prefix = grid_tag("")
    grids = [_find_run(tag.removeprefix(prefix)) for tag in shared if tag.startswith(prefix)]
    return [grid for grid in grids if grid is not None]


def grid_title(parent_id: str) -> str:
    """Name and environment of a `kedro run`: ``cross_task 2026-11-29 20:10, environment base``."""
    parent = MlflowClient().get_run(parent_id)
    return f"{parent.info.run_name}, environment {parent.data.tags['env']}"


def process_tags() -> dict[str, str]:
    """Which process writes a run: what `reap_dead_runs` goes by."""
    return {
        HOST: socket.gethostname(),
        PID: str(os.getpid()),
        PROCESS_SPACE: process_space(),
        PROCESS_START: str(process_start(os.getpid())),
    }


def start_run(name: str, kind: Kind, tags: Mapping[str, str]) -> str:
    """Start a run, the child of the parent when there is one, and return its id.

    Args:
        name: what the UI shows, ``counting/grpo_d/s0`` for a cell.
        tags: task, method and seed of a cell.
    """
    client = MlflowClient()
    parent = parent_run_id()
    if parent is None:
        experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID", "0")  # set by set_experiment
        shared = code_tags(Path.cwd())
    else:
        run = client.get_run(parent)
        experiment_id = run.info.experiment_id
        shared = {tag: run.data.tags[tag] for tag in _INHERITED_TAGS if tag in run.data.tags}
        shared |= {"mlflow.parentRunId": parent, grid_tag(parent): "trained"}
    run_id: str = client.create_run(
        experiment_id, run_name=name, tags={**shared, **process_tags(), "kind": kind, **tags}
    ).info.run_id
    return run_id


def open_run(
    file: Path, name: str, kind: Kind, tags: Mapping[str, str], parameters: Mapping[str, object]
) -> str:
    """Go on with the run that `file` remembers, or start one and remember it; returns its id.

    A run that goes on is RUNNING again, this process's, and its tag ``resumed`` counts how often.
    A run that the store does not know (another store, or it was deleted), or that stands in another
    experiment than the parent, where no page would show it beside the others, is started anew; its
    tag ``replaces`` names the old one.

    Args:
        file: see ``FILE``.
        name, kind, tags: as of `start_run`.
        parameters: nested; logged flat with dots. MLflow cuts a value after 6000 characters.

    Raises:
        ConfigurationError: the file holds no run id.
    """
    known = _read_run_id(file)
    if known is not None:
        if (run := _find_beside_parent(known)) is not None:
            _reopen(run, parameters)
            return known
        logger.warning("%s: this MLflow experiment has no run %s, it gets a new one", name, known)
        tags = {**tags, "replaces": known}
    run_id = start_run(name, kind, tags)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"run_id": run_id})  # before all else: killed after it, the run is not lost
    _log_parameters(MlflowClient(), run_id, parameters)
    return run_id


def finished_run(file: Path) -> str | None:
    """Id of the run that `file` remembers, if `open_run` would find it and it ended well."""
    known = _read_run_id(file)
    run = None if known is None else _find_beside_parent(known)
    return known if run is not None and run.info.status == "FINISHED" else None


def is_there(run_id: str) -> bool:
    """Whether the store has a run, in whatever experiment."""
    return _find_run(run_id) is not None


def join_grid(run_id: str, how: Part) -> None:
    """Make a run part of this `kedro run`'s comparison, if it is not; without a parent none is."""
    parent, client = parent_run_id(), MlflowClient()
    if parent is not None and grid_tag(parent) not in client.get_run(run_id).data.tags:
        client.set_tag(run_id, grid_tag(parent), how)


def finish_run(run_id: str) -> None:
    """End a run as FINISHED."""
    MlflowClient().set_terminated(run_id, "FINISHED")


@contextmanager
def ending(run_id: str) -> Iterator[None]:
    """End a run with the block: FINISHED, FAILED (error) or KILLED (interrupt).

    After an error or an interrupt a server that is away is not waited for.
    """
    try:
        yield
    except KeyboardInterrupt:
        end_run(run_id, "KILLED")
        raise
    except BaseException as error:
        end_run(run_id, "FAILED", failure(error))
        raise
    finish_run(run_id)


def end_run(run_id: str, status: Status, reason: str | None = None) -> None:
    """End a run that failed or was stopped; a server that is away is not waited for."""
    with last_words(run_id):
        client = MlflowClient()
        if reason is not None:
            client.set_tag(run_id, _FAILED_TAG, reason)
        client.set_terminated(run_id, status)


@contextmanager
def last_words(run_id: str) -> Iterator[None]:
    """Send the block's requests once each; a store that does not take them is a warning.

    Whoever presses Ctrl-C must not wait the minutes for which MLflow repeats a request.
    """
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
            failure(error),
        )
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _read_run_id(file: Path) -> str | None:
    if not file.exists():
        return None
    try:
        return str(json.loads(file.read_text())["run_id"])
    except (ValueError, KeyError, TypeError):
        raise ConfigurationError(
            f"{file}: holds no run id. Delete it: the cell then gets a new MLflow run."
        ) from None


def _find_run(run_id: str) -> Run | None:
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        if is_unknown(error):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _find_beside_parent(run_id: str) -> Run | None:
    """The run, where it can stand beside the others of this `kedro run`."""
    run, parent = _find_run(run_id), parent_run_id()
    if run is None or parent is None:
        return run
    experiment_id = MlflowClient().get_run(parent).info.experiment_id
    return run if run.info.experiment_id == experiment_id else None


def _reopen(run: Run, parameters: Mapping[str, object]) -> None:
    client, run_id = MlflowClient(), run.info.run_id
    resumed = int(run.data.tags.get("resumed", 0)) + 1
    tags = {**process_tags(), "resumed": str(resumed)}
    # Whose it is comes first: RUNNING with the tags of a dead process, it would be reaped.
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    write_running(patient_store(), run_id)
    for tag in ("ended_by", _FAILED_TAG):  # how it ended before
        if tag in run.data.tags:
            client.delete_tag(run_id, tag)
    join_grid(run_id, "resumed")
    _log_parameters(client, run_id, parameters, run.data.params)


def _log_parameters(
    client: MlflowClient,
    run_id: str,
    parameters: Mapping[str, object],
    known: Mapping[str, str] | None = None,
) -> None:
    """Log the parameters that the run does not have yet: MLflow refuses to change one."""
    flat = _flatten(parameters)
    new = [Param(key, str(value)) for key, value in flat.items() if key not in (known or {})]
    client.log_batch(run_id, params=new)


def _flatten(nested: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """``{"kl": {"start": 0.0}}`` becomes ``{"kl.start": 0.0}``; an empty block stays visible."""
    flat: dict[str, object] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
