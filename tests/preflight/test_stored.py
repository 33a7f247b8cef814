"""A part of a run does not start from what was made with other parameters."""

from __future__ import annotations

from typing import Any

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline

from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.keys import Settings, numerics
from othink_pipeline.cells.methods import resolve_method
from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.data.preparation import CELL_SPLITS, examples_key
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.preflight.stored import check_stored
from othink_pipeline.scoring.kinds import Text
from tests.conftest import shipped_parameters
from tests.support.manifests import checkpoint_of, examples_of

CELL = Cell("counting", "grpo", 0)
NAMES = ("base.b0.checkpoint", "counting.examples", "counting.grpo.s0.checkpoint")


@pytest.fixture
def raw() -> dict[str, Any]:
    merged = shipped_parameters()
    merged["folders"] = {"examples": "examples", "checkpoints": "models", "predictions": "out"}
    merged["rebuild"]["path"] = "rebuilt"
    return merged


def stored(raw: dict[str, Any]) -> dict[str, Any]:
    """What a run with these parameters has left."""
    parameters = Parameters.read(raw)
    path = str((parameters.base_model.path or ())[0])
    key = examples_key(parameters.data_preparation, "counting", CELL_SPLITS)
    method = resolve_method(raw, "grpo", "counting")
    left = (
        BaseModelCheckpoint(path=path, digest="b", run_id="r", model_id="m"),
        examples_of("counting", key=key),
        checkpoint_of(
            CELL,
            parameters=method,
            numerics=numerics(method, Settings.of(parameters)),
            base_model="b",
            data="counting train",
        ),
    )
    return dict(zip(NAMES, left, strict=True))


def check(raw: dict[str, Any], left: dict[str, Any], *names: str) -> str:
    """What is said of a pipeline that starts from these manifests."""
    catalog = DataCatalog({name: MemoryDataset(value) for name, value in left.items()})
    pipeline = Pipeline([Node(max, [*(names or NAMES)], "out")])
    try:
        check_stored(pipeline, Parameters.read(raw), catalog, " --env=x")
    except ConfigurationError as error:
        return error.message
    return ""


def test_what_was_made_with_the_same_parameters_is_started_from(raw: dict[str, Any]) -> None:
    left = stored(raw)
    raw["compute"].update(resume_every_updates=1)  # this changes nothing
    assert check(raw, left) == ""
    left[NAMES[2]] = left[NAMES[2]].model_copy(update={"numerics": {}})  # of an earlier version
    assert check(raw, left) == ""


@pytest.mark.parametrize(
    ("edit", "name", "said", "command"),
    [
        (
            lambda raw: raw["data_preparation"].update(seed=1),
            "counting.examples",
            "prepared with other settings",
            "--pipelines=data_preparation",
        ),
        (
            lambda raw: raw["base_model"].update(path="data/other"),
            "base.b0.checkpoint",
            "and base_model is data/other",
            "--pipelines=data_preparation",
        ),
        (
            lambda raw: raw["rl"].update(temperature=0.5),
            "counting.grpo.s0.checkpoint",
            "trained with another temperature",
            "--namespaces=counting.grpo",
        ),
        (
            lambda raw: (raw["model"].update(dtype="bfloat16"), raw["compute"].update(bf16=True)),
            "counting.grpo.s0.checkpoint",
            "trained with another model.dtype, compute.bf16",
            "--namespaces=counting.grpo",
        ),
    ],
)
def test_what_was_made_with_others_stops_the_run(
    raw: dict[str, Any], edit: Any, name: str, said: str, command: str
) -> None:
    left = stored(raw)
    edit(raw)
    message = check(raw, left)
    assert f"{name}: " in message and said in message
    assert f"kedro run {command} --env=x" in message
    others = [other for other in NAMES if other != name]
    assert check(raw, left, *others) == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answers": Text(kind="text")}, "trained with another kind of answer"),
        ({"data": "other"}, "trained on other examples"),
        ({"base_model": "other"}, "trained from another base model"),
    ],
)
def test_a_checkpoint_of_other_data_or_another_model_is_not_tested(
    raw: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    left = stored(raw)
    left[NAMES[2]] = left[NAMES[2]].model_copy(update=changes)
    assert said in check(raw, left)
