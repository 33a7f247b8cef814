"""What the driver does: the same hooks and datasets as Kedro's own runner, in another order."""

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner
from pandas import DataFrame

from othink_pipeline.cells import evaluate as tests_of_cells
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.manifests import FailedCell, FailedTest
from othink_pipeline.cluster import runner
from othink_pipeline.cluster.pool import Ended, TaskLostError, kind_of
from othink_pipeline.cluster.worker import NodeFailedError
from othink_pipeline.config_loader import GridConfigLoader
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.pipelines.wiring import BoundNode, bind
from othink_pipeline.tracking import lifecycle, runs

Tested = tests_of_cells.Tested  # by its name pytest would take it for a test
plugin = import_module("kedro_mlflow.framework.hooks.mlflow_hook")  # the package hides it
LOST = TaskLostError("its process died, 4 times in all; WorkerCrashedError: gone")
EXAMPLES = SimpleNamespace(task="geometry")


def prepare(_: int) -> SimpleNamespace:
    return EXAMPLES


def train(_: int, __: Any, *, cell: Cell) -> tuple[str, DataFrame]:
    return f"checkpoint of {cell.name}", DataFrame({"step": [1], "metric": "m", "value": 1.0})


def evaluate(checkpoint: Any, _: Any, *, tested: tests_of_cells.Tested) -> Any:
    return checkpoint if isinstance(checkpoint, FailedCell) else f"{tested.name} of {checkpoint}"


def collect(*tests: Any) -> list[Any]:
    return list(tests)


def grid() -> Pipeline:
    """Two cells, a base model, their tests, a report."""
    nodes = [Node(prepare, "params:data", "examples", name="prepare")]
    tests = {"base": Tested("none", "base", None, 0)}
    for seed in (0, 1):
        cell = Cell("counting", "sft", seed)
        tests[cell.name] = Tested(*cell, base_model=0)
        outputs = [f"{cell.name}.checkpoint", f"{cell.name}.history"]
        inputs = ["params:sft", "examples"]
        name = f"train_{seed}"
        nodes.append(BoundNode(bind(train, cell=cell), inputs, outputs, name=name, tags=["sft"]))
    for name, tested in tests.items():
        inputs = [f"{name}.checkpoint", "examples"]
        function = bind(evaluate, tested=tested)
        nodes.append(
            BoundNode(function, inputs, f"{name}.score", name=f"test_{name}", tags=["evaluation"])
        )
    nodes.append(Node(collect, [f"{name}.score" for name in tests], "report", name="report"))
    return Pipeline(nodes)


class InlinePool:
    """Two tasks at once, of which the later ends first; some do not end well."""

    def __init__(self, ends: dict[str, Any] | None = None) -> None:
        self.ends, self.log = ends or {}, list[str]()
        self._flying: list[tuple[Node, dict[str, Any]]] = []

    @property
    def at_work(self) -> int:
        return len(self._flying)

    def has_room(self, node: Node) -> bool:
        assert kind_of(node) is not None
        return len(self._flying) < 2

    def submit(self, node: Node, inputs: dict[str, Any]) -> None:
        self._flying.append((node, inputs))
        self.log.append(node.name)

    def wait(self) -> Ended | None:
        node, inputs = self._flying.pop()
        return Ended(node, inputs, self.ends.get(node.name) or node.run(inputs))

    def cancel(self) -> None:
        self.log.append(f"cancelled: {', '.join(node.name for node, _ in self._flying)}")

    def close(self) -> None:
        self.log.append("closed")


class Recorder:
    """Every hook that a runner calls, with its node and dataset."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    @hook_impl
    def before_dataset_loaded(self, dataset_name: str, node: Node) -> None:
        self.calls.append(("load", dataset_name, node.name))

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any, node: Node) -> None:
        self.calls.append(("loaded", dataset_name, node.name, str(data)))

    @hook_impl
    def before_node_run(self, node: Node, inputs: dict[str, Any]) -> None:
        self.calls.append(("run", node.name, *inputs))

    @hook_impl
    def after_node_run(self, node: Node, inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
        self.calls.append(("ran", node.name, *inputs, *outputs))

    @hook_impl
    def on_node_error(self, node: Node, error: Exception) -> None:
        self.calls.append(("failed", node.name, str(error)))

    @hook_impl
    def before_dataset_saved(self, dataset_name: str, node: Node) -> None:
        self.calls.append(("save", dataset_name, node.name))

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        self.calls.append(("saved", dataset_name, node.name, str(data)))


class Parameterised:
    """In the place of kedro-mlflow: whose parameters it is asked to record."""

    def __init__(self) -> None:
        self.nodes: list[str] = []

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        self.nodes.append(node.name)


Ran = tuple[list[Any], list[tuple[str, ...]], InlinePool]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run the grid; the report, the hooks, and what the pool was told."""

    def run_grid(ends: dict[str, Any] | None = None, on_ray: bool = True) -> Ran:
        pool, recorder = InlinePool(ends), Recorder()
        monkeypatch.setattr(runner, "prepare", lambda _: None)
        monkeypatch.setattr(runner, "describe_surroundings", lambda _: None)
        monkeypatch.setattr(runner, "RayPool", lambda *_: pool)
        hooks = _create_hook_manager()
        hooks.register(recorder)
        hooks.register(plugin.mlflow_hook)
        catalog = DataCatalog({"params:data": MemoryDataset(1), "params:sft": MemoryDataset(2)})
        catalog["base.checkpoint"] = "base model"
        kind = runner.RayRunner if on_ray else SequentialRunner
        try:
            outputs = kind().run(grid(), catalog, hooks)
        finally:
            run_grid.seen = recorder.calls, pool  # type: ignore[attr-defined]
        return outputs["report"].load(), recorder.calls, pool

    monkeypatch.setattr(plugin, "mlflow_hook", Parameterised())
    return run_grid


def test_hooks_and_results_are_those_of_kedros_own_runner(run: Callable[..., Ran]) -> None:
    plain, calls, _ = run(on_ray=False)
    report, on_ray, pool = run()
    assert (
        report
        == plain
        == [
            f"{name} of {checkpoint}"
            for name, checkpoint in [
                ("base.b0", "base model"),
                ("counting.sft.s0", "checkpoint of counting.sft.s0"),
                ("counting.sft.s1", "checkpoint of counting.sft.s1"),
            ]
        ]
    )
    assert Counter(on_ray) == Counter(calls)
    # The later of two ends first, and the test of a cell goes before the next training.
    base, first, second = (f"test_{name}" for name in ("base", *CELLS))
    assert pool.log == [base, "train_0", first, "train_1", second, "closed"]


CELLS = ("counting.sft.s0", "counting.sft.s1")


def test_parameters_are_recorded_once(run: Callable[..., Ran]) -> None:
    run()
    recorded = plugin.mlflow_hook.nodes
    # What runs in the driver is left to Kedro; of the trainings the first has all there are.
    assert [name for name in recorded if name.startswith(("train", "test"))] == ["train_0"]


def test_a_cell_whose_process_is_lost_is_a_hole_and_its_run_is_ended(
    run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Any] = []
    monkeypatch.setattr(runs, "parent_run_id", lambda: "parent")
    monkeypatch.setattr(lifecycle, "end_children", lambda *about: ended.append(about))
    (base, first, second), calls, pool = run({"train_0": LOST})
    assert first == FailedCell(task="counting", method="sft", seed=0, failed=LOST.message)
    assert (base, second) == (
        "base.b0 of base model",
        "counting.sft.s1 of checkpoint of counting.sft.s1",
    )
    (history,) = [call[3] for call in calls if call[:2] == ("saved", f"{CELLS[0]}.history")]
    assert "Empty DataFrame\nColumns: [step, metric, value]" in history
    assert ended == [("parent", "KILLED")]
    assert pool.log[-1] == "closed"


def test_a_test_whose_process_is_lost_is_a_hole(run: Callable[..., Ran]) -> None:
    (_, first, _), _, _ = run({f"test_{CELLS[0]}": LOST})
    about = Tested("counting", "sft", 0, 0)._asdict()
    assert first == FailedTest(**about, eval_task="geometry", failed=LOST.message)


def test_without_the_base_models_score_there_is_no_report(run: Callable[..., Ran]) -> None:
    with pytest.raises(TaskLostError):
        run({"test_base": LOST})


def test_what_a_node_raises_ends_the_run_and_the_others(run: Callable[..., Ran]) -> None:
    error = NodeFailedError("the examples were made anew")
    with pytest.raises(NodeFailedError, match="made anew"):
        run({"train_0": error})
    calls, pool = run.seen  # type: ignore[attr-defined]
    assert [call for call in calls if call[0] == "failed"] == [("failed", "train_0", str(error))]
    assert pool.log[-2:] == ["cancelled: test_base", "closed"]


@pytest.mark.parametrize(
    ("env", "found", "shared", "needed"),
    [
        ("smoke", None, ["data/smoke/06_models"], []),
        ("paper", None, ["data/paper/06_models", "hub"], []),
        ("paper", ("hub/model", "commit"), ["data/paper/06_models"], ["hub/model"]),
    ],
)
def test_machines_share_the_checkpoints_and_the_cache_that_a_model_comes_to(
    monkeypatch: pytest.MonkeyPatch,
    env: str,
    found: tuple[str, str] | None,
    shared: list[str],
    needed: list[str],
) -> None:
    looked_at: list[Any] = []
    monkeypatch.chdir(Path(__file__).parents[2])  # where conf is
    monkeypatch.setattr(runner, "connect", lambda *about: looked_at.extend(about[2:]))
    monkeypatch.setattr(runner, "find_model", lambda **_: found)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "hub")
    monkeypatch.setattr(GridConfigLoader, "current", None)
    GridConfigLoader("conf", env=env, base_env="base", default_run_env="local")
    runner.prepare(Pipeline([]))
    assert looked_at == [[Path(folder) for folder in folders] for folders in (shared, needed)]


def test_loading_and_saving_in_threads_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--async"):
        runner.RayRunner(is_async=True)


def test_nodes_that_compute_run_elsewhere_and_only_those() -> None:
    from othink_pipeline.cells.grid import Grid
    from othink_pipeline.pipelines.base_model import pipeline as base_model
    from othink_pipeline.pipelines.cross_task import pipeline as cross_task
    from othink_pipeline.pipelines.data_preparation import pipeline as data_preparation
    from othink_pipeline.pipelines.training import pipeline as training

    made = Grid(("counting", "geometry"), {"sft": "sft", "grpo": "rl"}, (0,))
    whole = sum(
        (training.create_pipeline(made, algorithm) for algorithm in ("sft", "rl")),
        sum(
            (each.create_pipeline(made) for each in (data_preparation, cross_task)),
            base_model.create_check(made),
        ),
    )
    kinds = {node.name.rpartition(".")[2]: kind_of(node) for node in whole.nodes}
    here = {name for name, kind in kinds.items() if kind is None}
    assert {name: kind for name, kind in kinds.items() if kind} == {
        "check_base_model": "train",
        "train_sft": "train",
        "train_rl": "train",
        "evaluate_on_counting": "evaluate",
        "evaluate_on_geometry": "evaluate",
    }
    assert {"prepare_examples", "collect_tests", "write_report"} <= here
