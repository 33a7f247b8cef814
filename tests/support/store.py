"""A store of MLflow's to record in, made of an empty one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow


@contextmanager
def open_store(empty_store: Path, folder: Path, experiment: str = "tests") -> Iterator[str]:
    """A copy in a folder, in which MLflow records one experiment until the end; its address."""
    shutil.copy(empty_store, folder)
    uri = f"sqlite:///{folder}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.create_experiment(experiment, artifact_location=(folder / "artifacts").as_uri())
    mlflow.set_experiment(experiment)
    try:
        yield uri
    finally:
        mlflow.set_tracking_uri(None)
        os.environ.pop("MLFLOW_EXPERIMENT_ID")
