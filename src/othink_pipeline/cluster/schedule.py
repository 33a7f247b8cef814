"""Which node of a pipeline comes next, in steps that do not grow with the pipeline.

Kedro's own runners look through the whole pipeline after every node: at 3,000 nodes that is most
of what they do.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from graphlib import TopologicalSorter
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node


class Schedule:
    """The nodes that are ready, by lanes: those of a former lane come first."""

    def __init__(self, pipeline: Pipeline, lane_of: Callable[[Node], int], lanes: int) -> None:
        """Begin with the nodes that wait for none.

        Args:
            lane_of: the lane of a node, 0 to ``lanes - 1``.
        """
        parents = pipeline.node_dependencies
        self._order = TopologicalSorter({node: parents[node] for node in pipeline.nodes})
        self._order.prepare()
        self._uses = Counter(chain.from_iterable(node.inputs for node in pipeline.nodes))
        self._kept = pipeline.inputs() | pipeline.outputs()
        self._lane_of = lane_of
        self._lanes: Sequence[deque[Node]] = [deque() for _ in range(lanes)]
        self._queue_ready()

    def pop(self, has_room: Callable[[Node], bool]) -> Node | None:
        """The next node of the first lane for whose next node there is room."""
        for lane in self._lanes:
            if lane and has_room(lane[0]):
                return lane.popleft()
        return None

    def finish(self, node: Node) -> list[str]:
        """Take note that a node is done; the names of the datasets that nobody reads any more."""
        self._order.done(node)
        self._queue_ready()
        self._uses.subtract(node.inputs)
        names = dict.fromkeys((*node.inputs, *node.outputs))
        return [name for name in names if self._uses[name] < 1 and name not in self._kept]

    def _queue_ready(self) -> None:
        for node in self._order.get_ready():
            self._lanes[self._lane_of(node)].append(node)
