"""One cell's training as data, so that any process can do it, and the doing of it."""

from __future__ import annotations

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from othink_pipeline.cells.accelerate_config import find_device_fault
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.keys import RESUME, check_code, dataset_ref, training_code
from othink_pipeline.cells.parameters import RL, SFT, Evaluation, Health
from othink_pipeline.core.blocks import Block, ConfigurationError
from othink_pipeline.core.files import MANIFEST, digest_folder, publish, write_json
from othink_pipeline.data.examples import read_examples
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.tracking.journal import Checkpoint, Journal
from othink_pipeline.tracking.recorder import Recorder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


class CellJob(Block):
    """All that the training of a cell needs; fit for JSON."""

    cell: Cell
    parameters: Annotated[SFT | RL, Field(discriminator="algorithm")]
    base_model: dict[str, Any]
    """Its manifest."""
    examples: tuple[dict[str, Any], ...]
    """The manifests of all tasks."""
    evaluation: Evaluation
    model: ModelSettings
    compute: Compute
    health: Health
    key: str
    """The content key."""
    folder: str
    """The cell's own, relative to the project."""
    run_id: str
    """Of the MLflow run."""


def record_job(job: CellJob, journal: Journal, manifest: dict[str, Any] | None) -> dict[str, Any]:
    """Train a cell, unless it has a manifest, and deliver its records; returns its manifest.

    Raises:
        TrackingUnavailableError, TrackingRefusedError: as of ``Recorder``.
    """
    name = f"{job.cell.task}/{job.cell.method}/s{job.cell.seed}"
    recorder = Recorder(job.run_id, name, journal, base_model_id=job.base_model["model_id"])
    with recorder:
        # Where it goes on with other policies, MLflow's parameters show the first.
        recorder.tag("health", json.dumps(job.health.model_dump()))
        return manifest or train_job(job, journal, recorder)


def train_job(job: CellJob, journal: Journal | None, recorder: Recorder | None) -> dict[str, Any]:
    """Train a cell in its folder, from where it was left, and write its manifest last of all.

    Args:
        journal, recorder: None on all processes of a training but the main one, which alone writes
            records, checkpoints and the manifest.

    Raises:
        ConfigurationError: the GPUs that can be seen and ``compute`` do not go together; the code
            was edited.
    """
    import torch
    from accelerate.utils import broadcast_object_list

    from othink_pipeline.evaluation.predictions import predict_together
    from othink_pipeline.models.generation import Decoding
    from othink_pipeline.models.load import save_model
    from othink_pipeline.training.loop import Job, train

    cell, parameters, folder = job.cell, job.parameters, Path(job.folder)
    algorithm = import_module(f"othink_pipeline.training.{parameters.algorithm}")
    check_code(*training_code(parameters.algorithm))
    if fault := find_device_fault(job.compute, torch.cuda.device_count()):
        raise ConfigurationError(". ".join(fault))
    own = next(manifest for manifest in job.examples if manifest["task"] == cell.task)
    validation = {
        manifest["task"]: read_examples(manifest["splits"]["validation"]["path"]).take(
            parameters.validation_examples
        )
        for manifest in job.examples
    }
    if recorder:
        recorder.dataset(dataset_ref(own, "train"), "train")
        for manifest in job.examples:
            recorder.dataset(dataset_ref(manifest, "validation"), "validation")
    known: dict[tuple[int, str], float] = {}
    digests: dict[int, str] = {}
    if journal:
        for step, metric, value in journal.history().itertuples(index=False, name=None):
            known[step, metric] = value
        for entry in journal.entries:
            if isinstance(entry, Checkpoint):
                digests[entry.checkpoint] = entry.digest
    dtype = getattr(torch, job.model.dtype)
    merge = parameters.lora is None or parameters.lora.merge

    def keep(step: int, model: Any, processor: Any, state: dict[str, torch.Tensor] | None) -> None:
        path = folder / f"update-{step:06d}"
        if not path.is_dir() or digest_folder(path) != digests.get(step):
            with publish(path) as scratch:
                save_model(model, processor, scratch, dtype, merge, state)
            digests[step] = digest_folder(path)
        if recorder:
            recorder.checkpoint(step, path, digests[step])

    def checkpoint(
        step: int, model: Any, processor: Any, state: dict[str, torch.Tensor] | None
    ) -> dict[str, float]:
        """Keep and score a checkpoint; what was kept or scored before a crash stays as it is."""
        if step and recorder:  # else it is the base model itself: where every curve starts
            keep(step, model, processor, state)
        scores: dict[str, float] = {}
        # The main process has the records: it says what is left to score.
        left = [m["task"] for m in job.examples if (step, f"val/{m['task']}") not in known]
        (left,) = broadcast_object_list([left])
        for manifest in job.examples:
            task = manifest["task"]
            if task in left:
                predictions = predict_together(
                    model,
                    processor,
                    validation[task],
                    manifest["splits"]["validation"]["prompt"],
                    Decoding(**job.evaluation.generation),
                )
                metrics = {
                    f"val/{task}": float(predictions["correct"].mean()),
                    f"val/think_rate/{task}": float(predictions["thought"].mean()),
                    f"val/format_rate/{task}": float(predictions["format_ok"].mean()),
                }
                if recorder:
                    recorder.metrics(step, metrics, step, dataset_ref(manifest, "validation"))
                known[step, f"val/{task}"] = metrics[f"val/{task}"]
            if recorder:
                scores[task] = known[step, f"val/{task}"]
        return scores

    def log(update: int, metrics: dict[str, float]) -> None:
        if recorder:
            recorder.metrics(update, metrics)

    def report(fault: str, update: int, figures: str) -> None:
        logger.warning("%s  update %d: %s: %s", cell.name, update, fault, figures)
        if recorder:
            recorder.tag(f"fault/{fault}", f"update {update}: {figures}")

    training = Job(
        name=cell.name,
        model_path=job.base_model["path"],
        model=job.model,
        examples=read_examples(own["splits"]["train"]["path"]),
        prompt=own["splits"]["train"]["prompt"],
        parameters=parameters,
        compute=job.compute,
        health=job.health,
        seed=cell.seed,
        folder=folder / RESUME,
    )
    trained = train(algorithm, training, log, checkpoint, report)
    costs = trained._asdict()
    faults = costs.pop("faults")
    manifest = {
        **cell._asdict(),
        "checkpoint": f"update-{trained.updates:06d}",
        "digest": digests.get(trained.updates),
        "parameters": parameters.model_dump(),
        "health": job.health.model_dump(),
        "faults": faults,
        "data": own["splits"]["train"]["digest"],
        "base_model": job.base_model["digest"],
        **costs,
    }
    if recorder:
        values = {f"cost/{name}": value for name, value in costs.items()}
        recorder.metrics(trained.updates, values)
        write_json(folder / MANIFEST, manifest)
    return {**manifest, "path": str(folder / manifest["checkpoint"])}
