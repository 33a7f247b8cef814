"""What a run needs and takes, checked and measured without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import mlflow

from othink_pipeline.cells.accelerate_config import check_launcher
from othink_pipeline.cells.methods import distinct_sizes
from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.core.blocks import SAME_ENV, ConfigurationError
from othink_pipeline.core.hub import measure_model
from othink_pipeline.core.safetensors import read_weights
from othink_pipeline.core.units import describe_bytes
from othink_pipeline.data.examples import read_examples
from othink_pipeline.data.manifests import Examples
from othink_pipeline.data.parameters import DataPreparation
from othink_pipeline.data.preparation import CELL_SPLITS, examples_key
from othink_pipeline.models.base_models import (
    find_base_model,
    locate_base_model,
)
from othink_pipeline.models.manifests import FoundModel
from othink_pipeline.models.parameters import BaseModel
from othink_pipeline.preflight.costs import hours_left
from othink_pipeline.preflight.disk import check_disk, source_bytes
from othink_pipeline.preflight.environment import check_folders, check_store
from othink_pipeline.preflight.plan import needed_bytes, plan_grid
from othink_pipeline.preflight.rows import Row, failed, refuse
from othink_pipeline.training.parameters import RL

if TYPE_CHECKING:
    from datasets import Dataset

    from othink_pipeline.preflight.lengths import Lengths


COLUMNS = 100
"""No line of the table is longer, but for a path that is."""
WIDEST_CHECK = 32
"""Names of checks that are longer move their own row only."""


class Fit(NamedTuple):
    """What came of the checks of examples and base models."""

    rows: list[Row]
    lengths: dict[str, Lengths]
    """Of each base model that can be trained, by its folder: what is longest in the examples."""
    unseen: Sequence[str] = ()
    """What could not be looked at: it is to be fetched first."""


def check_places(parameters: dict[str, Any]) -> list[Row]:
    """Check how trainings are launched and what a run writes to, and count what it does."""
    blocks = Parameters.read(parameters)
    rows = _count_work(blocks)
    try:
        check_launcher(blocks.compute, blocks.health, blocks.resolve().values())
    except ConfigurationError as error:
        rows += [Row("launcher", "FAILED", line) for line in error.message.splitlines()]
    try:
        check_store(mlflow.get_tracking_uri(), None, Path.cwd())
    except ConfigurationError as error:
        rows.append(Row("MLflow store", "FAILED", error.message))
    else:
        rows.append(Row("MLflow store", "ok", "can be written"))
    places = {f"folders.{key}": Path(folder) for key, folder in blocks.folders}
    rows += check_folders({**places, "project folder": Path.cwd()})
    rows.append(_check_room(blocks))
    return rows


def check_fit(parameters: dict[str, Any]) -> Fit:
    """Check examples and base models; see ``compatibility``."""
    from othink_pipeline.preflight import compatibility
    from othink_pipeline.preflight.device import find_device
    from othink_pipeline.preflight.lengths import TaskExamples

    blocks = Parameters.read(parameters)
    data_preparation = blocks.data_preparation
    rows = [Row("device", "note", str(find_device()))]
    tasks: dict[str, TaskExamples] = {}
    unseen: list[str] = []
    for task in blocks.experiment.tasks:
        found, splits = _read_task(task, data_preparation, Path(blocks.folders.examples) / task)
        if splits is None:
            try:
                splits = compatibility.draw_splits(task, data_preparation)
            except ConfigurationError as error:
                found.append(Row(f"{task} examples", "FAILED", error.message))
                splits = {}
        answers = data_preparation.answers_of(task)
        found += compatibility.check_examples(task, splits, answers)
        if splits and not failed(found):
            prompts = {split: data_preparation.prompt_of(task, split) for split in CELL_SPLITS}
            tasks[task] = TaskExamples(splits, prompts, answers)
        if not splits and not failed(found):
            unseen.append(f"the examples of {task}")
        rows += found
    rows += compatibility.check_overlap(tasks)
    methods = distinct_sizes(blocks.resolve())
    lengths: dict[str, Lengths] = {}
    for number in range(blocks.base_model.count):
        found, model = _find_model(blocks.base_model, number)
        if model is not None:
            found, longest = compatibility.check_model(
                *(model.path, tasks, methods, blocks.evaluation, blocks.model, blocks.compute),
                blocks.cluster.train,
            )
            if longest and not failed(found):
                lengths[model.path] = longest
        elif not failed(found):
            unseen.append("the model")
        rows += found
    return Fit(rows, lengths, unseen)


def measure_costs(parameters: dict[str, Any], fit: Fit) -> list[Row]:
    """Measure what trains and tests the largest base model; the hours of the grid that is left.

    Nothing is measured as long as a check fails: what was found is mended first. Nor where
    something could not be looked at: the hours would be too few.
    """
    if not fit.lengths or fit.unseen or failed(fit.rows):
        return []
    from othink_pipeline.preflight.device import guess_at_once
    from othink_pipeline.preflight.measure import measure_grid

    blocks = Parameters.read(parameters)
    path = max(fit.lengths, key=lambda folder: read_weights(Path(folder)))
    rows, speed = measure_grid(path, fit.lengths[path], distinct_sizes(blocks.resolve()), blocks)
    at_once = guess_at_once(blocks.cluster)
    return [*rows, hours_left(plan_grid(blocks), blocks, speed, at_once)]


def report_checks(places: list[Row], fit: Fit, costs: list[Row]) -> None:
    """Print what came of each check, what failed first, and in the last line what follows.

    Raises:
        ConfigurationError: with every check that failed and its remedy.
    """
    rows = sorted([*places, *fit.rows, *costs], key=lambda row: row.outcome != "FAILED")
    width = min(max(len(row.check) for row in rows), WIDEST_CHECK)
    for row in rows:
        click.echo(_layout(row, width))
    refuse(rows)
    verdict = "Ready: nothing stands in the way."
    if fit.unseen:
        verdict = (
            "Nothing stands in the way of what could be looked at; "
            f"{' and '.join(fit.unseen)} could not. kedro run --pipelines=data_preparation "
            f"{SAME_ENV} fetches and checks what is missing; then ask again."
        )
    if costs:
        verdict = f"Ready: {costs[-1].check}, {costs[-1].detail}."
    click.echo(fill(verdict, COLUMNS))


def _layout(row: Row, width: int) -> str:
    """Name, outcome and detail, the latter below itself where it takes several lines."""
    head = f"{row.check:<{width}}  {row.outcome:<6}  "
    below = " " * (width + 10)
    return fill(
        head + row.detail,
        COLUMNS,
        subsequent_indent=below,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _count_work(blocks: Parameters) -> list[Row]:
    """What each method's cells, and the whole grid, are given and make, without any model."""
    seeds, methods = len(blocks.experiment.seeds), blocks.resolve()
    rows, updates, completions, tokens = [], 0, 0, 0
    for (task, name), method in methods.items():
        prompts = method.prompts
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


def _check_room(blocks: Parameters) -> Row:
    """Is there room for what is left of the grid, its cells trained one after the other?"""
    experiment, folders = blocks.experiment, blocks.folders
    place = Path(folders.checkpoints)
    unread = [task for task in experiment.tasks if not (Path(folders.examples) / task).exists()]
    try:
        left = [item.method for item in plan_grid(blocks) if item.state != "reuse"]
        needed = needed_bytes(blocks, left)
        if needed is None:
            return Row("disk", "note", "not known before the model is downloaded")
        needed += source_bytes(blocks.data_preparation.sources, unread)
        check_disk(place, needed)
    except ConfigurationError as error:
        return Row("disk", "FAILED", error.message)
    detail = f"{place}: room for {describe_bytes(needed)}, what is left of the grid"
    return Row("disk", "ok", detail)


def _find_model(base_model: BaseModel, number: int) -> tuple[list[Row], FoundModel | None]:
    """What is to say of a base model, itself if it can be checked; no weights are fetched."""
    hub = base_model.hub
    name = hub.id if hub else (base_model.path or ())[number]
    try:
        if hub is None:
            remedy = "Set base_model.path to a model folder, or restore this one."
            return [], find_base_model(base_model, number, remedy)
        if found := locate_base_model(base_model, number):
            return [], found
        missing = measure_model(**hub.model_dump())
    except ConfigurationError as error:
        return [Row(f"model {name}", "FAILED", error.message)], None
    detail = f"on the hub, a run downloads {describe_bytes(missing)} and checks it"
    return [Row(f"model {name}", "note", detail)], None


def _read_task(
    task: str, settings: DataPreparation, folder: Path
) -> tuple[list[Row], Mapping[str, Dataset] | None]:
    """A task's prepared examples by split; None where there are none made with these settings."""
    name = f"{task} examples"
    remedy = f"Make them: kedro run --pipelines=data_preparation {SAME_ENV}"
    instead = _instead(task, settings)
    if not folder.exists():
        return [Row(name, "note", f"not prepared yet, {instead}. {remedy}")], None
    try:
        examples = Examples.read_folder(folder, f"{remedy} (it replaces them).")
        key = examples_key(settings, task, CELL_SPLITS)
    except ConfigurationError as error:
        return [Row(name, "FAILED", error.message)], None
    if examples.key != key:
        detail = f"prepared with other settings, data or code, {instead}. {remedy}"
        return [Row(name, "note", detail)], None
    splits = {split: read_examples(part.path) for split, part in examples.splits.items()}
    return [Row(name, "ok", f"{folder}: whole")], splits


def _instead(task: str, settings: DataPreparation) -> str:
    """What is checked of a task that is not prepared; see ``compatibility.draw_splits``."""
    source = settings.sources.get(task)
    if source is None:
        return "some are drawn"
    if "hub" in (source.train.source.kind, source.test.source.kind):
        return "nothing to check"
    return "some are read"
