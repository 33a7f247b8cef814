"""Nodes that several pipelines have: what is alike for all cells but for names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from kedro.pipeline import Node

from othink_pipeline.cells.grid import Cell, Grid


def bind(function: Callable[..., Any], **identity: Any) -> Callable[..., Any]:
    """``function`` with keyword-only arguments fixed, still typed, named and picklable."""
    bound: Callable[..., Any] = update_wrapper(partial(function, **identity), function)
    return bound


def training_nodes(grid: Grid, algorithm: str, train: Callable[..., Any]) -> list[Node]:
    """A node for each cell whose method runs ``algorithm``: all of them alike but for names."""
    return [
        Node(
            bind(train, cell=cell),
            inputs=[
                f"base.b{grid.base_model_of(cell.seed)}.checkpoint",
                "params:training",
                f"params:{algorithm}",
                f"params:methods.{cell.method}",
                "params:evaluation",
                "params:folders",
                "params:model",
                "params:compute",
                "params:health",
                *(f"{task}.examples" for task in grid.tasks),
            ],
            outputs=[f"{cell.name}.checkpoint", f"{cell.name}.history"],
            name=train.__name__,
            namespace=cell.name,
            tags=[algorithm],
        )
        for cell in grid.cells
        if grid.algorithms[cell.method] == algorithm
    ]


def evaluation_node(grid: Grid, evaluate: Callable[..., Any], cell: Cell, eval_task: str) -> Node:
    """A node that tests a cell on ``eval_task``."""
    return Node(
        bind(evaluate, **cell._asdict(), base_model=grid.base_model_of(cell.seed)),
        inputs=[
            f"{cell.name}.checkpoint",
            f"{eval_task}.examples",
            "params:evaluation",
            "params:folders",
            "params:model",
            "params:compute",
        ],
        outputs=f"{cell.name}.{eval_task}.predictions",
        name=f"evaluate_on_{eval_task}",
        namespace=cell.name,
        tags=["evaluation"],
    )
