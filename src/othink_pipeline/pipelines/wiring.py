"""Nodes that several pipelines have: what is alike for all cells but for names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any, cast

from kedro.pipeline import Node
from kedro.pipeline.preview_contract import TextPreview

from othink_pipeline.cells.evaluate import Tested, evaluate
from othink_pipeline.cells.grid import Cell, Grid


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
