"""What a run needs and costs, checked without a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from othink_pipeline.base_models import (
    base_model_folders,
    find_base_model,
    locate_base_model,
)
from othink_pipeline.costs import Grid
from othink_pipeline.data_parameters import DataPreparation
from othink_pipeline.disk import check_disk, needed_disk_bytes, source_bytes
from othink_pipeline.examples import read_examples
from othink_pipeline.hub import measure_model
from othink_pipeline.model_parameters import BaseModel, Compute, ModelSettings
from othink_pipeline.parameters import (
    RL,
    SFT,
    Evaluation,
    Experiment,
    Folders,
    distinct_sizes,
    resolve_methods,
)
from othink_pipeline.plan import measured_costs
from othink_pipeline.preflight import Row, check_folders, check_store, refuse
from othink_pipeline.preparation import CELL_SPLITS, examples_key
from othink_pipeline.reuse import read_manifest
from othink_pipeline.validation import ConfigurationError
from othink_pipeline.weights import read_weights

if TYPE_CHECKING:
    from datasets import Dataset


def check_places(
    experiment: Experiment,
    training: dict[str, Any],
    sft: dict[str, Any],
    rl: dict[str, Any],
    methods: dict[str, Any],
    base_model: BaseModel,
    folders: Folders,
    data_preparation: DataPreparation,
    model: ModelSettings,
) -> list[Row]:
    """Check what a run writes to, and say what it costs."""
    from mlflow import get_tracking_uri

    blocks = {"training": training, "sft": sft, "rl": rl, "methods": methods}
    resolved = resolve_methods(blocks, experiment)
    rows = _count_work(experiment, resolved)
    try:
        check_store(get_tracking_uri(), None, Path.cwd())
    except ConfigurationError as error:
        rows.append(Row("MLflow store", "FAILED", error.message))
    else:
        rows.append(Row("MLflow store", "ok", "can be written"))
    places = {f"folders.{key}": Path(folder) for key, folder in folders}
    rows += check_folders({**places, "project folder": Path.cwd()})
    rows.append(_check_room(experiment, resolved, base_model, folders, data_preparation, model))
    return rows


def check_fit(
    experiment: Experiment,
    training: dict[str, Any],
    sft: dict[str, Any],
    rl: dict[str, Any],
    methods: dict[str, Any],
    base_model: BaseModel,
    folders: Folders,
    data_preparation: DataPreparation,
    evaluation: Evaluation,
    model: ModelSettings,
    compute: Compute,
) -> list[Row]:
    """Check examples and base models; see ``fit``."""
    from othink_pipeline import fit
    from othink_pipeline.device import find_device

    device = find_device()
    rows = [Row("device", "note", f"{device.name}, {device.memory:,} bytes")]
    tasks: dict[str, Mapping[str, Dataset]] = {}
    for task in experiment.tasks:
        found, splits = _read_task(task, data_preparation, Path(folders.examples) / task)
        if splits is None:
            try:
                splits = fit.draw_splits(task, data_preparation)
            except ConfigurationError as error:
                found.append(Row(f"{task} examples", "FAILED", error.message))
                splits = {}
        found += fit.check_examples(task, splits)
        if splits and all(row.outcome != "FAILED" for row in found):
            tasks[task] = splits
        rows += found
    rows += fit.check_overlap(tasks)
    blocks = {"training": training, "sft": sft, "rl": rl, "methods": methods}
    resolved = distinct_sizes(resolve_methods(blocks, experiment))
    prompts = {
        task: {split: data_preparation.prompt_of(task, split) for split in CELL_SPLITS}
        for task in tasks
    }
    known = measured_costs(Path(folders.checkpoints))
    for number in range(base_model.count):
        found, manifest = _find_model(base_model, number)
        rows += found
        if manifest is None:
            continue
        grid = Grid(
            tasks=len(experiment.tasks),
            seeds=len(experiment.seeds),
            base_models=base_model.count,
            test_examples=data_preparation.splits.test,
            seconds={
                algorithm: each
                for (algorithm, digest), each in known.items()
                if digest == manifest["digest"]
            },
        )
        rows += fit.check_model(
            manifest["path"], tasks, prompts, resolved, evaluation, model, compute, grid
        )
    return rows


def report_checks(places: list[Row], fit: list[Row]) -> None:
    """Print a line a check.

    Raises:
        ConfigurationError: with every check that failed and its remedy.
    """
    rows = [*places, *fit]
    width = max(len(row.check) for row in rows)
    for row in rows:
        click.echo(f"{row.check:<{width}}  {row.outcome:<6}  {row.detail}")
    refuse(rows)


def _count_work(experiment: Experiment, methods: Mapping[tuple[str, str], SFT | RL]) -> list[Row]:
    """What each method's cells, and the whole grid, are given and make, without any model.

    Args:
        methods: by task and method.
    """
    seeds = len(experiment.seeds)
    rows, updates, completions, tokens = [], 0, 0, 0
    for (task, name), method in methods.items():
        prompts = method.updates * method.prompts_per_update
        detail = f"{seeds} cells" if seeds > 1 else "1 cell"
        detail += f", each {method.updates:,} updates, {prompts:,} prompts"
        if isinstance(method, RL):
            made = prompts * method.completions_per_prompt
            most = made * method.max_completion_tokens
            detail += f", {made:,} completions, {most:,} tokens at most"
            detail += f"; KL weight {method.kl.describe(method.updates)}"
            completions, tokens = completions + seeds * made, tokens + seeds * most
        updates += seeds * method.updates
        rows.append(Row(f"{name} on {task}", "note", detail))
    whole = (
        f"{seeds * len(methods)} cells, in all {updates:,} updates, {completions:,} completions, "
        f"{tokens:,} tokens at most"
    )
    return [*rows, Row("grid", "note", whole)]


def _check_room(
    experiment: Experiment,
    methods: Mapping[tuple[str, str], SFT | RL],
    base_model: BaseModel,
    folders: Folders,
    data_preparation: DataPreparation,
    model: ModelSettings,
) -> Row:
    """Is there room for the whole grid, nothing of it prepared or trained yet?"""
    cells = list(methods.values()) * len(experiment.seeds)
    place = Path(folders.checkpoints)
    unread = [task for task in experiment.tasks if not (Path(folders.examples) / task).exists()]
    try:
        models = [read_weights(folder) for folder in base_model_folders(base_model)]
        if not models:
            return Row("disk", "note", "not known before the model is downloaded")
        needed = needed_disk_bytes(max(models), cells, model)
        needed += source_bytes(data_preparation.sources, unread)
        check_disk(place, needed)
    except ConfigurationError as error:
        return Row("disk", "FAILED", error.message)
    return Row("disk", "ok", f"{place}: room for {needed / 1024**3:.1f} GiB, the whole grid")


def _find_model(base_model: BaseModel, number: int) -> tuple[list[Row], dict[str, Any] | None]:
    """What is to say of a base model, its manifest if it can be checked; nothing is fetched."""
    hub = base_model.hub
    name = hub.id if hub else (base_model.path or ())[number]
    try:
        if hub is None:
            remedy = "Set base_model.path to a model folder, or restore this one."
            return [], find_base_model(base_model, number, remedy)
        if manifest := locate_base_model(base_model, number):
            return [], manifest
        missing = measure_model(**hub.model_dump())
    except ConfigurationError as error:
        return [Row(f"model {name}", "FAILED", error.message)], None
    detail = f"on the hub, a run downloads {missing / 1e9:.2f} GB and checks it"
    return [Row(f"model {name}", "note", detail)], None


def _read_task(
    task: str, settings: DataPreparation, folder: Path
) -> tuple[list[Row], Mapping[str, Dataset] | None]:
    """A task's prepared examples by split; None where there are none made with these settings."""
    name, remedy = f"{task} examples", "Make them: kedro run --pipelines=data_preparation"
    instead = _instead(task, settings)
    if not folder.exists():
        return [Row(name, "note", f"not prepared yet, {instead}. {remedy}")], None
    try:
        manifest = read_manifest(folder, f"{remedy} (it replaces them).")
    except ConfigurationError as error:
        return [Row(name, "FAILED", error.message)], None
    try:
        key = examples_key(settings, task, CELL_SPLITS)
    except ConfigurationError as error:
        return [Row(name, "FAILED", error.message)], None
    if manifest.get("key") != key:
        detail = f"prepared with other settings, data or code, {instead}. {remedy}"
        return [Row(name, "note", detail)], None
    splits = {split: read_examples(part["path"]) for split, part in manifest["splits"].items()}
    return [Row(name, "ok", f"{folder}: whole")], splits


def _instead(task: str, settings: DataPreparation) -> str:
    """What is checked of a task that is not prepared; see ``fit.draw_splits``."""
    source = settings.sources.get(task)
    if source is None:
        return "some are drawn"
    if "hub" in (source.train.source.kind, source.test.source.kind):
        return "nothing to check"
    return "some are read"
