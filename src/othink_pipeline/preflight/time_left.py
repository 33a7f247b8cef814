"""How long the trainings of a run still take, from what those before them took."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median

from othink_pipeline.cells.grid import Cell
from othink_pipeline.preflight.plan import Planned


class TimeLeft:
    """Seconds that are left, as far as they can be told."""

    def __init__(self, planned: Iterable[Planned]) -> None:
        self._left = {item.cell: item for item in planned if item.state != "reuse"}
        self._an_update: dict[str, list[float]] = {}

    def finish(self, cell: Cell, seconds: float) -> None:
        """A cell is trained, or has failed; what it took tells of others of its algorithm."""
        item = self._left.pop(cell, None)
        if item is not None and item.left:
            self._an_update.setdefault(item.method.algorithm, []).append(seconds / item.left)

    @property
    def seconds(self) -> float:
        """Of all cells that are not finished; NaN where there is one that nothing is known of."""
        return sum(
            item.left * median(self._an_update[item.method.algorithm])
            if item.method.algorithm in self._an_update
            else item.seconds
            for item in self._left.values()
        )
