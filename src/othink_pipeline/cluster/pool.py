"""Nodes as Ray's tasks: they are given, waited for, given again when their process dies."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from othink_pipeline.cells.parameters import ROUNDING, Cluster, Demand
from othink_pipeline.cells.processes import MachineLostError
from othink_pipeline.cluster import worker
from othink_pipeline.cluster.connection import find_faults
from othink_pipeline.cluster.surroundings import Surroundings

if TYPE_CHECKING:
    from kedro.pipeline.node import Node

logger = logging.getLogger(__name__)

GRACE_S = 20.0
"""How long tasks have to end by themselves: longer than their last records take."""
LOOK_S = 10.0
"""How often is looked for machines that have come."""
KINDS = {"sft": "train", "rl": "train", "base_model": "train", "evaluation": "evaluate"}
"""Tag of a node -> the key of ``cluster`` that says what it needs. Others run in the driver."""


class TaskLostError(click.ClickException):
    """The process of a task died, as often as ``cluster.retries`` allows and once more."""


class Ended(NamedTuple):
    """A task that came to an end."""

    node: Node
    inputs: dict[str, Any]
    result: dict[str, Any] | worker.NodeFailedError | TaskLostError
    """What the node made, by dataset; or what it raised; or that it never came to an end."""


class _Task(NamedTuple):
    node: Node
    inputs: dict[str, Any]
    demand: Demand
    """Of each machine."""
    machines: int
    deaths: int
    group: Any = None
    """Ray's, of the machines; None for one."""

    @property
    def resources(self) -> dict[str, float]:
        """Amounts by name, of all machines together."""
        return {name: n * self.machines for name, n in self.demand.resources.items()}


def kind_of(node: Node) -> str | None:
    """What a task of this node needs, as a key of ``cluster``; None: it runs in the driver."""
    return next((KINDS[tag] for tag in sorted(node.tags) if tag in KINDS), None)


class RayPool:
    """The tasks of one run, on the Ray that this process is connected to."""

    def __init__(self, cluster: Cluster, surroundings: Surroundings) -> None:
        import ray

        self._ray, self._cluster = ray, cluster
        # What is only said when a task is given does not count: Ray would use a process with a
        # GPU again, which keeps its memory there, and that GPU whichever it is given next.
        gpus = max(cluster.train.gpus, cluster.evaluate.gpus)
        self._remote = ray.remote(num_gpus=gpus)(worker.run_node)
        self._surroundings = ray.put(pickle.dumps(surroundings))
        self._flying: dict[Any, _Task] = {}
        self._used: Counter[str] = Counter()
        self._said: set[str] = set()
        self._there: Mapping[str, float] = ray.cluster_resources()

    @property
    def at_work(self) -> int:
        """Number of tasks that have been given and have not ended."""
        return len(self._flying)

    def has_room(self, node: Node) -> bool:
        """Whether a task of this node can begin at once, as far as the sums of all machines tell.

        What is given later costs no memory until then, and what is more urgent can pass it by.
        """
        if not self._flying:
            return True
        if self._cluster.workers:
            return len(self._flying) < self._cluster.workers
        left = {name: amount - self._used[name] for name, amount in self._there.items()}
        wanted = self._task(node, {}).resources
        return all(left.get(name, 0) >= amount - ROUNDING for name, amount in wanted.items())

    def submit(self, node: Node, inputs: dict[str, Any]) -> None:
        """Give a node as a task."""
        self._give(self._task(node, inputs))

    def wait(self) -> Ended | None:
        """The first task to end; one whose process died is given again.

        Returns:
            None where none ended for a while, or died: there may be more room than there was.
        """
        exceptions = self._ray.exceptions
        done, _ = self._ray.wait(list(self._flying), timeout=LOOK_S)
        self._there = self._ray.cluster_resources()
        if not done:
            self._say_what_is_not_there()
            return None
        task = self._flying.pop(done[0])
        self._used.subtract(task.resources)
        if task.group is not None:  # what still runs in it ends with it
            self._ray.util.remove_placement_group(task.group)
        try:
            return Ended(task.node, task.inputs, self._ray.get(done[0]))
        except exceptions.RayTaskError as error:
            if not isinstance(error.cause, MachineLostError):
                return Ended(task.node, task.inputs, _raised(error))
            said = f"MachineLostError: {error.cause}"
        except exceptions.RayError as error:
            said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        deaths = task.deaths + 1
        if deaths > self._cluster.retries:
            lost = TaskLostError(f"its process died, {deaths} times in all; {said}")
            return Ended(task.node, task.inputs, lost)
        name, retries = task.node.name, self._cluster.retries
        logger.warning("%s: %s; given again (%d of %d)", name, said, deaths, retries)
        self._give(task._replace(deaths=deaths))
        return None

    def _say_what_is_not_there(self) -> None:
        """Once: what was lost on the way and is waited for."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for fault in find_faults(self._cluster, machines):
            if fault not in self._said:
                self._said.add(fault)
                logger.warning("%s It is waited for.", fault)

    def cancel(self) -> None:
        """Interrupt all tasks as Ctrl-C would; after a while, end what is left of them."""
        for task in self._flying:
            self._ray.cancel(task)
        if self._flying:
            tasks = list(self._flying)
            _, left = self._ray.wait(tasks, num_returns=len(tasks), timeout=GRACE_S)
            for task in left:  # it waits for a lock, or for a server
                self._ray.cancel(task, force=True)

    def close(self) -> None:
        """Disconnect; a Ray of this process's own ends with that."""
        self._ray.shutdown()

    def _task(self, node: Node, inputs: dict[str, Any]) -> _Task:
        demand: Demand = getattr(self._cluster, str(kind_of(node)))
        machines = self._cluster.train.machines if {"sft", "rl"} & node.tags else 1
        return _Task(node, inputs, demand, machines, 0)

    def _give(self, task: _Task) -> None:
        demand, machines = task.demand, task.machines
        options: dict[str, Any] = {}
        if machines > 1:
            util = self._ray.util
            group = util.placement_group([demand.resources] * machines, strategy="STRICT_SPREAD")
            place = util.scheduling_strategies.PlacementGroupSchedulingStrategy
            options["scheduling_strategy"] = place(group, 0)
            task = task._replace(group=group)
        remote = self._remote.options(
            name=task.node.name,
            num_cpus=demand.cpus,
            num_gpus=demand.gpus,
            resources=demand.custom or None,
            max_retries=0,  # Ray would not count deaths for want of memory: ``wait`` counts all
            **options,
        )
        pickled = pickle.dumps((task.node, task.inputs))
        self._used.update(task.resources)
        given = remote.remote(pickled, self._surroundings, demand.cpus, machines)
        self._flying[given] = task


def _raised(error: Any) -> worker.NodeFailedError:
    """What a task raised."""
    if isinstance(error.cause, worker.NodeFailedError):
        return error.cause
    return worker.NodeFailedError(str(error))
