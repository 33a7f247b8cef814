"""Runs that outlive a process: a cell that is trained in several goes has one MLflow run.

MLflow is imported inside the functions: `kedro registry list` imports this module.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from othink_pipeline.lifecycle import FAILED_TAG, process_tags
from othink_pipeline.reuse import write_json
from othink_pipeline.tracking import Kind, join_grid, log_parameters, start_run
from othink_pipeline.validation import ConfigurationError

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

FILE = "run.json"
"""The file, in the folder of what a run is about, that remembers it."""


def open_run(
    file: Path, name: str, kind: Kind, tags: Mapping[str, str], parameters: Mapping[str, object]
) -> str:
    """Go on with the run that `file` remembers, or start one and remember it; returns its id.

    A run that goes on is RUNNING again, this process's, and its tag ``resumed`` counts how often.
    A run that the store does not know (another store, or it was deleted) is started anew; its tag
    ``replaces`` names the old one.

    Args:
        file: see ``FILE``.
        name, kind, tags, parameters: as of `start_run`.

    Raises:
        ConfigurationError: the file holds no run id.
    """
    from mlflow import MlflowClient

    known = _read_run_id(file)
    if known is not None:
        if (run := _find_run(known)) is not None:
            _reopen(run, parameters)
            return known
        logger.warning("%s: the MLflow store has no run %s, it gets a new one", name, known)
        tags = {**tags, "replaces": known}
    run_id = start_run(name, kind, tags, {})
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"run_id": run_id})  # before all else: killed after it, the run is not lost
    log_parameters(MlflowClient(), run_id, parameters)
    return run_id


def finished_run(file: Path) -> str | None:
    """Id of the run that `file` remembers, if the store has it and it ended well."""
    known = _read_run_id(file)
    run = None if known is None else _find_run(known)
    return known if run is not None and run.info.status == "FINISHED" else None


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
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from othink_pipeline.mlflow_store import is_unknown

    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        if is_unknown(error):
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _reopen(run: Run, parameters: Mapping[str, object]) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import RunTag

    from othink_pipeline.mlflow_store import patient_store, write_running

    client, run_id = MlflowClient(), run.info.run_id
    resumed = int(run.data.tags.get("resumed", 0)) + 1
    tags = {**process_tags(), "resumed": str(resumed)}
    # Whose it is comes first: RUNNING with the tags of a dead process, it would be reaped.
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    write_running(patient_store(), run_id)
    for tag in ("ended_by", FAILED_TAG):  # how it ended before
        if tag in run.data.tags:
            client.delete_tag(run_id, tag)
    join_grid(run_id, "resumed")
    log_parameters(client, run_id, parameters, run.data.params)
