"""What a run is about to train: which cells are finished, half done or still to do, and the cost.

Nothing heavy is imported: keys come from files and parameters alone.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from othink_pipeline.cells.accelerate_config import check_launcher
from othink_pipeline.cells.grid import Cell, base_model_of
from othink_pipeline.cells.keys import (
    Settings,
    cell_folder,
    find_finished,
    find_set_aside,
    resume_state,
    training_key,
)
from othink_pipeline.cells.manifests import Training
from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import MANIFEST
from othink_pipeline.core.safetensors import read_weights
from othink_pipeline.core.units import describe_seconds
from othink_pipeline.data.manifests import Examples
from othink_pipeline.data.preparation import CELL_SPLITS, examples_key
from othink_pipeline.models.base_models import base_model_folders, locate_base_model
from othink_pipeline.models.manifests import FoundModel
from othink_pipeline.models.parameters import Compute
from othink_pipeline.preflight.disk import check_disk, needed_disk_bytes
from othink_pipeline.training.parameters import RL, SFT

State = Literal["train", "resume", "reuse"]
LISTED = 12
"""More cells than this are counted, not listed."""


class Planned(NamedTuple):
    """What a run will do with one cell."""

    cell: Cell
    method: SFT | RL
    state: State
    done: int
    """Updates that need not be repeated."""
    seconds: float
    """Estimate of what is left, from finished trainings of the same kind; NaN without any."""

    @property
    def updates(self) -> int:
        """Of the whole training."""
        return self.method.updates

    @property
    def left(self) -> int:
        """Updates that are still to be made."""
        return self.updates - self.done


def plan_cells(pipeline: Pipeline, parameters: Parameters, catalog: DataCatalog) -> list[Planned]:
    """What will happen to each cell that a pipeline trains, in the order of its nodes.

    Args:
        catalog: where the base models are that the pipeline does not make itself.

    Raises:
        ConfigurationError: a launcher that cannot work.
    """
    check_launcher(parameters.compute, parameters.health, parameters.resolve().values())
    nodes = cast(Any, [node for node in pipeline.nodes if node.tags & {"sft", "rl"}])
    cells = [node.identity["cell"] for node in nodes]  # see `pipelines.wiring.bind`
    bases = (name for name in pipeline.inputs() if re.fullmatch(r"base\.b\d+\.checkpoint", name))
    known = {name: catalog.load(name) for name in bases if catalog.exists(name)}
    return plan_grid(parameters, cells, known)


def plan_grid(
    parameters: Parameters,
    cells: Sequence[Cell] | None = None,
    known: Mapping[str, FoundModel] = MappingProxyType({}),
) -> list[Planned]:
    """What will happen to cells, all of the grid unless some are named.

    Base models and examples are those that are there.

    Args:
        known: by dataset, base models that are not looked at again: a large one takes seconds.
    """
    methods, count = parameters.resolve(), parameters.base_model.count
    if cells is None:
        cells = [Cell(*key, seed) for key in methods for seed in parameters.experiment.seeds]
    numbers = [base_model_of(cell.seed, count) for cell in cells]
    bases = {
        number: known.get(f"base.b{number}.checkpoint")
        or locate_base_model(parameters.base_model, number)
        for number in set(numbers)
    }
    examples = [_read_examples(task, parameters) for task in parameters.experiment.tasks]
    costs = measured_costs(Path(parameters.folders.checkpoints))
    return [
        _plan_cell(cell, methods[cell[:2]], parameters, bases[number], examples, costs)
        for cell, number in zip(cells, numbers, strict=True)
    ]


def _plan_cell(
    cell: Cell,
    method: SFT | RL,
    parameters: Parameters,
    base: FoundModel | None,
    examples: Sequence[Examples | None],
    costs: Mapping[tuple[str, str], float],
) -> Planned:
    """What will happen to a cell; a manifest that is not known yet is None."""
    state: State = "train"
    done = 0
    known = [each for each in examples if each]
    if base and len(known) == len(examples) and not parameters.compute.fresh:
        settings = Settings.of(parameters)
        key = training_key(cell, method, base.digest, known, settings)
        folder = cell_folder(parameters.folders, cell, key)
        looked_at = folder, parameters.health
        if find_finished(*looked_at, whole=False) or find_set_aside(*looked_at):
            state, done = "reuse", method.updates
        elif checkpoint := resume_state(folder):
            state, done = "resume", checkpoint
    each = costs.get((method.algorithm, base.digest if base else ""), math.nan)
    return Planned(cell, method, state, done, each * (method.updates - done))


def describe_plan(planned: Sequence[Planned]) -> str:
    """The plan for the log: a summary, then the cells that will be trained."""
    states = Counter(item.state for item in planned)
    left = [item for item in planned if item.state != "reuse"]
    text = (
        f"{len(planned)} cells: {states['train']} to train, {states['resume']} to resume, "
        f"{states['reuse']} finished and reused"
    )
    if not left:
        return text
    known = [item.seconds for item in left if not math.isnan(item.seconds)]
    if known:
        # Cells of an unknown kind are taken to cost as much as the others on average.
        text += f"; training takes about {describe_seconds(sum(known) / len(known) * len(left))}"
    else:
        text += "; how long it takes is not known yet"
    lines = [
        f"  {item.state:<7} {item.cell.name:<32} {item.left} of {item.updates} "
        f"updates{'' if math.isnan(item.seconds) else f', about {describe_seconds(item.seconds)}'}"
        for item in left[:LISTED]
    ]
    if len(left) > LISTED:
        lines.append(f"  ... and {len(left) - LISTED} more")
    return "\n".join([text, *lines])


def without_fresh(compute: Compute) -> str:
    """How a command is to be changed that is to go on from what there is: mostly not at all."""
    return " without compute.fresh" if compute.fresh else ""


def check_room(planned: Sequence[Planned], parameters: Parameters, at_once: int = 1) -> None:
    """Check that the disk has room for what the cells that are not finished will write.

    Args:
        at_once: so many are trained side by side.

    Raises:
        ConfigurationError: with the folder, what is free and what is needed.
    """
    left = [item.method for item in planned if item.state != "reuse"]
    if not left:
        return
    try:
        needed = needed_bytes(parameters, left, at_once)
    except ConfigurationError:
        return  # told, with a better remedy, when the model itself is looked at
    if needed is not None:
        check_disk(Path(parameters.folders.checkpoints), needed)


def needed_bytes(parameters: Parameters, cells: Sequence[SFT | RL], at_once: int = 1) -> int | None:
    """What trainings of these cells write at most; None while the model is not downloaded.

    Raises:
        ConfigurationError: a base model whose size cannot be told.
    """
    models = [read_weights(folder) for folder in base_model_folders(parameters.base_model)]
    if not models:
        return None
    return needed_disk_bytes(max(models), cells, parameters.model, at_once)


def _read_examples(task: str, parameters: Parameters) -> Examples | None:
    """The manifest of a task's examples, if they are those that the parameters speak of."""
    try:
        examples = Examples.read(Path(parameters.folders.examples) / task / MANIFEST, "")
    except ConfigurationError:
        return None  # they are made anew
    key = examples_key(parameters.data_preparation, task, CELL_SPLITS)
    return examples if examples.key == key else None


def measured_costs(checkpoints: Path) -> dict[tuple[str, str], float]:
    """Seconds an update took in the finished trainings, the median by algorithm and base model."""
    seconds: dict[tuple[str, str], list[float]] = {}
    for file in checkpoints.glob(f"*/*/s*/*/{MANIFEST}"):
        try:
            training = Training.read(file, "")
        except ConfigurationError:
            continue  # no finished training's: who looks for it there will be told
        kind = (training.parameters.algorithm, training.base_model)
        seconds.setdefault(kind, []).append(training.seconds / training.updates)
    return {kind: median(values) for kind, values in seconds.items()}
