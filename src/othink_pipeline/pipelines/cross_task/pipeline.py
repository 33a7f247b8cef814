"""Cross-task evaluation: every checkpoint x every other task -> transfer matrix and report."""

from kedro.pipeline import Node, Pipeline

from othink_pipeline.cells.evaluate import Tested
from othink_pipeline.cells.grid import Grid
from othink_pipeline.core.blocks import BASE
from othink_pipeline.pipelines.cross_task.nodes import (
    build_transfer_matrix,
    draw_figures,
    gather_training,
    write_report,
)
from othink_pipeline.pipelines.wiring import bind, evaluation_node, tested_cell


def create_pipeline(grid: Grid) -> Pipeline:
    """The rest of the matrix, and the report on all of it."""
    return Pipeline(
        [
            *(
                evaluation_node(Tested("none", BASE, None, number), task)
                for number in grid.base_models
                for task in grid.tasks
            ),
            *(
                evaluation_node(tested_cell(grid, cell), task)
                for cell in grid.cells
                for task in grid.tasks
                if task != cell.task
            ),
            *_report(grid),
        ]
    )


def _report(grid: Grid) -> list[Node]:
    """What gathers from many models takes its datasets by name, so that none is mistaken."""
    methods = tuple(grid.algorithms)
    cells = tuple(cell.name for cell in grid.cells)
    models = (*(f"base.b{number}" for number in grid.base_models), *cells)
    predictions = [f"{model}.{task}.predictions" for model in models for task in grid.tasks]
    manifests = [*(f"{model}.checkpoint" for model in models), *predictions]
    trainings = [f"{cell}.{kind}" for cell in cells for kind in ("checkpoint", "history")]
    return [
        Node(
            bind(build_transfer_matrix, models=models, tasks=grid.tasks, methods=methods),
            inputs={name: name for name in manifests},
            outputs=["predictions", "transfer_matrix", "failures"],
            name="build_transfer_matrix",
            namespace="report",
        ),
        Node(
            bind(gather_training, cells=grid.cells),
            inputs={name: name for name in trainings},
            outputs=["history", "training"],
            name="gather_training",
            namespace="report",
        ),
        Node(
            bind(draw_figures, methods=methods),
            inputs=["transfer_matrix", "history", "params:known_methods"],
            outputs=["heat_map", "training_curves"],
            name="draw_figures",
            namespace="report",
        ),
        Node(
            bind(write_report, methods=methods),
            inputs=[
                "transfer_matrix",
                "predictions",
                "training",
                "failures",
                "params:report",
                "params:known_methods",
                "params:published",
            ],
            outputs="report",
            name="write_report",
            namespace="report",
        ),
    ]
