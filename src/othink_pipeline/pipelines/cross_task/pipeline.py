"""Cross-task evaluation: every checkpoint x every other task -> transfer matrix and report."""

from kedro.pipeline import Node, Pipeline

from othink_pipeline.cells.grid import Grid
from othink_pipeline.pipelines.cross_task.nodes import (
    build_transfer_matrix,
    collect_method,
    collect_task,
    draw_figures,
    evaluate_base_model,
    gather_training,
    write_report,
)
from othink_pipeline.pipelines.same_task_eval.nodes import evaluate_cell
from othink_pipeline.pipelines.wiring import bind, evaluation_node

TABLES = ("predictions", "history", "training", "failures")


def create_pipeline(grid: Grid) -> Pipeline:
    """The rest of the matrix; tables collected by method, then by task; the report."""
    return Pipeline(
        [
            *(
                Node(
                    bind(evaluate_base_model, base_model=number),
                    inputs=[
                        f"base.b{number}.checkpoint",
                        f"{task}.examples",
                        "params:evaluation",
                        "params:folders",
                        "params:model",
                        "params:compute",
                    ],
                    outputs=f"base.b{number}.{task}.predictions",
                    name=f"evaluate_on_{task}",
                    namespace=f"base.b{number}",
                    tags=["evaluation"],
                )
                for number in grid.base_models
                for task in grid.tasks
            ),
            *(
                evaluation_node(grid, evaluate_cell, cell, task)
                for cell in grid.cells
                for task in grid.tasks
                if task != cell.task
            ),
            *(_collect_method(grid, task, m) for task in grid.tasks for m in grid.algorithms),
            *(_collect_task(grid, task) for task in grid.tasks),
            Node(
                build_transfer_matrix,
                inputs=[
                    "failures",
                    *(
                        f"base.b{number}.{task}.predictions"
                        for number in grid.base_models
                        for task in grid.tasks
                    ),
                    *(f"{task}.predictions" for task in grid.tasks),
                ],
                outputs=["predictions", "transfer_matrix"],
                name="build_transfer_matrix",
                namespace="report",
            ),
            Node(
                gather_training,
                inputs=[f"{task}.{table}" for table in TABLES[1:] for task in grid.tasks],
                outputs=list(TABLES[1:]),
                name="gather_training",
                namespace="report",
            ),
            Node(
                draw_figures,
                inputs=["transfer_matrix", "history"],
                outputs=["heat_map", "heat_map_png", "training_curves", "training_curves_png"],
                name="draw_figures",
                namespace="report",
            ),
            Node(
                write_report,
                inputs=[
                    "transfer_matrix",
                    "predictions",
                    "training",
                    "failures",
                    "params:report",
                    "params:published",
                    *(f"base.b{number}.checkpoint" for number in grid.base_models),
                ],
                outputs="report",
                name="write_report",
                namespace="report",
            ),
        ]
    )


def _collect_method(grid: Grid, task: str, method: str) -> Node:
    cells = tuple(cell for cell in grid.cells if (cell.task, cell.method) == (task, method))
    inputs = []
    for cell in cells:
        inputs += [f"{cell.name}.checkpoint", f"{cell.name}.history"]
        inputs += [f"{cell.name}.{eval_task}.predictions" for eval_task in grid.tasks]
    return Node(
        bind(collect_method, cells=cells, eval_tasks=grid.tasks),
        inputs=inputs,
        outputs=[f"{task}.{method}.{table}" for table in TABLES],
        name="collect_method",
        namespace=f"{task}.{method}",
    )


def _collect_task(grid: Grid, task: str) -> Node:
    return Node(
        collect_task,
        inputs=[f"{task}.{method}.{table}" for table in TABLES for method in grid.algorithms],
        outputs=[f"{task}.{table}" for table in TABLES],
        name="collect_task",
        namespace=task,
    )
