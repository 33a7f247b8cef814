"""Nodes that several pipelines have: what is alike for all cells but for names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any, cast

import pandas as pd  # Kedro checks parameters only where all type hints resolve
from kedro.pipeline import Node
from kedro.pipeline.preview_contract import TextPreview

from othink_pipeline.cells.evaluate import Tested, evaluate
from othink_pipeline.cells.grid import Cell, Grid
from othink_pipeline.cells.keys import Settings
from othink_pipeline.cells.manifests import Checkpoint, FailedCell
from othink_pipeline.cells.methods import resolve_method
from othink_pipeline.cells.parameters import Evaluation, Folders
from othink_pipeline.cells.train import train_cell
from othink_pipeline.data.manifests import Examples
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.training.parameters import Health


def bind(function: Callable[..., Any], **identity: Any) -> Callable[..., Any]:
    """``function`` with keyword-only arguments fixed, still typed, named and picklable."""
    bound: Callable[..., Any] = update_wrapper(partial(function, **identity), function)
    return bound


class BoundNode(Node):
    """A node that runs what ``bind`` made, and shows the function itself: Kedro-Viz its code."""

    @property  # type: ignore[misc]  # Kedro lets it be set
    def func(self) -> Callable[..., Any]:
        """The function, without what is fixed: ``identity``."""
        return cast(Any, self._func).__wrapped__  # type: ignore[no-any-return]

    def _copy(self, **changes: Any) -> Node:
        """Kedro's copies, with tags or a namespace, are plain nodes."""
        copied = super()._copy(**changes)
        copied.__class__ = BoundNode
        return copied

    def preview(self) -> TextPreview:
        """What goes in and out by its whole name: Kedro-Viz's own list leaves out namespaces."""
        lines = [f"{name} →" for name in self.inputs if not name.startswith("params:")]
        return TextPreview("\n".join([*lines, *(f"→ {name}" for name in self.outputs)]))

    @property
    def identity(self) -> dict[str, Any]:
        """What is fixed: the cell, the task ..."""
        return dict(cast(Any, self._func).keywords)


def training_nodes(grid: Grid, algorithm: str) -> list[Node]:
    """A node for each cell whose method runs ``algorithm``: all of them alike but for names."""
    return [
        BoundNode(
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
            name=f"train_{algorithm}",
            namespace=cell.name,
            tags=[algorithm],
        )
        for cell in grid.cells
        if grid.algorithms[cell.method] == algorithm
    ]


def train(
    base_model: BaseModelCheckpoint,
    training: dict[str, Any],
    algorithm: dict[str, Any],
    method: dict[str, Any],
    evaluation: Evaluation,
    folders: Folders,
    model: ModelSettings,
    compute: Compute,
    health: Health,
    *examples: Examples,
    cell: Cell,
) -> tuple[Checkpoint | FailedCell, pd.DataFrame]:
    """Train a cell by its method; see ``train_cell``.

    Each block comes by itself: for Kedro it is an edge of the lineage.

    Args:
        algorithm: the block ``sft`` or ``rl``.
    """
    blocks = {
        "training": training,
        method["algorithm"]: algorithm,
        "methods": {cell.method: method},
    }
    parameters = resolve_method(blocks, cell.method, cell.task)
    settings = Settings(evaluation, folders, model, compute, health)
    return train_cell(cell, parameters, base_model, examples, settings)


def evaluation_node(tested: Tested, eval_task: str) -> Node:
    """A node that tests a cell, or a base model, on ``eval_task``."""
    return BoundNode(
        bind(evaluate, tested=tested),
        inputs=[
            f"{tested.name}.checkpoint",
            f"{eval_task}.examples",
            "params:evaluation",
            "params:folders",
            "params:model",
            "params:compute",
        ],
        outputs=f"{tested.name}.{eval_task}.predictions",
        name=f"evaluate_on_{eval_task}",
        namespace=tested.name,
        tags=["evaluation"],
    )


def tested_cell(grid: Grid, cell: Cell) -> Tested:
    """A cell as something to test."""
    return Tested(*cell, base_model=grid.base_model_of(cell.seed))
