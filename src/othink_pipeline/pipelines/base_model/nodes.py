"""Check the base models that the grid starts from, or make one from nothing."""

from __future__ import annotations

import logging
import os
import platform
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

from othink_pipeline.cells.keys import JOURNAL, arithmetic
from othink_pipeline.cells.methods import distinct_sizes, resolve_methods
from othink_pipeline.cells.parameters import Cluster, Evaluation, Experiment, Folders, TrainDemand
from othink_pipeline.cells.processes import train_here, train_on
from othink_pipeline.core.blocks import SAME_ENV, ConfigurationError
from othink_pipeline.core.code import code_digest, code_tags, library_versions
from othink_pipeline.core.files import MANIFEST, content_key, publish, read_json, write_json
from othink_pipeline.core.locks import lock, say_busy
from othink_pipeline.core.redaction import failure
from othink_pipeline.data.examples import read_examples
from othink_pipeline.data.manifests import Examples, Split
from othink_pipeline.data.parameters import DataPreparation
from othink_pipeline.data.preparation import prepare_splits
from othink_pipeline.models.base_models import find_base_model
from othink_pipeline.models.manifests import BaseModelCheckpoint, FoundModel, MadeModel
from othink_pipeline.models.parameters import (
    BaseModel,
    Compute,
    MiniModel,
    ModelSettings,
    Rebuild,
)
from othink_pipeline.preflight.rows import refuse
from othink_pipeline.tracking import records, runs
from othink_pipeline.tracking.journal import Journal
from othink_pipeline.tracking.recorder import Recorder
from othink_pipeline.training.parameters import RL, SFT

logger = logging.getLogger(__name__)

CHECKED = "checked.json"
"""Holds the content key of the last checks that a base model passed: they are not repeated."""

STATE = "state.pt"
"""All of a base model's training that was begun, beside its run and its journal."""


def check_base_model(
    base_model: BaseModel,
    experiment: Experiment,
    training: dict[str, Any],
    sft: dict[str, Any],
    rl: dict[str, Any],
    methods: dict[str, Any],
    evaluation: Evaluation,
    folders: Folders,
    model: ModelSettings,
    compute: Compute,
    cluster: Cluster,
    *examples: Examples,
    number: int,
) -> BaseModelCheckpoint:
    """Verify a base model's files, check that it fits what it is for, and open its MLflow run.

    Each block comes by itself: for Kedro it is an edge of the lineage.

    Args:
        base_model: all that there are.
        examples: of all tasks.
        number: which of them.

    Raises:
        ConfigurationError: no model there, changed files, or all that does not fit.
    """
    found = find_base_model(
        base_model,
        number,
        "Set base_model.path to a model folder, restore the shipped one (git checkout), or make "
        f"one: kedro run --pipelines=base_model --params=rebuild.seed={number},"
        f"rebuild.path=FOLDER {SAME_ENV}",
    )
    blocks = {"training": training, "sft": sft, "rl": rl, "methods": methods}
    resolved = distinct_sizes(resolve_methods(blocks, experiment.tasks, experiment.methods))
    home = Path(folders.checkpoints) / "base" / f"b{number}" / found.digest[:16]
    # What Ray would set aside is not set aside without it: a training then sees all GPUs.
    train = None if train_on.get() is train_here else cluster.train
    fit = found, resolved, evaluation, model, compute, train
    busy = say_busy(f"base model {number}: another run checks it")
    with lock(home.with_name(f"{home.name}.lock"), busy):
        _check_fit(*fit, examples, home / CHECKED)
    return _open_run(found, number, home)


def _open_run(found: FoundModel, number: int, home: Path) -> BaseModelCheckpoint:
    """The base model with an MLflow run and a logged model, which are made once."""
    name, tags = f"base/b{number}", {"method": "base", "base_model": str(number)}
    with lock(home.with_name(f"{home.name}.lock")):  # another `kedro run`: seconds
        run_id = runs.finished_run(home / runs.FILE)
        if run_id is not None:
            runs.join_grid(run_id, "reused")
        else:
            made = found.made.model_dump(exclude={"version"}) if found.made else {}
            logged = {**made, **found.origin}
            run_id = runs.open_run(home / runs.FILE, name, "base_model", tags, logged)
            runs.finish_run(run_id)
        # Finds what was registered before.
        model_id = records.log_checkpoint(
            run_id, name, 0, Path(found.path), {"digest": found.digest}
        )
    return BaseModelCheckpoint(**dict(found), run_id=run_id, model_id=model_id)


def _check_fit(
    base_model: FoundModel,
    methods: dict[str, SFT | RL],
    evaluation: Evaluation,
    model: ModelSettings,
    compute: Compute,
    train: TrainDemand | None,
    examples: tuple[Examples, ...],
    checked: Path,
) -> None:
    """Run ``preflight.compatibility``, unless ``checked`` says that it passed on this machine."""
    key = content_key(
        {
            "base_model": base_model.digest,
            "model": model.model_dump(),
            "compute": compute.model_dump(exclude={"fresh", "resume_every_updates"})
            | arithmetic(compute),
            "train": train and train.model_dump(),
            "methods": {
                name: method.model_dump(exclude={"kl", "learning_rate"})
                for name, method in methods.items()
            },
            "evaluation": evaluation.model_dump(),
            "examples": [each.to_json() for each in examples],
            "code": code_digest("othink_pipeline.preflight.compatibility"),
            "versions": library_versions(),
            "machine": [platform.node(), os.environ.get("CUDA_VISIBLE_DEVICES")],
        }
    )
    if read_json(checked) == {"passed": key}:
        return
    from othink_pipeline.preflight import compatibility
    from othink_pipeline.preflight.lengths import TaskExamples

    tasks = {
        each.task: TaskExamples(
            {split: read_examples(part.path) for split, part in each.splits.items()},
            {split: part.prompt for split, part in each.splits.items()},
            each.answers,
        )
        for each in examples
    }
    rows = [
        row
        for each in examples
        for row in compatibility.check_examples(each.task, tasks[each.task].splits, each.answers)
    ]
    rows += compatibility.check_overlap(tasks)
    refuse(rows)  # the model is run on sound examples only
    rows, _ = compatibility.check_model(
        base_model.path, tasks, methods, evaluation, model, compute, train
    )
    refuse(rows)
    for row in rows:
        if row.outcome == "note":
            logger.warning("%s: %s", row.check, row.detail)
    checked.parent.mkdir(parents=True, exist_ok=True)
    write_json(checked, {"passed": key})


def prepare_base_examples(
    data_preparation: DataPreparation, folders: Folders, *, task: str
) -> Examples:
    """The base model's own training examples: a split that no cell ever sees."""
    return prepare_splits(
        data_preparation, task, ("base",), Path(folders.examples) / f"{task}_base"
    )


def train_base_model(
    rebuild: Rebuild,
    evaluation: Evaluation,
    *examples: Examples,
) -> MadeModel:
    """Make the mini base model and measure it on the validation splits, mode by mode.

    One that was made of the same is taken as it is, with what was measured then; one that was begun
    is gone on with.

    Args:
        examples: the base split of every task, then of every task its train, validation and test
            splits; the test splits are not read.

    Returns:
        How the model in ``rebuild.path`` was made, and of each task its accuracy when it is free
        to think or not, and forced to either.

    Raises:
        ConfigurationError: the model is too large to be shipped.
        TrackingUnavailableError, TrackingRefusedError: as of ``Recorder``.
    """
    from othink_pipeline.preflight.device import emulates_bfloat16

    tasks = len(examples) // 2
    base = {each.task: each.splits["base"] for each in examples[:tasks]}
    settings = MiniModel(**rebuild.model_dump(exclude={"path"}))
    key = content_key(
        {
            "settings": settings.model_dump(),
            "prompt": next(iter(base.values())).prompt,
            "base": {task: split.digest for task, split in base.items()},
            "code": code_digest("othink_pipeline.models.pretraining"),
            "versions": library_versions(asked_for=()),
        }
    )
    folder = Path(rebuild.path)
    begun = folder.with_name(f".{folder.name}.begun")
    busy = say_busy("base model: another run makes it")
    with lock(folder.with_name(f"{folder.name}.lock"), busy):
        made = _find_made(folder, key)
        if made is None:
            if rebuild.bf16 and emulates_bfloat16():
                logger.warning(
                    "rebuild.bf16 = True: this CPU has no bfloat16 of its own, and what stands in "
                    "for it is ten times slower than float32. --params=rebuild.bf16=false"
                )
            made = _make(base, examples[tasks:], settings, evaluation, folder, begun / key)
        shutil.rmtree(begun, ignore_errors=True)
    logger.info("base model -> %s. To start the grid from it, set base_model.path.", folder)
    return made


def _find_made(folder: Path, key: str) -> MadeModel | None:
    """The model in ``folder``, if it is whole and was made of the same."""
    if (read_json(folder / MANIFEST) or {}).get("key") != key:
        return None
    try:
        made = MadeModel.read_folder(folder, "It is made anew.")
    except ConfigurationError as error:
        logger.warning("%s", error.message)
        return None
    logger.info("base model: made before of the same, reused; without its folder it is made anew")
    return made


def _make(
    base: dict[str, Split],
    examples: tuple[Examples, ...],
    settings: MiniModel,
    evaluation: Evaluation,
    folder: Path,
    begun: Path,
) -> MadeModel:
    """Train, measure and publish; what is done of it stands in ``begun``, named by its key."""
    from othink_pipeline.models.load import save_model
    from othink_pipeline.models.pretraining import pretrain

    prompt = next(iter(base.values())).prompt
    logged = {**settings.model_dump(), "path": str(folder), "prompt": prompt}
    run_id = runs.open_run(begun / runs.FILE, "base", "base_model", {"method": "base"}, logged)
    with (
        runs.ending(run_id),
        Recorder(run_id, "base model", Journal(begun / JOURNAL)) as recorder,
    ):
        rows = {task: read_examples(split.path) for task, split in base.items()}
        state = begun / STATE
        _drop_damaged(state)
        model, processor, facts = pretrain(rows, prompt, settings, recorder.metrics, state)
        measured = {each.task: _measure(model, processor, each, evaluation) for each in examples}
        for task, figures in measured.items():
            values = {f"val/{name}/{task}": value for name, value in figures.items()}
            recorder.metrics(settings.updates, values)
    with publish(folder) as scratch:
        save_model(model, processor, scratch)
        return MadeModel.write_folder(
            scratch,
            made_by="kedro run --pipelines=base_model",
            key=begun.name,
            code=code_tags(Path.cwd()),
            rebuild=settings,
            facts=facts,
            data={task: split.digest for task, split in base.items()},
            measured=measured,
        )


def _drop_damaged(state: Path) -> None:
    """Delete what was begun where it cannot be read: it is begun anew."""
    import torch

    if not state.exists():
        return
    content = BytesIO(state.read_bytes())  # what the disk says against it is no damage
    try:
        torch.load(content, weights_only=True)
    except Exception as error:  # it raises whatever it stumbles over
        logger.warning("%s is damaged (%s): the base model is begun anew", state, failure(error))
        state.unlink()


def _measure(
    model: Any, processor: Any, examples: Examples, evaluation: Evaluation
) -> dict[str, float]:
    """Accuracy on the validation split: free (greedy, sampled), think block forced either way."""
    from othink_pipeline.evaluation.predictions import predict
    from othink_pipeline.models.generation import Decoding

    measured: dict[str, float] = {}
    part = examples.splits["validation"]
    validation = read_examples(part.path)
    modes: dict[str, dict[str, Any]] = {
        "greedy": {},
        "sampled": {"temperature": 1.0},
        "empty": {"think": False},
        "worked": {"think": True},
    }
    for mode, settings in modes.items():
        predictions = predict(
            model,
            processor,
            validation,
            part.prompt,
            Decoding(**evaluation.generation, **settings),
            answers=examples.answers,
        )
        measured[f"accuracy_{mode}"] = round(float(predictions["correct"].mean()), 4)
        measured[f"format_rate_{mode}"] = round(float(predictions["format_ok"].mean()), 4)
        measured[f"think_rate_{mode}"] = round(float(predictions["thought"].mean()), 4)
        logger.info("%s, %s: %.3f right", examples.task, mode, measured[f"accuracy_{mode}"])
    return {"examples": len(validation), **measured}
