"""How long the trainings of a run still take, from what those before them took."""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Iterable

from othink_pipeline.cells.grid import Cell
from othink_pipeline.preflight.plan import Planned


class TimeLeft:
    """Seconds that are left, as far as they can be told; asked at each of some thousand nodes."""

    def __init__(self, planned: Iterable[Planned]) -> None:
        self._left: dict[str, dict[Cell, Planned]] = defaultdict(dict)  # by algorithm
        for item in planned:
            if item.state != "reuse":
                self._left[item.method.algorithm][item.cell] = item
        self._updates = {
            algorithm: sum(item.left for item in items.values())
            for algorithm, items in self._left.items()
        }
        self._an_update: dict[str, list[float]] = defaultdict(list)
        """Seconds by algorithm, the shortest first."""

    def finish(self, cell: Cell, seconds: float | None) -> None:
        """A cell is trained; what it took tells of others of its algorithm. None: it failed."""
        for algorithm, items in self._left.items():
            item = items.pop(cell, None)
            if item is not None and item.left:
                self._updates[algorithm] -= item.left
                if seconds is None:
                    continue
                insort(self._an_update[algorithm], seconds / item.left)

    @property
    def seconds(self) -> float:
        """Of all cells that are not finished; NaN where there is one that nothing is known of."""
        total = 0.0
        for algorithm, items in self._left.items():
            if self._an_update[algorithm]:
                total += self._updates[algorithm] * self._median(algorithm)
            else:
                total += sum(item.seconds for item in items.values())
        return total

    def seconds_of(self, cell: Cell) -> float:
        """Of one of them; 0 where there is nothing to train, NaN where nothing is known."""
        for algorithm, items in self._left.items():
            if cell in items:
                known = self._an_update[algorithm]
                item = items[cell]
                return item.left * self._median(algorithm) if known else item.seconds
        return 0.0

    def _median(self, algorithm: str) -> float:
        took = self._an_update[algorithm]
        return (took[(len(took) - 1) // 2] + took[len(took) // 2]) / 2
