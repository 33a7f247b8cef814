"""Cross-task evaluation: every checkpoint x every other task -> transfer matrix and report."""

from kedro.pipeline import Node, Pipeline

from othink_pipeline.grid import Grid, bind, evaluation_node
from othink_pipeline.pipelines.cross_task.nodes import (
    build_transfer_matrix,
    collect_method,
    draw_figures,
    evaluate_base_model,
    gather_training,
    write_report,
)
from othink_pipeline.pipelines.same_task_eval.nodes import evaluate_cell


def create_pipeline(grid: Grid) -> Pipeline:
    """The rest of the matrix, one collecting node for each task and method, and the report."""
    rows = [f"{task}.{method}" for task in grid.tasks for method in grid.algorithms]
    return Pipeline(
        [
            *(
                Node(
                    evaluate_base_model,
                    inputs=["base_model", f"{task}.examples", "params:evaluation"],
                    outputs=f"base.{task}.predictions",
                    name=f"evaluate_on_{task}",
                    namespace="base",
                    tags=["evaluation"],
                )
                for task in grid.tasks
            ),
            *(
                evaluation_node(evaluate_cell, cell, task)
                for cell in grid.cells
                for task in grid.tasks
                if task != cell.task
            ),
            *(_collecting_node(grid, task, m) for task in grid.tasks for m in grid.algorithms),
            Node(
                build_transfer_matrix,
                inputs=[
                    *(f"base.{task}.predictions" for task in grid.tasks),
                    *(f"{row}.predictions" for row in rows),
                ],
                outputs=["predictions", "transfer_matrix"],
                name="build_transfer_matrix",
            ),
            Node(
                gather_training,
                inputs=[*(f"{row}.history" for row in rows), *(f"{row}.training" for row in rows)],
                outputs=["history", "training"],
                name="gather_training",
            ),
            Node(
                draw_figures,
                inputs=["transfer_matrix", "history"],
                outputs=["heat_map", "heat_map_png", "training_curves", "training_curves_png"],
                name="draw_figures",
            ),
            Node(
                write_report,
                inputs=["transfer_matrix", "predictions", "training"],
                outputs="report",
                name="write_report",
            ),
        ]
    )


def _collecting_node(grid: Grid, task: str, method: str) -> Node:
    cells = tuple(cell for cell in grid.cells if (cell.task, cell.method) == (task, method))
    inputs = []
    for cell in cells:
        inputs += [f"{cell.name}.checkpoint", f"{cell.name}.history"]
        inputs += [f"{cell.name}.{eval_task}.predictions" for eval_task in grid.tasks]
    row = f"{task}.{method}"
    return Node(
        bind(collect_method, cells=cells, eval_tasks=grid.tasks),
        inputs=inputs,
        outputs=[f"{row}.predictions", f"{row}.history", f"{row}.training"],
        name="collect_method",
        namespace=row,
    )
