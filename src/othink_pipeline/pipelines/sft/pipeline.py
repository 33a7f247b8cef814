"""SFT: base model x train split -> checkpoint, for every cell whose method is SFT."""

from kedro.pipeline import Pipeline

from othink_pipeline.cells.grid import Grid, training_nodes
from othink_pipeline.pipelines.sft.nodes import train_sft


def create_pipeline(grid: Grid) -> Pipeline:
    """One training node a cell."""
    return Pipeline(training_nodes(grid, "sft", train_sft))
