"""Check the base models that the grid starts from, or make one from nothing."""

from __future__ import annotations

import logging
import os
import platform
from pathlib import Path
from typing import Any

from othink_pipeline.cells.keys import SAME_ENV, arithmetic
from othink_pipeline.cells.methods import distinct_sizes, resolve_methods
from othink_pipeline.cells.parameters import Cluster, Evaluation, Experiment, Folders
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.code import code_digest, code_tags, library_versions
from othink_pipeline.core.files import content_key, publish, read_json, write_json
from othink_pipeline.core.locks import lock
from othink_pipeline.data.examples import read_examples
from othink_pipeline.data.manifests import Examples
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
from othink_pipeline.training.parameters import RL, SFT

logger = logging.getLogger(__name__)

CHECKED = "checked.json"
"""Holds the content key of the last checks that a base model passed: they are not repeated."""

LIMIT_MB = 8
"""A shipped model, everything in its folder, is at most this large."""


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
        f"one: kedro run --pipelines=base_model --params=rebuild.path=FOLDER {SAME_ENV}",
    )
    blocks = {"training": training, "sft": sft, "rl": rl, "methods": methods}
    resolved = distinct_sizes(resolve_methods(blocks, experiment.tasks, experiment.methods))
    home = Path(folders.checkpoints) / "base" / f"b{number}" / found.digest[:16]
    machines = cluster.train.machines
    fit = found, resolved, evaluation, model, compute, machines
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
    machines: int,
    examples: tuple[Examples, ...],
    checked: Path,
) -> None:
    """Run the checks of ``fit``, unless ``checked`` says that the same passed on this machine."""
    key = content_key(
        {
            "base_model": base_model.digest,
            "model": model.model_dump(),
            "compute": compute.model_dump() | arithmetic(compute),
            "machines": machines,
            "methods": {name: method.model_dump() for name, method in methods.items()},
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
        base_model.path, tasks, methods, evaluation, model, compute, machines
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

    Args:
        examples: the base split of every task, then of every task its train, validation and test
            splits; the test splits are not read.

    Returns:
        How the model in ``rebuild.path`` was made, and of each task its accuracy when it is free
        to think or not, and forced to either.
    """
    from othink_pipeline.models.load import save_model
    from othink_pipeline.models.pretraining import pretrain
    from othink_pipeline.preflight.device import emulates_bfloat16

    if rebuild.bf16 and emulates_bfloat16():
        logger.warning(
            "rebuild.bf16 = True: this CPU has no bfloat16 of its own, and what stands in for it "
            "is ten times slower than float32. --params=rebuild.bf16=false"
        )
    tasks = len(examples) // 2
    base = {each.task: each.splits["base"] for each in examples[:tasks]}
    prompt = next(iter(base.values())).prompt
    settings = {**rebuild.model_dump(), "prompt": prompt}
    run_id = runs.start_run("base", "base_model", {"method": "base"}, settings)
    with runs.ending(run_id):

        def log(update: int, metrics: dict[str, float]) -> None:
            records.log_metrics(run_id, metrics, update)

        rows = {task: read_examples(split.path) for task, split in base.items()}
        model, processor, facts = pretrain(rows, prompt, rebuild, log)
        measured = {
            each.task: _measure(model, processor, each, evaluation) for each in examples[tasks:]
        }
        for task, figures in measured.items():
            log(rebuild.updates, {f"val/{name}/{task}": v for name, v in figures.items()})
    folder = Path(rebuild.path)
    with publish(folder) as scratch:
        save_model(model, processor, scratch)
        size_mb = sum(file.stat().st_size for file in scratch.iterdir()) / 1e6
        if size_mb > LIMIT_MB:
            raise ConfigurationError(
                f"the base model is {size_mb:.1f} MB, over the limit of {LIMIT_MB} MB: make "
                "rebuild.hidden_size or .layers smaller"
            )
        made = MadeModel.write_folder(
            scratch,
            made_by="kedro run --pipelines=base_model",
            code=code_tags(Path.cwd()),
            rebuild=MiniModel(**rebuild.model_dump(exclude={"path"})),
            facts=facts,
            data={task: split.digest for task, split in base.items()},
            measured=measured,
        )
    logger.info("base model -> %s. To start the grid from it, set base_model.path.", folder)
    return made


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
