"""All that the nodes say to MLflow; `lifecycle.py` begins and ends the run above theirs.

One `kedro run` is one parent run (kedro-mlflow opens it, `hooks.py` hands its id on); each cell
and the base model is one run, the child of the `kedro run` that started it. A later `kedro run`
reopens it, or uses it as it is, and joins it to its own by a tag. Every call names its run by id:
MLflow's "active run" belongs to a thread, and in a worker process it would silently be another.

A training says nothing to MLflow directly but through `recording.py`, so that it neither waits for
a server nor dies of it.

MLflow is imported inside the functions: `kedro registry list` imports this module.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, urlencode

from othink_pipeline.lifecycle import (
    PARENT_TAG,
    Status,
    code_tags,
    end_run,
    failure,
    grid_tag,
    process_tags,
)
from othink_pipeline.lifecycle import redact_uri as redact_uri
from othink_pipeline.locks import lock

if TYPE_CHECKING:
    from mlflow import MlflowClient

STORE_LOCK = "mlflow.db.lock"
"""Held, in the project's folder, by who does to the store what two must not do at a time."""

PARENT_VARIABLE = "OTHINK_PARENT_RUN_ID"
"""Environment variable with the parent's run id: the one thing that worker processes inherit."""

Kind = Literal["cell", "base_model"]
Context = Literal["train", "validation", "test"]
Part = Literal["trained", "resumed", "reused"]
"""What a `kedro run` did with a run: made it, went on with it, or used it as it is."""

# What a child shares with its parent: who ran which code.
_INHERITED_TAGS = (
    "mlflow.user",
    "mlflow.source.name",
    "mlflow.source.type",
    "mlflow.source.git.commit",
    "git_dirty",
    "code_version",
)
# Limits of one MLflow request (mlflow/utils/validation.py).
_MAX_PARAMETER_CHARACTERS = 6000
_MAX_PARAMETERS_PER_BATCH = 100


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """One split of one task's examples, by reference.

    Attributes:
        name: readable and stable, e.g. ``counting_test``.
        digest: our own digest. MLflow's covers only the first 10,000 rows, and holds at most 36
            characters: a longer one is cut there and kept whole in the dataset's profile.
        source: where the examples are, a path or a URI.
        examples: how many there are, at least 0.
    """

    name: str
    digest: str
    source: str
    examples: int


def parent_run_id() -> str | None:
    """Id of the run of this `kedro run`; None when nothing tracks it."""
    return os.environ.get(PARENT_VARIABLE) or None


def set_parent(run_id: str | None) -> None:
    """Make `run_id` the parent of the runs started from here on, worker processes included."""
    if run_id is None:
        os.environ.pop(PARENT_VARIABLE, None)
    else:
        os.environ[PARENT_VARIABLE] = run_id


def start_run(
    name: str, kind: Kind, tags: Mapping[str, str], parameters: Mapping[str, object]
) -> str:
    """Start a run, the child of the parent when there is one, and return its id.

    Args:
        name: what the UI shows, ``counting/grpo_d/s0`` for a cell.
        kind: what the run is about.
        tags: task, method and seed of a cell.
        parameters: nested; logged flat with dots. A value above MLflow's 6000 characters is
            logged cut, and all parameters are then kept whole in the artifact parameters.json.
    """
    client = _client()
    parent = parent_run_id()
    if parent is None:
        experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID", "0")  # set by set_experiment
        shared = code_tags(Path.cwd())
    else:
        run = client.get_run(parent)
        experiment_id = run.info.experiment_id
        shared = {tag: run.data.tags[tag] for tag in _INHERITED_TAGS if tag in run.data.tags}
        shared |= {PARENT_TAG: parent, grid_tag(parent): "trained"}
    run_id: str = client.create_run(
        experiment_id, run_name=name, tags={**shared, **process_tags(), "kind": kind, **tags}
    ).info.run_id
    log_parameters(client, run_id, parameters)
    return run_id


def join_grid(run_id: str, how: Part) -> None:
    """Make a run part of this `kedro run`'s comparison; without a parent there is none."""
    parent = parent_run_id()
    if parent is not None:
        _client().set_tag(run_id, grid_tag(parent), how)


def finish_run(run_id: str, status: Status = "FINISHED") -> None:
    """End a run with a status."""
    _client().set_terminated(run_id, status)


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


@contextmanager
def child_run(
    name: str, kind: Kind, tags: Mapping[str, str], parameters: Mapping[str, object]
) -> Iterator[str]:
    """Yield the id of a started run, which ends as with `ending`."""
    run_id = start_run(name, kind, tags, parameters)
    with ending(run_id):
        yield run_id


def log_metrics(
    run_id: str,
    metrics: Mapping[str, float],
    step: int,
    *,
    model_id: str | None = None,
    dataset: DatasetRef | None = None,
) -> None:
    """Log the values of one optimizer step; a run that has ended takes them too.

    NaN (unknown) is kept, on the run only: on a logged model MLflow's store turns it into 0.

    Args:
        run_id: the run that the values belong to.
        metrics: name to value; the same names in every cell, never the method in a name.
        step: optimizer step, at least 0.
        model_id: the checkpoint that was scored (see `log_checkpoint`): the values then stand
            on that logged model as well.
        dataset: what it was scored on.
    """
    from othink_pipeline.mlflow_store import metric_entities, patient_store, write_metrics

    now_ms = int(time.time() * 1000)
    entities = metric_entities(run_id, metrics, step, now_ms, model_id, dataset)
    write_metrics(patient_store(), run_id, entities)


def log_scores(
    run_id: str,
    scores: Mapping[str, float],
    step: int,
    *,
    model_id: str | None = None,
    dataset: DatasetRef | None = None,
) -> None:
    """Log those of ``scores`` whose latest value on the run is another: repeats leave no trace."""
    with lock(Path(STORE_LOCK), lambda _: None):  # else two `kedro run`s could both find it missing
        known = _client().get_run(run_id).data.metrics
        new = {
            name: float(value)
            for name, value in scores.items()
            if name not in known
            or not (known[name] == value or (isnan(known[name]) and isnan(value)))
        }
        if new:
            log_metrics(run_id, new, step, model_id=model_id, dataset=dataset)


def log_dataset(run_id: str, dataset: DatasetRef, context: Context) -> None:
    """Log which examples a run used, and for what."""
    from othink_pipeline.mlflow_store import patient_store, write_dataset

    write_dataset(patient_store(), run_id, dataset, context)


def log_checkpoint(run_id: str, name: str, step: int, path: Path, tags: Mapping[str, str]) -> str:
    """Register a checkpoint as a logged model by reference and return its model id.

    The weights stay where they are: the model's tag ``checkpoint`` holds their URI. One that the
    run registered at this step before is found again.

    Args:
        run_id: the run that made it; its page lists the model among its outputs.
        name: the cell's name; MLflow forbids slashes and dots in a model's name, so
            ``counting/grpo_d/s0`` at step 60 becomes ``counting-grpo_d-s0-step60``.
        step: optimizer step, at least 0.
        path: the checkpoint's directory.
        tags: e.g. the manifest's digest.
    """
    from othink_pipeline.mlflow_store import patient_store, write_checkpoint

    tags = {"checkpoint": path.resolve().as_uri(), **tags}
    return write_checkpoint(patient_store(), run_id, name, step, tags)


def comparison_link(parent_id: str, server: str = "http://127.0.0.1:5000") -> str:
    """Address of the page that compares the runs of one `kedro run`, best mean score first.

    The UI itself opens on a page without child runs, and in its view for agents.

    Args:
        parent_id: run id of the parent.
        server: where the MLflow UI answers; the tracking server itself when there is one.
    """
    import mlflow

    if mlflow.get_tracking_uri().startswith("http"):
        server = redact_uri(mlflow.get_tracking_uri()).replace("***@", "").rstrip("/")
    experiment_id = _client().get_run(parent_id).info.experiment_id
    query = {
        "searchFilter": f"tags.`{grid_tag(parent_id)}` != ''",
        "orderByKey": "metrics.`eval/mean`",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",
    }
    search = urlencode(query, safe="'", quote_via=quote)
    return f"{server}/#/experiments/{experiment_id}/runs?{search}"


def log_parameters(
    client: MlflowClient,
    run_id: str,
    parameters: Mapping[str, object],
    known: Mapping[str, str] | None = None,
) -> None:
    """Log the parameters that the run does not have yet: MLflow refuses to change one."""
    from mlflow.entities import Param

    flat = _flatten(parameters)
    new = [Param(key, _cut(value)) for key, value in flat.items() if key not in (known or {})]
    for start in range(0, len(new), _MAX_PARAMETERS_PER_BATCH):
        client.log_batch(run_id, params=new[start : start + _MAX_PARAMETERS_PER_BATCH])
    if new and any(len(str(value)) > _MAX_PARAMETER_CHARACTERS for value in flat.values()):
        client.log_text(run_id, json.dumps(parameters, indent=2, default=str), "parameters.json")


def _client() -> MlflowClient:
    """A client of the current store: mlflow caches the store itself, clients are cheap."""
    from mlflow import MlflowClient

    return MlflowClient()


def _flatten(nested: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """``{"kl": {"start": 0.0}}`` becomes ``{"kl.start": 0.0}``; an empty block stays visible."""
    flat: dict[str, object] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _cut(value: object) -> str:
    text = str(value)
    if len(text) <= _MAX_PARAMETER_CHARACTERS:
        return text
    return text[: _MAX_PARAMETER_CHARACTERS - 1] + "…"
