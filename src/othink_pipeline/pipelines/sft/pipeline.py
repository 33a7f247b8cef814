"""SFT: base model x train split -> checkpoint, for every cell whose method is SFT."""

from kedro.pipeline import Pipeline

from othink_pipeline.cells.grid import Grid
from othink_pipeline.pipelines.wiring import training_nodes


def create_pipeline(grid: Grid) -> Pipeline:
    """One training node a cell."""
    return Pipeline(training_nodes(grid, "sft"))
