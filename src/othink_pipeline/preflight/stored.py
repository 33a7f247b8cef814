"""Manifests that a partial run starts from: are they those that today's parameters speak of?

A whole run makes them anew where they are not; a part of it takes what is there.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from othink_pipeline.cells.grid import base_model_of
from othink_pipeline.cells.keys import Settings, numerics
from othink_pipeline.cells.manifests import Checkpoint
from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.hub import find_model
from othink_pipeline.data.manifests import Examples
from othink_pipeline.data.preparation import CELL_SPLITS, examples_key
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.training.parameters import RL, SFT

KINDS = (".examples", ".checkpoint")
"""How the names end of the manifests that are looked at."""

PREPARE = "--pipelines=data_preparation"


class _Fault(NamedTuple):
    what: str
    options: str
    """Of the command that mends it."""


def check_stored(
    pipeline: Pipeline, parameters: Parameters, catalog: DataCatalog, options: str = ""
) -> None:
    """Check each manifest that a pipeline reads and does not make.

    Args:
        pipeline: what is about to run, filters applied.
        options: what the remedy's command must repeat, e.g. ``--env=paper``.

    Raises:
        ConfigurationError: with each that is of other data, models or parameters, and the command
            that makes it anew.
    """

    @cache
    def load(name: str) -> Any:
        return catalog.load(name) if name in catalog and catalog.exists(name) else None

    methods, settings, faults = parameters.resolve(), Settings.of(parameters), []
    for name in sorted(name for name in pipeline.inputs() if name.endswith(KINDS)):
        manifest = load(name)
        fault = None
        if isinstance(manifest, Examples):
            fault = _check_examples(manifest, parameters)
        elif isinstance(manifest, BaseModelCheckpoint):
            number = int(name.split(".")[1].removeprefix("b"))
            fault = _check_base_model(manifest, number, parameters)
        elif isinstance(manifest, Checkpoint):
            number = base_model_of(manifest.seed, parameters.base_model.count)
            base, examples = load(f"base.b{number}.checkpoint"), load(f"{manifest.task}.examples")
            wanted = methods.get((manifest.task, manifest.method))
            fault = _check_checkpoint(manifest, wanted, settings, base, examples)
        if fault:
            faults.append(f"  {name}: {fault.what}\n    kedro run {fault.options}{options}")
    if faults:
        raise ConfigurationError(
            "The run would start from what was made with other parameters. Make it anew first, "
            "with the --params of this run, or leave out --namespaces and the like:\n"
            + "\n".join(faults)
        )


def _check_examples(examples: Examples, parameters: Parameters) -> _Fault | None:
    key = examples_key(parameters.data_preparation, examples.task, CELL_SPLITS)
    if examples.key == key:
        return None
    return _Fault("prepared with other settings, data or code", PREPARE)


def _check_base_model(
    model: BaseModelCheckpoint, number: int, parameters: Parameters
) -> _Fault | None:
    """By its place alone: its files are looked at where it is used."""
    wanted = parameters.base_model
    if wanted.hub is not None:
        found = find_model(**wanted.hub.model_dump())
        path, named = found and found[0], f"{wanted.hub.id}, revision {wanted.hub.revision}"
    else:
        path = named = (wanted.path or ())[number]
    if model.path == path:
        return None
    return _Fault(f"it is {model.path}, and base_model is {named}", PREPARE)


def _check_checkpoint(
    checkpoint: Checkpoint, wanted: SFT | RL | None, settings: Settings, base: Any, examples: Any
) -> _Fault | None:
    ours = wanted.model_dump() if wanted else {}
    theirs = checkpoint.parameters.model_dump()
    keys = sorted(key for key, value in ours.items() if theirs.get(key) != value)
    for block, now in (numerics(wanted, settings) if wanted else {}).items():
        then = checkpoint.numerics.get(block, {})
        keys += [f"{block}.{key}" for key in then if now.get(key) != then[key]]
    what = f"trained with another {', '.join(keys)}" if keys else ""
    if isinstance(base, BaseModelCheckpoint) and base.digest != checkpoint.base_model:
        what = "trained from another base model"
    if isinstance(examples, Examples) and examples.splits["train"].digest != checkpoint.data:
        what = "trained on other examples"
    if isinstance(examples, Examples) and examples.answers != checkpoint.answers:
        what = "trained with another kind of answer (data_preparation.answers)"
    options = f"--namespaces={checkpoint.task}.{checkpoint.method}"
    return _Fault(what, options) if what else None
