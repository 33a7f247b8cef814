"""Tasks that are given, die and are given again, on a Ray that only keeps count."""

import pickle
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from kedro.pipeline import Node

from othink_pipeline.cells.parameters import Cluster
from othink_pipeline.cells.processes import MachineLostError
from othink_pipeline.cluster.pool import RayPool, TaskLostError
from othink_pipeline.cluster.worker import NodeFailedError
from tests.conftest import shipped


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        self.cause = cause


class FakeRay:
    """Two cores; what becomes of each task in turn is told beforehand."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self) -> None:
        self.given: list[dict[str, Any]] = []
        self.outcomes: list[Any] = []
        self.cores = 2.0
        self.cancelled: list[tuple[int, bool]] = []
        self.groups: list[Any] = []
        self.removed: list[int] = []

    def remote(self, **_: Any) -> Any:
        return lambda _: self

    def options(self, **options: Any) -> Any:
        def give(*arguments: Any) -> int:
            self.given.append({**options, "arguments": arguments})
            return len(self.given) - 1

        return SimpleNamespace(remote=give)

    def put(self, value: Any) -> Any:
        return value

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 1.0}}] * int(self.cores)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": self.cores}

    def wait(self, tasks: list[int], num_returns: int = 1, timeout: float = 0) -> Any:
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task: int) -> Any:
        outcome = self.outcomes[task]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def cancel(self, task: int, force: bool = False) -> None:
        self.cancelled.append((task, force))

    @property
    def util(self) -> Any:
        """Machines that a task has to itself: a group is its bundles, a place a group and index."""

        def together(bundles: list[dict[str, float]], strategy: str) -> Any:
            self.groups.append((strategy, bundles))
            return len(self.groups) - 1

        strategies = SimpleNamespace(PlacementGroupSchedulingStrategy=lambda *place: place)
        return SimpleNamespace(
            placement_group=together,
            remove_placement_group=self.removed.append,
            scheduling_strategies=strategies,
        )


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)  # type: ignore[arg-type]
    return fake


def node(name: str, tag: str = "sft") -> Node:
    return Node(len, "x", "y", name=name, tags=[tag])


def pool(**changes: Any) -> RayPool:
    block = Cluster.model_validate(shipped("cluster", **changes))
    return RayPool(block, {"project": "here"})  # type: ignore[arg-type]


def test_a_task_carries_its_node_its_name_and_what_its_kind_needs(ray: FakeRay) -> None:
    needs = {"cpus": 4, "gpus": 0.5, "custom": {"fast": 1.0}}
    tasks = pool(evaluate=needs)
    tasks.submit(node("test", "evaluation"), {"x": [1, 2]})
    ray.outcomes = [{"y": 2}]
    (given,) = ray.given
    task, surroundings, threads, machines = given.pop("arguments")
    assert pickle.loads(task) == (node("test", "evaluation"), {"x": [1, 2]})
    assert (pickle.loads(surroundings), threads, machines) == ({"project": "here"}, 4, 1)
    resources = {"num_cpus": 4, "num_gpus": 0.5, "resources": {"fast": 1.0}}
    assert given == {"name": "test", "max_retries": 0, **resources}
    ended = tasks.wait()
    assert ended is not None
    assert (ended.node.name, ended.inputs, ended.result) == ("test", {"x": [1, 2]}, {"y": 2})
    assert tasks.at_work == 0


@pytest.mark.parametrize(("gpus", "tasks"), [(1, 1), (0.25, 1), (0, 0)])
def test_a_process_that_had_a_gpu_gets_no_second_task(
    gpus: float, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's own rule, of the Ray that is installed; 0 tasks: as many as there are."""
    import ray

    monkeypatch.setattr(ray, "put", lambda _: None)
    monkeypatch.setattr(ray, "cluster_resources", dict)
    made = pool(evaluate={"cpus": 1, "gpus": gpus, "custom": {}})._remote
    assert made._max_calls == tasks


def test_a_task_that_died_is_given_again_so_often_and_no_oftener(ray: FakeRay) -> None:
    tasks = pool(retries=2)
    tasks.submit(node("dies"), {"x": "input"})
    ray.outcomes = [RayError("out of memory\nmore"), RayError("node gone"), RayError("again")]
    assert tasks.wait() is None and tasks.wait() is None
    assert [given["name"] for given in ray.given] == ["dies"] * 3
    ended = tasks.wait()
    assert ended is not None and isinstance(ended.result, TaskLostError)
    assert ended.result.message == "its process died, 3 times in all; RayError: again"
    assert tasks.at_work == 0


def test_deaths_are_counted_by_task(ray: FakeRay) -> None:
    tasks = pool(retries=1)
    for name in ("one", "other"):
        tasks.submit(node(name), {})
    ray.outcomes = [RayError("first"), RayError("second"), {"y": 1}, {"y": 2}]
    assert tasks.wait() is None and tasks.wait() is None
    results = [tasks.wait(), tasks.wait()]
    assert [each and each.result for each in results] == [{"y": 1}, {"y": 2}]


@pytest.mark.parametrize(
    ("cause", "message"),
    [(NodeFailedError("no such file"), "no such file"), (ImportError("no module"), "no module")],
)
def test_what_a_node_raised_is_told_and_not_tried_again(
    ray: FakeRay, cause: Exception, message: str
) -> None:
    tasks = pool()
    tasks.submit(node("raises"), {})
    ray.outcomes = [RayTaskError(cause)]
    ended = tasks.wait()
    assert ended is not None and isinstance(ended.result, NodeFailedError)
    assert message in ended.result.message
    assert len(ray.given) == 1


def test_a_cell_has_its_machines_to_itself_and_is_given_again_when_it_loses_one(
    ray: FakeRay,
) -> None:
    tasks = pool(train={"machines": 2, "cpus": 1, "gpus": 0, "custom": {}})
    assert tasks.has_room(node("cell"))
    tasks.submit(node("cell"), {})
    assert not tasks.has_room(node("other"))  # both cores are used
    ray.outcomes = [RayTaskError(MachineLostError("machine 2")), {"y": 1}, {"y": 2}]
    assert tasks.wait() is None
    assert (ray.groups, ray.removed) == ([("STRICT_SPREAD", [{"CPU": 1}] * 2)] * 2, [0])
    first, again = ray.given
    assert (first["scheduling_strategy"], again["scheduling_strategy"]) == ((0, 0), (1, 0))
    assert again["arguments"][2:] == (1, 2)
    ended = tasks.wait()
    assert ended is not None and ended.result == {"y": 1}
    assert ray.removed == [0, 1]
    tasks.submit(node("check", "base_model"), {})  # it looks at one machine
    assert "scheduling_strategy" not in ray.given[2]


@pytest.mark.parametrize(("workers", "most"), [(None, 2), (1, 1), (3, 3)])
def test_no_more_is_given_than_can_run_at_once(
    ray: FakeRay, workers: int | None, most: int
) -> None:
    tasks = pool(workers=workers)
    for number in range(most):
        assert tasks.has_room(node(f"cell_{number}"))
        tasks.submit(node(f"cell_{number}"), {})
    assert not tasks.has_room(node("one_more"))
    ray.outcomes = [{}] * most
    tasks.wait()
    assert tasks.has_room(node("one_more"))


def test_machines_that_come_give_more_room(ray: FakeRay) -> None:
    tasks = pool()
    for name in ("one", "two"):
        tasks.submit(node(name), {})
    ray.cores = 3.0
    nothing: Callable[..., Any] = lambda running, **_: ([], running)  # noqa: E731
    ray.wait = nothing  # type: ignore[method-assign]
    assert not tasks.has_room(node("three"))
    assert tasks.wait() is None
    assert tasks.has_room(node("three"))


def test_what_was_lost_and_is_waited_for_is_said_once(
    ray: FakeRay, caplog: pytest.LogCaptureFixture
) -> None:
    tasks = pool(train={"machines": 2, "cpus": 1, "gpus": 0, "custom": {}})
    tasks.submit(node("cell"), {})
    nothing: Callable[..., Any] = lambda running, **_: ([], running)  # noqa: E731
    ray.wait = nothing  # type: ignore[method-assign]
    assert tasks.wait() is None
    assert not caplog.messages
    ray.cores = 1.0
    assert tasks.wait() is None and tasks.wait() is None
    (said,) = caplog.messages
    assert "1 CPU on each of 2 machines. Machines that have it: 1." in said


def test_what_does_not_end_when_it_is_interrupted_is_ended(ray: FakeRay) -> None:
    tasks = pool()
    for name in ("ends", "hangs"):
        tasks.submit(node(name), {})
    still: Callable[..., Any] = lambda running, **_: (running[:1], running[1:])  # noqa: E731
    ray.wait = still  # type: ignore[method-assign]
    tasks.cancel()
    assert ray.cancelled == [(0, False), (1, False), (1, True)]
