"""Which node of a pipeline comes next, in steps that do not grow with the pipeline.

Kedro's own runners look through the whole pipeline after every node: at 3,000 nodes that is most
of what they do.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
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
        self._waits_for = {node: len(before) for node, before in parents.items()}
        self._feeds: dict[Node, list[Node]] = defaultdict(list)
        for node in pipeline.nodes:
            for before in parents[node]:
                self._feeds[before].append(node)
        self._uses = Counter(chain.from_iterable(node.inputs for node in pipeline.nodes))
        self._kept = pipeline.inputs() | pipeline.outputs()
        self._lane_of = lane_of
        self._lanes: Sequence[deque[Node]] = [deque() for _ in range(lanes)]
        for node in pipeline.nodes:
            if not self._waits_for[node]:
                self._lanes[lane_of(node)].append(node)

    def pop(self, has_room: Callable[[Node], bool]) -> Node | None:
        """The next node of the first lane for whose next node there is room."""
        for lane in self._lanes:
            if lane and has_room(lane[0]):
                return lane.popleft()
        return None

    def finish(self, node: Node) -> list[str]:
        """Take note that a node is done; the names of the datasets that nobody reads any more."""
        for child in self._feeds[node]:
            self._waits_for[child] -= 1
            if not self._waits_for[child]:
                self._lanes[self._lane_of(child)].append(child)
        self._uses.subtract(node.inputs)
        names = dict.fromkeys((*node.inputs, *node.outputs))
        return [name for name in names if self._uses[name] < 1 and name not in self._kept]
