"""SFT, RL: base model x train split -> checkpoint, for every cell whose method is of that kind."""

from kedro.pipeline import Pipeline

from othink_pipeline.cells.grid import Grid
from othink_pipeline.pipelines.training.nodes import train
from othink_pipeline.pipelines.wiring import BoundNode, bind


def create_pipeline(grid: Grid, algorithm: str) -> Pipeline:
    """A node for each cell whose method runs ``algorithm``: all of them alike but for names."""
    return Pipeline(
        [
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
    )
