"""What is logged on a run at once: scores, examples, checkpoints, answers, descriptions.

A training says nothing to MLflow directly but through `recorder.py`, so that it neither waits for
a server nor dies of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from math import isnan
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from othink_pipeline.core.files import content_key
from othink_pipeline.core.locks import lock
from othink_pipeline.tracking.journal import Context, DatasetRef
from othink_pipeline.tracking.mlflow_store import (
    metric_entities,
    patient_store,
    refuses_artifacts,
    write_checkpoint,
    write_dataset,
    write_metrics,
)
from othink_pipeline.tracking.runs import HIDDEN

logger = logging.getLogger(__name__)

STORE_LOCK = "mlflow.db.lock"
"""Held, in the project's folder, by who does to the store what two must not do at a time."""

NOTE_CHARACTERS = 8000
"""What a run's description holds: the limit of a tag (mlflow/utils/validation.py)."""


def log_scores(
    run_id: str,
    scores: Mapping[str, float],
    step: int,
    *,
    model_id: str | None = None,
    dataset: DatasetRef | None = None,
) -> None:
    """Log those of ``scores`` whose latest value on the run is another: repeats leave no trace.

    A run that has ended takes them too. NaN (unknown) is kept, on the run only: on a logged model
    MLflow's store turns it into 0.

    Args:
        scores: name to value; the same names in every cell, never the method in a name.
        step: optimizer step, at least 0.
        model_id: the checkpoint that was scored (see `log_checkpoint`): the values then stand
            on that logged model as well.
    """
    with lock(Path(STORE_LOCK)):  # else two `kedro run`s could both find it missing
        known = MlflowClient().get_run(run_id).data.metrics
        new = {
            name: value
            for name, value in scores.items()
            if name not in known
            or not (known[name] == value or (isnan(known[name]) and isnan(value)))
        }
        now_ms = int(time.time() * 1000)
        entities = metric_entities(run_id, new, step, now_ms, model_id, dataset)
        write_metrics(patient_store(), run_id, entities)


def log_dataset(run_id: str, dataset: DatasetRef, context: Context) -> None:
    """Log which examples a run used, and for what."""
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
        tags: e.g. the manifest's digest.
    """
    tags = {"checkpoint": path.resolve().as_uri(), **tags}
    return write_checkpoint(patient_store(), run_id, name, step, tags)


def log_samples(run_id: str, samples: pd.DataFrame, file: str, digest: str) -> None:
    """Log a table of answers, in the place of the one before; the same one leaves no trace.

    Where artifacts are refused it is left out with a warning, as in ``write_table``.

    Args:
        samples: a row for each answer; a column of pictures is shown as such.
        file: ``samples.json``.
        digest: of what is in it.
    """
    client, tag = MlflowClient(), f"{HIDDEN}{file}"
    with lock(Path(STORE_LOCK)):  # else two `kedro run`s could both find it missing
        run = client.get_run(run_id)
        if run.data.tags.get(tag) == digest:
            return
        client.set_tag(run_id, tag, "begun")  # killed after this, it is done again
        try:
            if tag in run.data.tags:  # `log_table` would add to what is there
                artifacts = get_artifact_repository(run.info.artifact_uri)
                for path in (file, f"table_images/{Path(file).stem}"):
                    artifacts.delete_artifacts(path)  # type: ignore[no-untyped-call]
            client.log_table(run_id, samples, file)
        except (MlflowException, OSError) as error:
            if not refuses_artifacts(error):
                raise
            told = run_id, file, error
            logger.warning("run %s: %s is left out, artifacts are refused (%s)", *told)
            return
        client.set_tag(run_id, tag, digest)


def describe(run_id: str, text: str, color: str | None = None) -> None:
    """Say on a run's page what it is, and draw it in a colour; what people put there stays.

    Args:
        text: in Markdown; lines that end above ``NOTE_CHARACTERS`` are left out.
        color: ``#RRGGBB``; None: MLflow's own choice.
    """
    client = MlflowClient()
    there = client.get_run(run_id).data.tags
    tags = _unless_edited(there, "mlflow.note.content", _fit(text))
    if color is not None:
        tags |= _unless_edited(there, "mlflow.runColor", color)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])


def describe_experiment(run_id: str, text: str) -> None:
    """Say on the page of a run's experiment what it is about; text as of `describe`."""
    client = MlflowClient()
    experiment = client.get_experiment(client.get_run(run_id).info.experiment_id)
    tags = _unless_edited(experiment.tags, "mlflow.note.content", _fit(text))
    for key, value in tags.items():
        client.set_experiment_tag(experiment.experiment_id, key, value)


def _unless_edited(there: Mapping[str, str], key: str, value: str) -> dict[str, str]:
    """A tag that MLflow's pages let people edit, and digests to tell by whether they did.

    The digests are those of the value before and of this one: tags of an experiment are set one
    after the other, these first.

    Args:
        there: the tags that there are; where they hold another value than ours, nothing is set.
    """
    mark, before = f"{HIDDEN}{key.removeprefix('mlflow.')}", there.get(key, "")
    is_ours = content_key(before) in there[mark].split() if mark in there else not before
    if not is_ours:
        return {}
    return {mark: f"{content_key(before)} {content_key(value)}", key: value}


def _fit(text: str) -> str:
    """Whole lines only: half a link is none."""
    if len(text) <= NOTE_CHARACTERS:
        return text
    return text[:NOTE_CHARACTERS].rsplit("\n", 1)[0]
