"""How long the trainings of a run still take, from what those before them took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import median

from othink_pipeline.cells.grid import Cell
from othink_pipeline.preflight.plan import Planned


class TimeLeft:
    """Seconds that are left, as far as they can be told."""

    def __init__(self, planned: Iterable[Planned]) -> None:
        self._left = {item.cell: item for item in planned if item.state != "reuse"}
        self._took: dict[str, list[float]] = defaultdict(list)
        """Seconds an update, by algorithm."""
        self._median: dict[str, float] = {}

    def finish(self, cell: Cell, seconds: float | None) -> None:
        """A cell is trained; what it took tells of others of its algorithm. None: it failed."""
        item = self._left.pop(cell, None)
        if item and item.left and seconds is not None:
            took = self._took[item.method.algorithm]
            took.append(seconds / item.left)
            self._median[item.method.algorithm] = median(took)

    @property
    def seconds(self) -> float:
        """Of all cells that are not finished; NaN where there is one that nothing is known of."""
        return sum(map(self._seconds, self._left.values()))

    def seconds_of(self, cell: Cell) -> float:
        """Of one of them; 0 where there is nothing to train, NaN where nothing is known."""
        return self._seconds(self._left[cell]) if cell in self._left else 0.0

    def _seconds(self, item: Planned) -> float:
        an_update = self._median.get(item.method.algorithm)
        return item.seconds if an_update is None else item.left * an_update
