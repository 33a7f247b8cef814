"""What a run says that it will do is what stands on the disk."""

import logging
import math
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from safetensors.numpy import save, save_file

from othink_pipeline.cells.grid import Cell, Grid
from othink_pipeline.cells.keys import (
    BEGUN_BY,
    RESUME,
    Settings,
    cell_folder,
    place_aside,
    training_key,
)
from othink_pipeline.cells.methods import resolve_method
from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import MANIFEST, digest_folder
from othink_pipeline.data.manifests import Examples
from othink_pipeline.data.preparation import CELL_SPLITS, examples_key
from othink_pipeline.models import base_models
from othink_pipeline.models.base_models import find_base_model
from othink_pipeline.models.manifests import FoundModel
from othink_pipeline.pipelines.training import pipeline as training
from othink_pipeline.preflight.plan import Planned, check_room, describe_plan, plan_cells, plan_grid
from tests.conftest import PROMPT, TASKS, shipped_parameters
from tests.preflight.test_memory import method
from tests.support.fake_hub import FakeHub
from tests.support.manifests import examples_of, made_model, training_of

GRID = Grid(TASKS, {"sft": "sft", "grpo": "rl"}, (0, 1), base_model_count=2)
UPDATES = 8
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The shipped parameters for a grid of eight cells, in a project of its own."""
    monkeypatch.chdir(tmp_path)
    merged = shipped_parameters()
    merged["experiment"] = {"tasks": list(TASKS), "methods": ["sft", "grpo"], "seeds": 2}
    merged["folders"] = {"examples": "examples", "checkpoints": "models", "predictions": "out"}
    merged["rebuild"]["path"] = "rebuilt"
    merged["base_model"]["path"] = ["base0", "base1"]
    merged["data_preparation"]["prompt"] = PROMPT
    merged["training"] |= {"updates": UPDATES, "checkpoint_every_updates": 4}
    return merged


def base_model(number: int) -> FoundModel:
    return FoundModel(path=f"base{number}", digest=f"digest of base {number}")


def examples_for(raw: dict[str, Any], task: str) -> Examples:
    preparation = Parameters.read(raw).data_preparation
    return examples_of(task, key=examples_key(preparation, task, CELL_SPLITS))


def make_examples(raw: dict[str, Any]) -> None:
    for task in TASKS:
        Path("examples", task).mkdir(parents=True)
        examples_for(raw, task).write(Path("examples", task, MANIFEST))


def nodes() -> list[Node]:
    return [
        node
        for algorithm in ("sft", "rl")
        for node in training.create_pipeline(GRID, algorithm).nodes
    ]


def plan(
    raw: dict[str, Any], catalog: DataCatalog, pipeline: Pipeline | None = None
) -> list[Planned]:
    """What becomes of the cells of a pipeline: the grid's trainings unless another is given."""
    return plan_cells(pipeline or Pipeline(nodes()), Parameters.read(raw), catalog)


@pytest.fixture
def catalog(raw: dict[str, Any]) -> DataCatalog:
    """What the pipelines before have made."""
    make_examples(raw)
    made = {f"base.b{number}.checkpoint": base_model(number) for number in range(2)}
    return DataCatalog({name: MemoryDataset(value) for name, value in made.items()})


def folder_of(raw: dict[str, Any], cell: Cell) -> Path:
    parameters = Parameters.read(raw)
    key = training_key(
        cell,
        resolve_method(raw, cell.method, cell.task),
        base_model(GRID.base_model_of(cell.seed)).digest,
        [examples_for(raw, task) for task in TASKS],
        Settings.of(parameters),
    )
    return cell_folder(parameters.folders, cell, key)


def finish(raw: dict[str, Any], cell: Cell, seconds: float = 80.0, **changes: Any) -> Path:
    """A finished training by hand, under the key of what the parameters say."""
    folder = folder_of(raw, cell)
    checkpoint = folder / f"update-{UPDATES:06d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    training = training_of(
        cell,
        **{
            "checkpoint": checkpoint.name,
            "digest": digest_folder(checkpoint),
            "parameters": resolve_method(raw, cell.method, cell.task),
            "base_model": base_model(GRID.base_model_of(cell.seed)).digest,
            "updates": UPDATES,
            "seconds": seconds,
            **changes,
        },
    )
    training.write(folder / MANIFEST)
    return folder


def interrupt(raw: dict[str, Any], cell: Cell, *updates: int) -> None:
    for update in updates:
        (folder_of(raw, cell) / RESUME / f"checkpoint-{update}").mkdir(parents=True)


def states(planned: list[Planned]) -> dict[str, str]:
    return {item.cell.name: item.state for item in planned}


def test_nothing_is_there_yet(raw: dict[str, Any], catalog: DataCatalog) -> None:
    planned = plan(raw, catalog)
    assert {item.cell for item in planned} == set(GRID.cells)
    assert {(item.state, item.updates, item.done) for item in planned} == {("train", UPDATES, 0)}
    assert all(math.isnan(item.seconds) for item in planned)
    text = describe_plan(planned)
    assert text.startswith("8 cells: 8 to train, 0 to resume, 0 finished and reused; how long")
    assert "about" not in text
    assert all(f" {cell.name} " in text for cell in GRID.cells)


def test_each_cell_is_told_as_it_stands(raw: dict[str, Any], catalog: DataCatalog) -> None:
    done, begun = Cell("counting", "grpo", 0), Cell("geometry", "sft", 1)
    finish(raw, done)
    interrupt(raw, begun, 2, 6)
    planned = {item.cell: item for item in plan(raw, catalog)}
    assert (planned[done].state, planned[done].done, planned[done].seconds) == ("reuse", 8, 0.0)
    assert (planned[begun].state, planned[begun].done) == ("resume", 6)
    others = {item.state for cell, item in planned.items() if cell not in (done, begun)}
    assert others == {"train"}
    text = describe_plan(list(planned.values()))
    assert text.startswith("8 cells: 6 to train, 1 to resume, 1 finished and reused; ")
    assert done.name not in text
    (line,) = [line for line in text.splitlines() if begun.name in line]
    assert line.split() == ["resume", begun.name, "2", "of", "8", "updates"]


def test_a_plan_without_work_is_one_line(raw: dict[str, Any], catalog: DataCatalog) -> None:
    for cell in GRID.cells:
        finish(raw, cell)
    planned = plan(raw, catalog)
    text = "8 cells: 0 to train, 0 to resume, 8 finished and reused"
    assert describe_plan(planned) == text


def test_only_what_a_pipeline_trains_is_planned(raw: dict[str, Any], catalog: DataCatalog) -> None:
    other = Node(lambda manifest: manifest, "counting.examples", "x", name="other")
    pipeline = Pipeline([*training.create_pipeline(GRID, "rl").nodes, other])
    planned = plan(raw, catalog, pipeline)
    assert {item.cell for item in planned} == {cell for cell in GRID.cells if cell.method == "grpo"}
    assert plan(raw, catalog, Pipeline([other])) == []


def test_fresh_trains_everything(raw: dict[str, Any], catalog: DataCatalog) -> None:
    done, begun = Cell("counting", "grpo", 0), Cell("geometry", "sft", 1)
    finish(raw, done)
    interrupt(raw, begun, 6)
    raw["compute"]["fresh"] = True
    planned = plan(raw, catalog)
    assert {(item.state, item.done) for item in planned} == {("train", 0)}


@pytest.mark.parametrize("change", ["learning rate", "damaged"])
def test_what_will_not_be_reused_is_not_said_to_be(
    raw: dict[str, Any], catalog: DataCatalog, change: str
) -> None:
    done = Cell("counting", "grpo", 0)
    folder = finish(raw, done)
    if change == "learning rate":
        raw["rl"]["learning_rate"] /= 2
    else:
        shutil.rmtree(folder / f"update-{UPDATES:06d}")
    assert states(plan(raw, catalog))[done.name] == "train"


def test_what_was_set_aside_is_taken_back_unless_another_was_asked_for(
    raw: dict[str, Any], catalog: DataCatalog
) -> None:
    cell = Cell("counting", "grpo", 0)
    folder = finish(raw, cell)
    folder.rename(place_aside(folder))
    interrupt(raw, cell, 2)
    assert states(plan(raw, catalog))[cell.name] == "reuse"
    weights = next(place_aside(folder).rglob("model.safetensors"))
    sound = weights.read_bytes()
    weights.write_bytes(sound + b"x")
    assert states(plan(raw, catalog))[cell.name] == "resume", "as training will find it"
    weights.write_bytes(sound)
    (folder / BEGUN_BY).touch()
    assert states(plan(raw, catalog))[cell.name] == "resume"


# --- Inputs that the same run makes


def whole_pipeline() -> Pipeline:
    """With the nodes that make what training starts from, which have run before or not."""
    makers = [
        Node(lambda parameters: parameters, "params:experiment", f"{task}.examples", name=task)
        for task in TASKS
    ]
    makers += [
        Node(
            lambda parameters: parameters,
            "params:base_model",
            f"base.b{number}.checkpoint",
            name=f"b{number}",
        )
        for number in range(2)
    ]
    return Pipeline([*nodes(), *makers])


def make_inputs(raw: dict[str, Any]) -> None:
    for number in range(2):
        Path(f"base{number}").mkdir()
        made_model(base_model(number).digest).write(Path(f"base{number}", MANIFEST))
    make_examples(raw)


def test_what_the_run_makes_first_is_known_where_it_was_made_before(raw: dict[str, Any]) -> None:
    cell = Cell("counting", "grpo", 1)
    finish(raw, cell)
    make_inputs(raw)
    planned = states(plan(raw, DataCatalog({}), whole_pipeline()))
    assert planned.pop(cell.name) == "reuse"
    assert set(planned.values()) == {"train"}


def test_a_model_of_the_hub_is_known_once_it_is_downloaded(
    raw: dict[str, Any], catalog: DataCatalog, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is hashed once, however many cells start from it."""
    weights = {"weight": np.ones(1000, dtype=np.float32)}
    hub.add("own/mini", {"config.json": b"{}", "model.safetensors": save(weights)})
    raw["base_model"] = {"path": None, "hub": {"id": "own/mini", "revision": "main"}}
    grid = Grid(TASKS, {"sft": "sft"}, (0, 1))
    made = Node(lambda: {}, None, "base.b0.checkpoint", name="check_base_model")
    pipeline = Pipeline([made, *training.create_pipeline(grid, "sft").nodes])
    assert {item.state for item in plan(raw, catalog, pipeline)} == {"train"}
    check_room(plan(raw, catalog, pipeline), Parameters.read(raw))
    assert hub.requests == []
    digest = find_base_model(Parameters.read(raw).base_model, 0, "").digest
    hub.requests.clear()
    monkeypatch.setitem(globals(), "base_model", lambda _: FoundModel(path="model", digest=digest))
    finish(raw, Cell("counting", "sft", 1))
    looked: list[int] = []
    digest_model = base_models.digest_model
    monkeypatch.setattr(
        base_models,
        "digest_model",
        lambda *model, **kind: looked.append(1) or digest_model(*model, **kind),
    )
    states = {item.cell.name: item.state for item in plan(raw, catalog, pipeline)}
    assert [name for name, state in states.items() if state == "reuse"] == ["counting.sft.s1"]
    assert (len(states), len(looked)) == (4, 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(9, 9, 0))
    with pytest.raises(ConfigurationError, match=r"0 B free"):
        check_room(plan(raw, catalog, pipeline), Parameters.read(raw))
    assert hub.requests == []


def test_the_grid_is_planned_as_the_pipeline_that_makes_all_of_it(raw: dict[str, Any]) -> None:
    finish(raw, Cell("counting", "grpo", 1))
    interrupt(raw, Cell("geometry", "sft", 0), 6)
    whole = {item.cell: item for item in plan(raw, DataCatalog({}), whole_pipeline())}
    assert {item.cell: str(item) for item in plan_grid(Parameters.read(raw))} == {
        cell: str(item) for cell, item in whole.items()
    }
    make_inputs(raw)
    done = {
        item.cell.name: (item.state, item.done)
        for item in plan_grid(Parameters.read(raw))
        if item.done
    }
    assert done == {"counting.grpo.s1": ("reuse", 8), "geometry.sft.s0": ("resume", 6)}


@pytest.mark.parametrize("missing", ["examples", "base model", "other settings", "damaged"])
def test_cells_are_trained_where_their_inputs_have_to_be_made(
    raw: dict[str, Any], missing: str
) -> None:
    cell = Cell("counting", "grpo", 1)
    finish(raw, cell)
    make_inputs(raw)
    match missing:
        case "examples":
            shutil.rmtree("examples/geometry")  # of the other task
        case "base model":
            shutil.rmtree("base1")
        case "other settings":
            raw["data_preparation"]["splits"]["test"] += 1
        case "damaged":
            Path("base1", MANIFEST).write_text('{"path": "base1"}')
    planned = plan(raw, DataCatalog({}), whole_pipeline())
    assert states(planned)[cell.name] == "train"


def test_an_input_that_nobody_made_is_no_error_of_the_plan(raw: dict[str, Any]) -> None:
    planned = plan(raw, DataCatalog({}))
    assert set(states(planned).values()) == {"train"}


# --- Estimates


def test_time_is_estimated_from_trainings_of_the_same_kind(
    raw: dict[str, Any], catalog: DataCatalog
) -> None:
    before = {**raw, "training": {**raw["training"], "prompts_per_update": 3}}
    for seconds, cell in [
        (8.0, Cell("counting", "grpo", 0)),
        (16.0, Cell("geometry", "grpo", 0)),
        (800.0, Cell("counting", "grpo", 2)),  # the mean would be far off
        (4000.0, Cell("counting", "grpo", 1)),  # from another base model
        (80.0, Cell("counting", "sft", 0)),
    ]:
        finish(before, cell, seconds)
    interrupt(raw, Cell("geometry", "grpo", 0), 6)
    seconds = {item.cell.name: item.seconds for item in plan(raw, catalog)}
    unknown = {"counting.sft.s1", "geometry.sft.s1"}
    assert {name for name, value in seconds.items() if math.isnan(value)} == unknown
    known = {name: value for name, value in seconds.items() if name not in unknown}
    assert known == pytest.approx(
        {
            "counting.grpo.s0": 8 * 2.0,
            "geometry.grpo.s0": (8 - 6) * 2.0,
            "counting.grpo.s1": 8 * 500.0,
            "geometry.grpo.s1": 8 * 500.0,
            "counting.sft.s0": 8 * 10.0,
            "geometry.sft.s0": 8 * 10.0,
        }
    )


def test_a_file_that_is_no_manifest_is_no_earlier_training(
    raw: dict[str, Any], catalog: DataCatalog
) -> None:
    for number, content in enumerate(["{", "[]", "{}", '{"updates": 3}', '{"updates": 0}']):
        folder = Path("models/counting/grpo/s0", f"{number:016x}")
        folder.mkdir(parents=True)
        (folder / MANIFEST).write_text(content)
    planned = plan(raw, catalog)
    assert all(math.isnan(item.seconds) for item in planned)


def planned_cells(count: int, *seconds: float) -> list[Planned]:
    each = [*seconds, *[math.nan] * (count - len(seconds))]
    return [
        Planned(Cell("counting", "grpo", seed), method("grpo", updates=10), "train", 0, value)
        for seed, value in enumerate(each)
    ]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([20.0, 40.0], "training takes about 60 s"),
        ([20.0, 100.0, math.nan, math.nan], "training takes about 4 min"),  # all as the mean
        ([3600.0 * 2, 3600.0], "training takes about 3.0 h"),
        ([math.nan], "how long it takes is not known yet"),
    ],
)
def test_the_whole_time_is_told(seconds: list[float], said: str) -> None:
    assert describe_plan(planned_cells(len(seconds), *seconds)).splitlines()[0].endswith(said)


def test_what_is_reused_takes_no_time() -> None:
    reused = Planned(Cell("geometry", "sft", 0), method("sft", updates=10), "reuse", 10, 0.0)
    assert "about 30 s" in describe_plan([reused, *planned_cells(2, 20.0, 10.0)])


def test_many_cells_are_summed_up() -> None:
    lines = describe_plan(planned_cells(15, 60.0)).splitlines()
    assert len(lines) == 1 + 12 + 1
    assert "counting.grpo.s0" in lines[1]
    assert "about 60 s" in lines[1]
    assert "about" not in lines[2]
    assert lines[-1].strip() == "... and 3 more"
    assert "more" not in describe_plan(planned_cells(12))


# --- Room


def test_a_disk_that_is_too_small_is_refused_only_for_what_is_still_trained(
    raw: dict[str, Any], catalog: DataCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = 1000
    for number in range(2):
        Path(f"base{number}").mkdir()
        weights = np.zeros(parameters, dtype=np.float32)
        save_file({"weight": weights}, f"base{number}/model.safetensors")
    weights_bytes = 4 * parameters
    # Two checkpoints a cell, three states of the one in training, and what is always needed.
    always = 2 * 1024**3
    need = {cells: always + cells * 2 * weights_bytes + 36 * parameters for cells in (7, 8)}
    free = [need[8] - 1]
    asked: list[Path] = []

    def usage(path: Any) -> Usage:
        asked.append(Path(path))
        return Usage(0, 0, free[0])

    monkeypatch.setattr(shutil, "disk_usage", usage)
    planned = plan(raw, catalog)
    with pytest.raises(ConfigurationError, match=r"models: 2\.1 GB free"):
        check_room(planned, Parameters.read(raw))
    free[0] = need[8]
    check_room(planned, Parameters.read(raw))

    finish(raw, GRID.cells[0])
    interrupt(raw, GRID.cells[1], 4)  # still trained
    planned = plan(raw, catalog)
    free[0] = need[7]
    check_room(planned, Parameters.read(raw))
    free[0] = need[7] - 1
    with pytest.raises(ConfigurationError):
        check_room(planned, Parameters.read(raw))
    for cell in GRID.cells[1:]:
        finish(raw, cell)
    free[0] = 0
    asked.clear()
    check_room(plan(raw, catalog), Parameters.read(raw))
    assert not asked


def test_a_missing_model_is_not_told_by_the_check_of_the_disk(
    raw: dict[str, Any], catalog: DataCatalog, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_room(plan(raw, catalog), Parameters.read(raw))
    assert not caplog.records
