"""Reinforcement learning of one cell: GRPO, and GRPO-D, which differs in its ``kl`` block alone."""

from __future__ import annotations

from typing import Any

import pandas as pd

from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.methods import resolve_method
from othink_pipeline.cells.parameters import Evaluation, Folders
from othink_pipeline.cells.train import train_cell
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.training.parameters import Health


def train_rl(
    base_model: dict[str, Any],
    training: dict[str, Any],
    rl: dict[str, Any],
    method: dict[str, Any],
    evaluation: Evaluation,
    folders: Folders,
    model: ModelSettings,
    compute: Compute,
    health: Health,
    *examples: dict[str, Any],
    cell: Cell,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Reinforce the base model's own right answers; see ``train_cell``."""
    blocks = {"training": training, "rl": rl, "methods": {cell.method: method}}
    parameters = resolve_method(blocks, cell.method, cell.task)
    settings = (evaluation, folders, model, compute, health)
    return train_cell(cell, parameters, base_model, examples, *settings)
