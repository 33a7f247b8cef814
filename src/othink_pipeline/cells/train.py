"""Train one cell, or find that it is trained: files, MLflow run and journal around the trainer.

Everything a cell needs comes in as data, everything it makes goes out as files and one MLflow run,
so a cell runs the same in any process. torch is imported inside the functions: the registry
imports this module.
"""

from __future__ import annotations

import logging
import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from othink_pipeline.cells.accelerate_config import check_launcher
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.job import CellJob, record_job
from othink_pipeline.cells.keys import (
    FAILED,
    RESUME,
    SAME_ENV,
    cell_folder,
    check_examples,
    check_files,
    find_finished,
    training_key,
)
from othink_pipeline.cells.parameters import Evaluation, Folders
from othink_pipeline.cells.processes import train_in_processes
from othink_pipeline.core.code import library_versions
from othink_pipeline.core.files import MANIFEST
from othink_pipeline.core.locks import lock
from othink_pipeline.core.redaction import failure
from othink_pipeline.models.base_models import ORIGIN
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.tracking import runs
from othink_pipeline.tracking.journal import HISTORY_COLUMNS, Journal
from othink_pipeline.tracking.recorder import (
    TrackingRefusedError,
    TrackingUnavailableError,
    raise_if_away,
)
from othink_pipeline.training.parameters import RL, SFT, Health

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
    model: ModelSettings,
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
        ConfigurationError: base model or examples are not those that their manifests speak of.
        TrackingUnavailableError: the MLflow server stayed away; nothing that was trained is lost.
    """
    import pandas as pd

    check_launcher(compute, health, [parameters])
    key = training_key(cell, parameters, base_model["digest"], examples, evaluation, model, compute)
    folder = cell_folder(folders, cell, key)
    retired = folder.with_name(f".{key}.old")
    with lock(folder.with_name(f"{key}.lock"), partial(_say_busy, cell)):
        manifest = None if compute.fresh else find_finished(folder, health)
        if compute.fresh or (manifest is None and (folder / MANIFEST).exists()):
            _retire(folder, retired)  # to be made anew, under a new MLflow run
        if manifest is None:
            check_files(base_model, f"Check it: kedro run --pipelines=data_preparation {SAME_ENV}")
            for part in examples:
                check_examples(part)
        settings = {
            **parameters.model_dump(),
            "seed": cell.seed,
            "task": cell.task,
            "prompts": {part["task"]: part["splits"]["train"]["prompt"] for part in examples},
            "base_model": {key: base_model[key] for key in ORIGIN if key in base_model},
            "sources": {part["task"]: part["sources"] for part in examples if "sources" in part},
            "model": model.model_dump(),
            "compute": compute.model_dump(),
            "health": health.model_dump(),
            "key": key,
            "libraries": library_versions(),
        }
        journal: Journal | None = None
        try:
            journal = Journal(folder / "journal.jsonl")
            run_id = runs.finished_run(folder / runs.FILE)
            if manifest and run_id and journal.delivered(run_id) == len(journal.entries):
                runs.join_grid(run_id, "reused")
                logger.info("%s: trained before, reused from %s", cell.name, folder)
            else:  # to train, to go on with, or a server never took all of its records
                name = f"{cell.task}/{cell.method}/s{cell.seed}"
                tags = {"task": cell.task, "method": cell.method, "seed": str(cell.seed)}
                run_id = runs.open_run(folder / runs.FILE, name, "cell", tags, settings)
                job = CellJob(
                    cell=cell,
                    parameters=parameters,
                    base_model=base_model,
                    examples=examples,
                    evaluation=evaluation,
                    model=model,
                    compute=compute,
                    health=health,
                    key=key,
                    folder=str(folder),
                    run_id=run_id,
                )
                with runs.ending(run_id):
                    if manifest is None and compute.launched:
                        manifest = train_in_processes(job)
                        journal = Journal(journal.path)  # in which one of them wrote
                    manifest = record_job(job, journal, manifest)
            model_id = journal.model_id(run_id, manifest["updates"])
        except (TrackingUnavailableError, TrackingRefusedError):
            raise
        except Exception as error:
            raise_if_away(error)
            known = isinstance(error, click.ClickException)  # its message says it all
            logger.error(
                "%s failed, the other cells go on: %s",
                cell.name,
                failure(error),
                exc_info=None if known else error,
            )
            history = pd.DataFrame(columns=HISTORY_COLUMNS)
            if journal:
                history = Journal(journal.path).history()  # another process may have written
            return {**cell._asdict(), FAILED: failure(error)}, history
        for leftover in (folder / RESUME, retired):  # also of a process killed before this
            shutil.rmtree(leftover, ignore_errors=True)
    if parameters.lora and not parameters.lora.merge:
        manifest["base_path"] = base_model["path"]  # which the adapters belong on
    return {**manifest, "run_id": run_id, "model_id": model_id}, journal.history()


def _retire(folder: Path, retired: Path) -> None:
    """Set a training aside, at once, until the one that takes its place is finished."""
    if folder.exists():
        shutil.rmtree(retired, ignore_errors=True)
        os.replace(folder, retired)


def _say_busy(cell: Cell, holder: str) -> None:
    logger.info("%s: another run works on it (%s); waiting until it is done", cell.name, holder)
