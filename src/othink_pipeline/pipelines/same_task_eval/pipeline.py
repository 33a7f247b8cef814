"""Same-task evaluation: every checkpoint x its own task's test split -> scores."""

from kedro.pipeline import Pipeline

from othink_pipeline.cells.grid import Grid
from othink_pipeline.pipelines.same_task_eval.nodes import tabulate_same_task
from othink_pipeline.pipelines.wiring import BoundNode, bind, evaluation_node, tested_cell


def create_pipeline(grid: Grid) -> Pipeline:
    """One node a cell."""
    return Pipeline([evaluation_node(tested_cell(grid, cell), cell.task) for cell in grid.cells])


def create_table(grid: Grid) -> Pipeline:
    """The diagonal as a table; the whole matrix holds it too."""
    return Pipeline(
        [
            BoundNode(
                bind(tabulate_same_task, methods=tuple(grid.algorithms)),
                inputs=[f"{cell.name}.{cell.task}.predictions" for cell in grid.cells],
                outputs="same_task_scores",
                name="tabulate_same_task",
                namespace="report",
            )
        ]
    )
