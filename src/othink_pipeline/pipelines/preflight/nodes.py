"""What a run needs and costs, checked without a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from othink_pipeline.costs import Grid
from othink_pipeline.data_parameters import DataPreparation
from othink_pipeline.disk import check_disk, needed_disk_bytes, source_bytes
from othink_pipeline.examples import read_examples
from othink_pipeline.model_parameters import BaseModel, Compute, ModelSettings
from othink_pipeline.parameters import RL, SFT, Evaluation, Experiment, Folders
from othink_pipeline.plan import measured_costs
from othink_pipeline.preflight import Row, check_folders, check_store, refuse, resolve_methods
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

    resolved = resolve_methods(experiment, training, sft, rl, methods)
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
                splits = fit.draw_splits(task, data_preparation.seed)
            except ConfigurationError as error:
                found.append(Row(f"{task} examples", "FAILED", error.message))
                splits = {}
        found += fit.check_examples(task, splits)
        if all(row.outcome != "FAILED" for row in found):
            tasks[task] = splits
        rows += found
    resolved = resolve_methods(experiment, training, sft, rl, methods)
    known = measured_costs(Path(folders.checkpoints))
    for path in base_model.path or ():
        try:
            manifest = read_manifest(
                Path(path), "Set base_model.path to a model folder, or restore this one."
            )
        except ConfigurationError as error:
            rows.append(Row(f"model {path}", "FAILED", error.message))
        else:
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
            prompt = data_preparation.prompt
            rows += fit.check_model(path, tasks, prompt, resolved, evaluation, model, compute, grid)
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


def _count_work(experiment: Experiment, methods: Mapping[str, SFT | RL]) -> list[Row]:
    """What each method's cells, and the whole grid, are given and make, without any model."""
    cells = len(experiment.tasks) * len(experiment.seeds)
    rows, updates, completions, tokens = [], 0, 0, 0
    for name, method in methods.items():
        prompts = method.updates * method.prompts_per_update
        detail = f"{cells} cells, each {method.updates:,} updates, {prompts:,} prompts"
        if isinstance(method, RL):
            made = prompts * method.completions_per_prompt
            most = made * method.max_completion_tokens
            detail += f", {made:,} completions, {most:,} tokens at most"
            completions, tokens = completions + cells * made, tokens + cells * most
        updates += cells * method.updates
        rows.append(Row(f"method {name}", "note", detail))
    whole = (
        f"{cells * len(methods)} cells, in all {updates:,} updates, {completions:,} completions, "
        f"{tokens:,} tokens at most"
    )
    return [*rows, Row("grid", "note", whole)]


def _check_room(
    experiment: Experiment,
    methods: Mapping[str, SFT | RL],
    base_model: BaseModel,
    folders: Folders,
    data_preparation: DataPreparation,
    model: ModelSettings,
) -> Row:
    """Is there room for the whole grid, nothing of it prepared or trained yet?"""
    cells = list(methods.values()) * len(experiment.tasks) * len(experiment.seeds)
    place = Path(folders.checkpoints)
    unread = [task for task in experiment.tasks if not (Path(folders.examples) / task).exists()]
    try:
        largest = max(read_weights(Path(path)) for path in base_model.path or ())
        needed = needed_disk_bytes(largest, cells, model)
        needed += source_bytes(data_preparation.sources, unread)
        check_disk(place, needed)
    except ConfigurationError as error:
        return Row("disk", "FAILED", error.message)
    return Row("disk", "ok", f"{place}: room for {needed / 1024**3:.1f} GiB, the whole grid")


def _read_task(
    task: str, settings: DataPreparation, folder: Path
) -> tuple[list[Row], Mapping[str, Dataset] | None]:
    """A task's prepared examples by split; None where there are none made with these settings."""
    name, remedy = f"{task} examples", "Make them: kedro run --pipelines=data_preparation"
    if not folder.exists():
        return [Row(name, "note", f"not prepared yet, some are drawn. {remedy}")], None
    try:
        manifest = read_manifest(folder, f"{remedy} (it replaces them).")
    except ConfigurationError as error:
        return [Row(name, "FAILED", error.message)], None
    counts = [part["examples"] for part in manifest["splits"].values()]
    made = (manifest["seed"], manifest["prompt"], sum(counts) + manifest["rejected"])
    asked = sum(getattr(settings.splits, split) for split in manifest["splits"])
    if made != (settings.seed, settings.prompt, asked):
        return [Row(name, "note", f"prepared with other settings, some are drawn. {remedy}")], None
    splits = {split: read_examples(part["path"]) for split, part in manifest["splits"].items()}
    return [Row(name, "ok", f"{folder}: whole")], splits
