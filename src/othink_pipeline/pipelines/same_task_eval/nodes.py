"""Test every cell on the task that it was trained on."""

from __future__ import annotations

import logging
from typing import Any

import pandas as pd

from othink_pipeline.cells import evaluate_model
from othink_pipeline.matrix import matrix_text, transfer_matrix
from othink_pipeline.parameters import Evaluation

logger = logging.getLogger(__name__)


def evaluate_cell(
    checkpoint: dict[str, Any],
    examples: dict[str, Any],
    evaluation: Evaluation,
    *,
    task: str,
    method: str,
    seed: int,
    base_model: int,
) -> pd.DataFrame:
    """The predictions of a cell on one task's test split; see ``cells.evaluate_model``."""
    return evaluate_model(
        checkpoint,
        examples,
        evaluation,
        task=task,
        method=method,
        seed=seed,
        base_model=base_model,
    )


def tabulate_same_task(*predictions: pd.DataFrame) -> pd.DataFrame:
    """The diagonal of the transfer matrix."""
    matrix = transfer_matrix(pd.concat(predictions, ignore_index=True))
    logger.info("same-task accuracy\n%s", matrix_text(matrix))
    return matrix
