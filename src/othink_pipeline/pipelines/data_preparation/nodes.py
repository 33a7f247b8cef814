"""Make the examples of the tasks."""

from __future__ import annotations

from pathlib import Path

from othink_pipeline.cells.parameters import Folders
from othink_pipeline.data.manifests import Examples
from othink_pipeline.data.parameters import DataPreparation
from othink_pipeline.data.preparation import CELL_SPLITS, prepare_splits


def prepare_examples(data_preparation: DataPreparation, folders: Folders, *, task: str) -> Examples:
    """Train, validation and test examples of ``task``; see ``prepare_splits``."""
    return prepare_splits(data_preparation, task, CELL_SPLITS, Path(folders.examples) / task)
