"""Train one cell, or find that it is trained: files, MLflow run and journal around the trainer.

Everything a cell needs comes in as data, everything it makes goes out as files and one MLflow run,
so a cell runs the same in any process. torch is imported inside the functions: the registry
imports this module.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from othink_pipeline import runs, tracking
from othink_pipeline.base_models import ORIGIN
from othink_pipeline.cells import (
    FAILED,
    RESUME,
    SAME_ENV,
    cell_folder,
    check_code,
    check_examples,
    check_files,
    dataset_ref,
    find_finished,
    training_code,
    training_key,
)
from othink_pipeline.delivery import (
    TrackingRefusedError,
    TrackingUnavailableError,
    raise_if_away,
)
from othink_pipeline.examples import read_examples
from othink_pipeline.grid import Cell
from othink_pipeline.journal import HISTORY_COLUMNS, Checkpoint, Journal
from othink_pipeline.lifecycle import failure
from othink_pipeline.locks import lock
from othink_pipeline.model_parameters import Compute, ModelSettings
from othink_pipeline.parameters import RL, SFT, Evaluation, Folders, Health
from othink_pipeline.recording import Recorder
from othink_pipeline.reuse import MANIFEST, digest_folder, publish, write_json
from othink_pipeline.source import library_versions

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
                tracking.join_grid(run_id, "reused")
                logger.info("%s: trained before, reused from %s", cell.name, folder)
            else:  # to train, to go on with, or a server never took all of its records
                name = f"{cell.task}/{cell.method}/s{cell.seed}"
                tags = {"task": cell.task, "method": cell.method, "seed": str(cell.seed)}
                run_id = runs.open_run(folder / runs.FILE, name, "cell", tags, settings)
                recorder = Recorder(run_id, name, journal, base_model_id=base_model["model_id"])
                with tracking.ending(run_id), recorder:
                    # Where it goes on with other policies, MLflow's parameters show the first.
                    recorder.tag("health", json.dumps(health.model_dump()))
                    if manifest is None:
                        manifest = _train(
                            *(cell, parameters, base_model, examples, evaluation, model),
                            *(compute, health, folder, journal, recorder),
                        )
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
            history = journal.history() if journal else pd.DataFrame(columns=HISTORY_COLUMNS)
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


def _train(
    cell: Cell,
    parameters: SFT | RL,
    base_model: dict[str, Any],
    examples: Sequence[dict[str, Any]],
    evaluation: Evaluation,
    settings: ModelSettings,
    compute: Compute,
    health: Health,
    folder: Path,
    journal: Journal,
    recorder: Recorder,
) -> dict[str, Any]:
    """Train a cell in its folder, from where it was left, and write its manifest last of all."""
    import torch

    from othink_pipeline.evaluation import predict
    from othink_pipeline.models import save_model
    from othink_pipeline.training import Job, train

    algorithm = import_module(f"othink_pipeline.{parameters.algorithm}_training")
    check_code(*training_code(parameters.algorithm))
    own = next(manifest for manifest in examples if manifest["task"] == cell.task)
    validation = {
        manifest["task"]: read_examples(manifest["splits"]["validation"]["path"]).take(
            parameters.validation_examples
        )
        for manifest in examples
    }
    recorder.dataset(dataset_ref(own, "train"), "train")
    for manifest in examples:
        recorder.dataset(dataset_ref(manifest, "validation"), "validation")
    known = {
        (step, metric): value
        for step, metric, value in journal.history().itertuples(index=False, name=None)
    }
    dtype = getattr(torch, settings.dtype)
    merge = parameters.lora is None or parameters.lora.merge
    digests = {
        entry.checkpoint: entry.digest for entry in journal.entries if isinstance(entry, Checkpoint)
    }

    def checkpoint(step: int, model: Any, processor: Any) -> dict[str, float]:
        """Keep and score a checkpoint; what was kept or scored before a crash stays as it is."""
        if step:  # else it is the base model itself: where every curve starts
            path = folder / f"update-{step:06d}"
            if not path.is_dir() or digest_folder(path) != digests.get(step):
                with publish(path) as scratch:
                    save_model(model, processor, scratch, dtype, merge)
                digests[step] = digest_folder(path)
            recorder.checkpoint(step, path, digests[step])
        scores = {}
        for manifest in examples:
            task = manifest["task"]
            if (step, f"val/{task}") not in known:
                predictions = predict(
                    model,
                    processor,
                    validation[task],
                    prompt=manifest["splits"]["validation"]["prompt"],
                    **evaluation.generation,
                )
                metrics = {
                    f"val/{task}": float(predictions["correct"].mean()),
                    f"val/think_rate/{task}": float(predictions["thought"].mean()),
                    f"val/format_rate/{task}": float(predictions["format_ok"].mean()),
                }
                recorder.metrics(step, metrics, step, dataset_ref(manifest, "validation"))
                known[step, f"val/{task}"] = metrics[f"val/{task}"]
            scores[task] = known[step, f"val/{task}"]
        return scores

    def report(fault: str, update: int, figures: str) -> None:
        logger.warning("%s  update %d: %s: %s", cell.name, update, fault, figures)
        recorder.tag(f"fault/{fault}", f"update {update}: {figures}")

    job = Job(
        name=cell.name,
        model_path=base_model["path"],
        model=settings,
        examples=read_examples(own["splits"]["train"]["path"]),
        prompt=own["splits"]["train"]["prompt"],
        parameters=parameters,
        compute=compute,
        health=health,
        seed=cell.seed,
        folder=folder / RESUME,
    )
    trained = train(algorithm, job, recorder.metrics, checkpoint, report)
    costs = trained._asdict()
    faults = costs.pop("faults")
    recorder.metrics(trained.updates, {f"cost/{name}": value for name, value in costs.items()})
    manifest = {
        **cell._asdict(),
        "checkpoint": f"update-{trained.updates:06d}",
        "digest": digests[trained.updates],
        "parameters": parameters.model_dump(),
        "health": health.model_dump(),
        "faults": faults,
        "data": own["splits"]["train"]["digest"],
        "base_model": base_model["digest"],
        **costs,
    }
    write_json(folder / MANIFEST, manifest)
    return {**manifest, "path": str(folder / manifest["checkpoint"])}


def _say_busy(cell: Cell, holder: str) -> None:
    logger.info("%s: another run works on it (%s); waiting until it is done", cell.name, holder)
