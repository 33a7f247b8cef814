"""Register the best cell of a grid by its validation splits: no test score has a part in that."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
from mlflow.exceptions import MlflowException

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import digest_folder
from othink_pipeline.tracking import registry
from othink_pipeline.tracking.recorder import told_if_away

logger = logging.getLogger(__name__)

ALIAS = "best"
CELL = ["task", "method", "seed"]
ADAPTERS = "adapter_config.json"


def register_best_cell(history: pd.DataFrame, training: pd.DataFrame) -> None:
    """Make the last checkpoint of the best cell a version of a registered model, alias ``best``.

    The weights are copied into the artifacts of the cell's run: from there whoever reaches the
    server can load them. A checkpoint that has the alias already is left as it is.

    Args:
        history: columns task, method, seed, step, metric, value.
        training: a row for each cell: run_id, path and digest of its last checkpoint.

    Raises:
        ConfigurationError: no cell is finished; the best one's checkpoint is gone, was changed, or
            is adapters; MLflow refuses it.
        TrackingUnavailableError: the MLflow server does not answer.
    """
    validation = history[history["metric"].str.fullmatch("val/[^/]+")]
    scores = validation_accuracy(validation)
    if scores.empty:
        raise ConfigurationError("no cell is finished: there is nothing to register. Run the grid.")
    task, method, seed = best = scores.index[int(scores.argmax())]
    accuracy, cell = scores.max(), training.set_index(CELL).to_dict("index")[best]
    name, folder = f"{task}/{method}/s{seed}", Path(cell["path"])
    if not folder.is_dir() or digest_folder(folder) != cell["digest"]:
        raise ConfigurationError(
            f"{name}: its checkpoint {folder} is gone, or was changed since. Run the grid again."
        )
    if (folder / ADAPTERS).exists():
        raise ConfigurationError(
            f"{name}: its checkpoint {folder} is adapters, which do not load by themselves. Set "
            "training.lora.merge: true and run the grid again."
        )
    about = {
        "task": task,
        "method": method,
        "seed": str(seed),
        "validated_on": ", ".join(sorted(validation["metric"].str.removeprefix("val/").unique())),
        "validation_accuracy": f"{accuracy:.4f}",
        "digest": cell["digest"],
    }
    try:
        with told_if_away():
            uri = registry.register(cell["run_id"], folder, ALIAS, about)
    except (MlflowException, OSError) as error:
        raise ConfigurationError(
            f"{name}: MLflow does not register it ({error}). Its run {cell['run_id']} must be in "
            "the store of today's mlflow.yml, artifacts must be taken there, and the experiment's "
            "name, which the model gets, may hold neither / nor :."
        ) from None
    logger.info("%s: %.1f %% right on validation, registered: %s", name, 100 * accuracy, uri)


def validation_accuracy(validation: pd.DataFrame) -> pd.Series:
    """By cell (task, method, seed): after its last update, the mean over the tasks' splits.

    Args:
        validation: the rows of the history table that are accuracies on a task's split.
    """
    accuracy = validation.sort_values("step")
    last = accuracy.groupby([*CELL, "metric"], sort=False)["value"].last()
    return last.groupby(CELL, sort=False).mean()
