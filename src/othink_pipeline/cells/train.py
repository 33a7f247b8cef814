"""Train one cell, or find that it is trained: files, MLflow run and journal around the trainer.

Everything a cell needs comes in as data, everything it makes goes out as files and one MLflow run,
so a cell runs the same in any process. torch is imported inside the functions: the registry
imports this module.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd

from othink_pipeline.cells.accelerate_config import check_launcher
from othink_pipeline.cells.failures import explain
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.job import CellJob, record_job
from othink_pipeline.cells.keys import (
    BEGUN_BY,
    JOURNAL,
    RESUME,
    Settings,
    cell_folder,
    check_examples,
    check_model,
    find_finished,
    find_set_aside,
    place_aside,
    training_key,
)
from othink_pipeline.cells.manifests import Checkpoint, FailedCell, Training
from othink_pipeline.cells.processes import MachineLostError, train_in_processes
from othink_pipeline.core.blocks import SAME_ENV
from othink_pipeline.core.code import library_versions
from othink_pipeline.core.files import MANIFEST
from othink_pipeline.core.locks import lock, say_busy
from othink_pipeline.data.manifests import Examples
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.tracking import runs
from othink_pipeline.tracking.journal import HISTORY_COLUMNS, Journal
from othink_pipeline.training.parameters import RL, SFT

logger = logging.getLogger(__name__)

RUN_VARIABLE = "OTHINK_RUN"
"""Environment variable with the token of this `kedro run`, which worker processes inherit."""


def train_cell(
    cell: Cell,
    parameters: SFT | RL,
    base_model: BaseModelCheckpoint,
    examples: tuple[Examples, ...],
    settings: Settings,
) -> tuple[Checkpoint | FailedCell, pd.DataFrame]:
    """Train a cell, go on with its interrupted training, or take it as it was finished.

    What goes wrong in one cell does not stop the others.

    Args:
        examples: of all tasks, the cell's own among them.

    Returns:
        The last checkpoint, or why there is none; and the history table: step, metric, value, empty
        where there is none.

    Raises:
        ConfigurationError: base model or examples are not those that their manifests speak of.
        TrackingUnavailableError: the MLflow server stayed away; nothing that was trained is lost.
        MachineLostError: the training is to be given again.
    """
    check_launcher(settings.compute, settings.health, [parameters])
    key = training_key(cell, parameters, base_model.digest, examples, settings)
    folder = cell_folder(settings.folders, cell, key)
    job = CellJob(cell, parameters, base_model, examples, settings, key, str(folder))
    retired = place_aside(folder)
    busy = say_busy(f"{cell.name}: another run works on it")
    with lock(folder.with_name(f"{key}.lock"), busy):
        anew = settings.compute.fresh and not _begun_by_this_run(folder)
        finished = None if anew else find_finished(folder, settings.health)
        if finished is None and not anew:
            finished = find_set_aside(folder, settings.health)
            if finished is not None:
                _discard(folder)
                os.replace(retired, folder)
        if finished is None:
            if anew or (folder / MANIFEST).exists():
                _retire(folder, retired)  # to be made anew, under a new MLflow run
            if anew:
                _sign(folder)
            remedy = f"Check it: kedro run --pipelines=data_preparation {SAME_ENV}"
            check_model(base_model.path, base_model.digest, remedy, base_model.is_hubs)
            for each in examples:
                check_examples(each)
        try:
            checkpoint, history = _record(job, finished)
        except MachineLostError:
            raise
        except Exception as error:
            reason = explain(error, f"{cell.name} failed, the other cells go on")
            # Its curves are in MLflow and in its journal; from here nobody would read them.
            failed = FailedCell(**cell._asdict(), failed=reason)
            return failed, pd.DataFrame(columns=HISTORY_COLUMNS)
        for leftover in (folder / RESUME, retired):  # also of a process killed before this
            shutil.rmtree(leftover, ignore_errors=True)
    return checkpoint, history


def _record(job: CellJob, finished: Training | None) -> tuple[Checkpoint, pd.DataFrame]:
    """Train, unless that is done, and see that MLflow has all of it."""
    folder, cell = Path(job.folder), job.cell
    journal = Journal(folder / JOURNAL)
    run_id = runs.finished_run(folder / runs.FILE)
    if finished and run_id and journal.delivered(run_id) == len(journal.entries):
        runs.join_grid(run_id, "reused")
        logger.info("%s: trained before, reused from %s", cell.name, folder)
    else:  # to train, to go on with, or a server never took all of its records
        tags = {"task": cell.task, "method": cell.method, "seed": str(cell.seed)}
        run_id = runs.open_run(folder / runs.FILE, job.name, "cell", tags, _logged(job))
        with runs.ending(run_id):
            if finished is None and job.settings.compute.launched:
                finished = train_in_processes(job, run_id)
                journal = Journal(journal.path)  # in which one of them wrote
            finished = record_job(job, run_id, journal, finished)
    lora = job.parameters.lora
    checkpoint = Checkpoint(
        **dict(finished),
        path=str(folder / finished.checkpoint),
        run_id=run_id,
        model_id=journal.model_id(run_id, finished.updates),
        base_path=job.base_model.path if lora and not lora.merge else None,
        base_is_hubs=job.base_model.is_hubs,
    )
    return checkpoint, journal.history()


def _logged(job: CellJob) -> dict[str, Any]:
    """What a cell was trained with, as MLflow shows it."""
    return {
        **job.parameters.model_dump(),
        "seed": job.cell.seed,
        "task": job.cell.task,
        "prompts": {each.task: each.splits["train"].prompt for each in job.examples},
        "answers": {each.task: each.answers.model_dump() for each in job.examples},
        "base_model": job.base_model.origin,
        "sources": {each.task: each.sources for each in job.examples if each.sources},
        "model": job.settings.model.model_dump(),
        "compute": job.settings.compute.model_dump(),
        "health": job.settings.health.model_dump(),
        "key": job.key,
        "libraries": library_versions(),
    }


def _begun_by_this_run(folder: Path) -> bool:
    """Whether this `kedro run` has begun it anew: Ray gives a cell again whose process died."""
    run, file = os.environ.get(RUN_VARIABLE), folder / BEGUN_BY
    return bool(run) and file.exists() and file.read_text() == run


def _sign(folder: Path) -> None:
    """Say by which `kedro run` a training is begun anew."""
    folder.mkdir(parents=True)
    (folder / BEGUN_BY).write_text(os.environ.get(RUN_VARIABLE, ""))


def _retire(folder: Path, retired: Path) -> None:
    """Set a training aside, at once, until the one that takes its place is finished.

    One that is not finished itself goes for good where one that is was set aside before.
    """
    if not folder.exists():
        return
    if retired.exists() and not (folder / MANIFEST).exists():
        _discard(folder)
    else:
        shutil.rmtree(retired, ignore_errors=True)
        os.replace(folder, retired)


def _discard(folder: Path) -> None:
    """Delete a training, if there is one, so that it is never taken for whole."""
    doomed = folder.with_name(f".{folder.name}.pruned")  # a name that `prune` knows
    shutil.rmtree(doomed, ignore_errors=True)
    if folder.exists():
        os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)
