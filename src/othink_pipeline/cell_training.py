"""Train one cell, or find that it is trained: files, MLflow run and journal around the trainer.

Everything a cell needs comes in as data, everything it makes goes out as files and one MLflow run,
so a cell runs the same in any process. torch is imported inside the functions: the registry
imports this module.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from othink_pipeline import tracking
from othink_pipeline.cells import (
    FAILED,
    SAME_ENV,
    cell_folder,
    check_files,
    dataset_ref,
    failure,
    find_finished,
    training_key,
)
from othink_pipeline.examples import read_examples
from othink_pipeline.grid import Cell
from othink_pipeline.journal import Journal
from othink_pipeline.locks import lock
from othink_pipeline.parameters import RL, SFT, Compute, Evaluation, Folders, Health
from othink_pipeline.recording import Recorder, TrackingUnavailableError
from othink_pipeline.reuse import digest_folder, publish, write_json
from othink_pipeline.source import library_versions
from othink_pipeline.validation import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def train_cell(
    cell: Cell,
    parameters: SFT | RL,
    base_model: dict[str, Any],
    examples: tuple[dict[str, Any], ...],
    evaluation: Evaluation,
    folders: Folders,
    compute: Compute,
    health: Health,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Train a cell, go on with its interrupted training, or take it as it was finished.

    What goes wrong in one cell does not stop the others: its manifest then says why (``failed``).

    Args:
        base_model: its manifest.
        examples: the manifests of all tasks, the cell's own among them.

    Returns:
        The manifest of the last checkpoint, which is the one that counts, and the history table:
        step, metric, value.

    Raises:
        ConfigurationError: the base model is not the one that its manifest speaks of.
        TrackingUnavailableError: the MLflow server stayed away; nothing that was trained is lost.
    """
    key = training_key(cell, parameters, base_model["digest"], examples, evaluation, compute)
    folder = cell_folder(folders, cell, key)
    folder.parent.mkdir(parents=True, exist_ok=True)

    def busy(holder: str) -> None:
        logger.info("%s: waiting for another run that works on it (%s)", cell.name, holder)

    with lock(folder.with_name(f"{key}.lock"), busy):
        if compute.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        settings = {
            **parameters.model_dump(),
            "seed": cell.seed,
            "task": cell.task,
            "prompts": {manifest["task"]: manifest["prompt"] for manifest in examples},
            "base_model": {"path": base_model["path"], "digest": base_model["digest"]},
            "compute": compute.model_dump(),
            "health": health.model_dump(),
            "key": key,
            "libraries": library_versions(),
        }
        tags = {"task": cell.task, "method": cell.method, "seed": str(cell.seed)}
        journal = Journal(folder / "journal.jsonl")
        finished = find_finished(folder)
        with Recorder(folder / "run.json", run_name(cell), tags, settings, journal) as recorder:
            if finished is not None:
                logger.info("%s: trained already, reused from %s", cell.name, folder)
                return finished, journal.history()
            try:
                manifest = _train(
                    *(cell, parameters, base_model, examples, evaluation, compute, health),
                    *(folder, recorder),
                )
            except (ConfigurationError, TrackingUnavailableError):
                raise
            except Exception as error:
                logger.exception("%s failed; what does not depend on it goes on", cell.name)
                recorder.fail(failure(error))
                return {**cell._asdict(), FAILED: failure(error)}, journal.history()
    return manifest, journal.history()
