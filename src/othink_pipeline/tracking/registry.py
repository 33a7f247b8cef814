"""MLflow's model registry: checkpoints that are to be found by a name, ``models:/NAME@ALIAS``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from othink_pipeline.tracking.mlflow_store import is_unknown

ARTIFACT = "model"
"""The folder, among a run's artifacts, that a registered checkpoint is copied to."""


def register(run_id: str, folder: Path, alias: str, tags: Mapping[str, str]) -> str:
    """Make a checkpoint a version of the registered model that its run's experiment names.

    Args:
        run_id: the run that made it; it gets a copy of the checkpoint, which the version is.
        folder: a Hugging Face model folder.
        alias: of the version; it is taken from the one before.
        tags: of the version, among them the checkpoint's digest: where the alias stands for the
            same one already, nothing is done.

    Returns:
        The URI that it is loaded by, ``models:/othink-pipeline@best``.
    """
    client = MlflowClient()
    run = client.get_run(run_id)
    name = client.get_experiment(run.info.experiment_id).name
    uri = f"models:/{name}@{alias}"
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if not is_unknown(error):
            raise
        model = client.create_registered_model(name)
    known = model.aliases.get(alias)
    if known and client.get_model_version(name, known).tags.get("digest") == tags["digest"]:
        return uri
    client.log_artifacts(run_id, str(folder), ARTIFACT)
    source = f"{run.info.artifact_uri}/{ARTIFACT}"
    version = client.create_model_version(name, source, run_id, dict(tags)).version
    client.set_registered_model_alias(name, alias, version)
    return uri
