"""The scores of every cell on the task that it was trained on."""

from __future__ import annotations

import logging

import pandas as pd

from othink_pipeline.cells.evaluate import read_predictions
from othink_pipeline.cells.manifests import FailedTest, Predictions
from othink_pipeline.report.matrix import KEYS, matrix_text, transfer_matrix

logger = logging.getLogger(__name__)


def tabulate_same_task(*tests: Predictions | FailedTest, methods: tuple[str, ...]) -> pd.DataFrame:
    """The diagonal of the transfer matrix; ``methods``: their order."""
    tables = [read_predictions(each) for each in tests if isinstance(each, Predictions)]
    failed = [each.model_dump() for each in tests if isinstance(each, FailedTest)]
    failures = pd.DataFrame(failed, columns=KEYS)
    if not tables:
        return failures.assign(n=0, correct=0)
    matrix = transfer_matrix(pd.concat(tables, ignore_index=True), failures, methods)
    logger.info("same-task accuracy\n%s", matrix_text(matrix))
    return matrix
