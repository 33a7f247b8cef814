"""Test every cell on the task that it was trained on."""

from __future__ import annotations

import logging
from typing import Any

import pandas as pd

from othink_pipeline.cells.evaluate import evaluate_model, read_predictions
from othink_pipeline.cells.keys import FAILED
from othink_pipeline.cells.parameters import Evaluation, Folders
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.report.matrix import matrix_text, transfer_matrix

logger = logging.getLogger(__name__)


def evaluate_cell(
    checkpoint: dict[str, Any],
    examples: dict[str, Any],
    evaluation: Evaluation,
    folders: Folders,
    model: ModelSettings,
    compute: Compute,
    *,
    task: str,
    method: str,
    seed: int,
    base_model: int,
) -> dict[str, Any]:
    """The predictions of a cell on one task's test split; see ``evaluate_model``."""
    return evaluate_model(
        checkpoint,
        examples,
        evaluation,
        folders,
        model,
        compute,
        task=task,
        method=method,
        seed=seed,
        base_model=base_model,
    )


def tabulate_same_task(*predictions: dict[str, Any], methods: tuple[str, ...]) -> pd.DataFrame:
    """The diagonal of the transfer matrix; ``methods``: their order."""
    tables = [read_predictions(manifest) for manifest in predictions if FAILED not in manifest]
    failures = pd.DataFrame([manifest for manifest in predictions if FAILED in manifest])
    if not tables:
        return failures
    matrix = transfer_matrix(pd.concat(tables, ignore_index=True), failures, methods)
    logger.info("same-task accuracy\n%s", matrix_text(matrix))
    return matrix
