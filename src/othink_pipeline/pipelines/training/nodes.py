"""Train a cell by its method."""

from __future__ import annotations

from typing import Any

import pandas as pd  # Kedro checks parameters only where all type hints resolve

from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.keys import Settings
from othink_pipeline.cells.manifests import Checkpoint, FailedCell
from othink_pipeline.cells.methods import resolve_method
from othink_pipeline.cells.parameters import Evaluation, Folders
from othink_pipeline.cells.train import train_cell
from othink_pipeline.data.manifests import Examples
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.training.parameters import Health


def train(
    base_model: BaseModelCheckpoint,
    training: dict[str, Any],
    algorithm: dict[str, Any],
    method: dict[str, Any],
    evaluation: Evaluation,
    folders: Folders,
    model: ModelSettings,
    compute: Compute,
    health: Health,
    *examples: Examples,
    cell: Cell,
) -> tuple[Checkpoint | FailedCell, pd.DataFrame]:
    """Train a cell by its method; see ``train_cell``.

    Each block comes by itself: for Kedro it is an edge of the lineage.

    Args:
        algorithm: the block ``sft`` or ``rl``.
    """
    blocks = {
        "training": training,
        method["algorithm"]: algorithm,
        "methods": {cell.method: method},
    }
    parameters = resolve_method(blocks, cell.method, cell.task)
    settings = Settings(evaluation, folders, model, compute, health)
    return train_cell(cell, parameters, base_model, examples, settings)
