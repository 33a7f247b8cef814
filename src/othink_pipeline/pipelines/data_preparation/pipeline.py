"""Data preparation: parameters -> the validated, split examples of every task."""

from kedro.pipeline import Pipeline

from othink_pipeline.cells.grid import Grid
from othink_pipeline.pipelines.data_preparation.nodes import prepare_examples
from othink_pipeline.pipelines.wiring import BoundNode, bind


def create_pipeline(grid: Grid) -> Pipeline:
    """One node a task."""
    return Pipeline(
        [
            BoundNode(
                bind(prepare_examples, task=task),
                inputs=["params:data_preparation", "params:folders"],
                outputs=f"{task}.examples",
                name="prepare_examples",
                namespace=f"data.{task}",
            )
            for task in grid.tasks
        ]
    )
