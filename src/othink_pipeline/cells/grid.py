"""The grid of cells: tasks x methods x seeds, and the base models that they start from."""

from __future__ import annotations

from typing import NamedTuple


class Cell(NamedTuple):
    """One point of the grid: train on ``task`` by ``method`` with ``seed``, test everywhere."""

    task: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """``task.method.sN``: the namespace of its nodes and the stem of its datasets."""
        return f"{self.task}.{self.method}.s{self.seed}"


def base_model_of(seed: int, count: int) -> int:
    """Which of ``count`` base models the cells with a seed start from: they take turns."""
    return seed % count


class Grid(NamedTuple):
    """Tasks x methods x seeds; ``algorithms`` maps each method to ``sft`` or ``rl``."""

    tasks: tuple[str, ...]
    algorithms: dict[str, str]
    seeds: tuple[int, ...]
    base_model_count: int = 1
    trains: bool = True
    """False where the environment tests the checkpoints of another one."""
    drawn: bool = True
    """All tasks are drawn by the project: a base model can be made for them."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        """Every cell, task by task, method by method."""
        return tuple(
            Cell(task, method, seed)
            for task in self.tasks
            for method in self.algorithms
            for seed in self.seeds
        )

    def base_model_of(self, seed: int) -> int:
        """The number of the base model that cells with this seed start from."""
        return base_model_of(seed, self.base_model_count)

    @property
    def base_models(self) -> tuple[int, ...]:
        """The numbers of the base models that cells start from."""
        return tuple(sorted({self.base_model_of(seed) for seed in self.seeds}))
