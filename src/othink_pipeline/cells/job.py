"""One cell's training as data, so that any process can do it, and the doing of it."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from othink_pipeline.cells.accelerate_config import find_device_fault
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.keys import (
    RESUME,
    Settings,
    check_code,
    dataset_ref,
    examples_of,
    numerics,
    training_code,
)
from othink_pipeline.cells.manifests import Training
from othink_pipeline.cells.progress import Progress, show_progress
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import MANIFEST, digest_folder, publish
from othink_pipeline.data.examples import read_examples
from othink_pipeline.data.manifests import Examples
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.tracking import journal as journals
from othink_pipeline.tracking.journal import Journal
from othink_pipeline.tracking.recorder import Recorder
from othink_pipeline.training.parameters import RL, SFT

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

    from othink_pipeline.training.loop import Trained

    State = dict[str, torch.Tensor] | None
    """All weights, where the model does not hold them whole itself."""

logger = logging.getLogger(__name__)

COMPLETIONS = "completions"
"""The folder, among the artifacts of a run, with tables of what RL has sampled."""

Digests = Mapping[int, str]
"""Update -> digest of the checkpoint after it."""


class CellJob(NamedTuple):
    """All that the training of a cell needs; it can be pickled."""

    cell: Cell
    parameters: SFT | RL
    base_model: BaseModelCheckpoint
    examples: tuple[Examples, ...]
    """Of all tasks."""
    settings: Settings
    key: str
    """The content key."""
    folder: str
    """The cell's own, relative to the project."""

    @property
    def name(self) -> str:
        """The cell's, as runs are named."""
        return f"{self.cell.task}/{self.cell.method}/s{self.cell.seed}"


def record_job(job: CellJob, run_id: str, journal: Journal, finished: Training | None) -> Training:
    """Train a cell, unless it is finished, and deliver its records to its MLflow run.

    Raises:
        TrackingUnavailableError, TrackingRefusedError: as of ``Recorder``.
    """
    with Recorder(run_id, job.name, journal, base_model_id=job.base_model.model_id) as recorder:
        # Where it goes on with other policies, MLflow's parameters show the first.
        recorder.tag("health", json.dumps(job.settings.health.model_dump()))
        if finished:
            return finished
        trained, digests = train_job(job, recorder)
        costs = {f"cost/{name}": value for name, value in trained._asdict().items()}
        del costs["cost/faults"]  # they are tags
        recorder.metrics(trained.updates, costs)
        training = _describe(job, trained, digests)
        training.write(Path(job.folder, MANIFEST))
    return training


def train_job(job: CellJob, recorder: Recorder | None) -> tuple[Trained, Digests]:
    """Train a cell in its folder, from where it was left.

    Args:
        recorder: None on all processes of a training but the main one.

    Returns:
        What it came to, and the digests of its checkpoints, which the main process alone writes.

    Raises:
        ConfigurationError: the GPUs that can be seen and ``compute`` do not go together; the code
            was edited.
    """
    import torch

    from othink_pipeline.training.loop import Job, train

    settings = job.settings
    algorithm = import_module(f"othink_pipeline.training.{job.parameters.algorithm}")
    check_code(*training_code(job.parameters.algorithm))
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    machines = settings.compute.num_processes // processes_here
    if fault := find_device_fault(settings.compute, torch.cuda.device_count(), machines):
        raise ConfigurationError(". ".join(fault))
    own = examples_of(job.cell.task, job.examples)
    if recorder:
        recorder.tag("threads", str(torch.get_num_threads()))  # by them sums are rounded
        recorder.tag("machines", str(machines))
        recorder.dataset(dataset_ref(own, "train"), "train")
        for examples in job.examples:
            recorder.dataset(dataset_ref(examples, "validation"), "validation")
    training = Job(
        name=job.cell.name,
        model_path=job.base_model.path,
        model=settings.model,
        examples=read_examples(own.splits["train"].path),
        prompt=own.splits["train"].prompt,
        parameters=job.parameters,
        compute=settings.compute,
        health=settings.health,
        seed=job.cell.seed,
        folder=Path(job.folder, RESUME),
        answers=own.answers,
    )
    every = settings.health.completions_every_updates
    callbacks = []
    if recorder and every and job.parameters.algorithm == "rl":
        from othink_pipeline.cells.completions import CompletionTables

        callbacks = [CompletionTables(training, every, partial(_show_table, recorder))]
    # The main process alone is seen.
    with show_progress(job.cell.name, job.parameters.updates, recorder is not None) as progress:
        watch = _Watch(job, recorder, progress)
        trained = train(algorithm, training, watch.log, watch.checkpoint, watch.report, callbacks)
    return trained, watch.digests


def _show_table(recorder: Recorder, update: int, columns: list[str], rows: list[Any]) -> None:
    recorder.table(f"{COMPLETIONS}/update-{update:06d}.json", columns, rows)


def _describe(job: CellJob, trained: Trained, digests: Digests) -> Training:
    """The manifest of a training."""
    own = examples_of(job.cell.task, job.examples)
    return Training(
        **job.cell._asdict(),
        checkpoint=_checkpoint_name(trained.updates),
        digest=digests[trained.updates],
        parameters=job.parameters,
        numerics=numerics(job.parameters, job.settings),
        health=job.settings.health.model_dump(),
        data=own.splits["train"].digest,
        answers=own.answers,
        base_model=job.base_model.digest,
        **trained._asdict(),
    )


def _checkpoint_name(update: int) -> str:
    return f"update-{update:06d}"


class _Watch:
    """What is done beside a training's updates: figures are logged, checkpoints kept and scored.

    All processes take part in the scoring; the main one alone, which has the recorder, writes. What
    was kept or scored before a crash stays as it is.
    """

    def __init__(self, job: CellJob, recorder: Recorder | None, progress: Progress) -> None:
        self._job, self._recorder, self._progress = job, recorder, progress
        self._folder = Path(job.folder)
        self._scores: dict[tuple[int, str], float] = {}
        self.digests: dict[int, str] = {}
        if recorder:
            history = recorder.journal.history().itertuples(index=False, name=None)
            self._scores = {(step, metric): value for step, metric, value in history}
            for entry in recorder.journal.entries:
                if isinstance(entry, journals.Checkpoint):
                    self.digests[entry.checkpoint] = entry.digest

    def log(self, update: int, metrics: dict[str, float]) -> None:
        """Take note of an update's figures."""
        self._progress.update(update, metrics)
        if self._recorder:
            self._recorder.metrics(update, metrics)

    def report(self, fault: str, update: int, figures: str) -> None:
        """Say that something went wrong."""
        logger.warning("%s  update %d: %s: %s", self._job.cell.name, update, fault, figures)
        if self._recorder:
            self._recorder.tag(f"fault/{fault}", f"update {update}: {figures}")

    def checkpoint(self, update: int, model: Any, processor: Any, state: State) -> dict[str, float]:
        """Keep a checkpoint and score it on each task's validation split.

        Returns:
            Task -> accuracy; nothing on processes without a recorder.
        """
        from accelerate.utils import broadcast_object_list

        if update and self._recorder:  # else it is the base model itself: where all curves start
            self._keep(update, model, processor, state)
        tasks = [each.task for each in self._job.examples]
        left = [task for task in tasks if (update, f"val/{task}") not in self._scores]
        (left,) = broadcast_object_list([left])  # the main process has the records
        for task in left:
            self._score(update, task, model, processor)
        if not self._recorder:
            return {}
        scores = {task: self._scores[update, f"val/{task}"] for task in tasks}
        self._progress.validated(scores)
        return scores

    def _keep(self, update: int, model: Any, processor: Any, state: State) -> None:
        import torch

        from othink_pipeline.models.load import save_model

        assert self._recorder
        path = self._folder / _checkpoint_name(update)
        if not path.is_dir() or digest_folder(path) != self.digests.get(update):
            lora = self._job.parameters.lora
            dtype = getattr(torch, self._job.settings.model.dtype)
            with publish(path) as scratch:
                save_model(model, processor, scratch, dtype, lora is None or lora.merge, state)
            self.digests[update] = digest_folder(path)
        self._recorder.checkpoint(update, path, self.digests[update])

    def _score(self, update: int, task: str, model: Any, processor: Any) -> None:
        from othink_pipeline.evaluation.predictions import predict_together
        from othink_pipeline.models.generation import Decoding

        examples = examples_of(task, self._job.examples)
        validation = examples.splits["validation"]
        rows: Dataset = read_examples(validation.path).take(
            self._job.parameters.validation_examples
        )
        predictions = predict_together(
            model,
            processor,
            rows,
            validation.prompt,
            Decoding(**self._job.settings.evaluation.generation),
            examples.answers,
        )
        metrics = {
            f"val/{task}": float(predictions["correct"].mean()),
            f"val/think_rate/{task}": float(predictions["thought"].mean()),
            f"val/format_rate/{task}": float(predictions["format_ok"].mean()),
        }
        self._scores[update, f"val/{task}"] = metrics[f"val/{task}"]
        if self._recorder:
            self._recorder.metrics(update, metrics, update, dataset_ref(examples, "validation"))
