"""Cross-task evaluation: every checkpoint x every other task -> transfer matrix and report."""

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Node, Pipeline

from othink_pipeline.cells.evaluate import Tested
from othink_pipeline.cells.grid import Grid
from othink_pipeline.core.blocks import BASE
from othink_pipeline.pipelines.cross_task.nodes import (
    build_transfer_matrix,
    collect_tests,
    collect_training,
    concatenate,
    draw_figures,
    merge_tests,
    write_page,
    write_report,
)
from othink_pipeline.pipelines.cross_task.recording import record_results
from othink_pipeline.pipelines.wiring import BoundNode, bind, evaluation_node, tested_cell

FROM_CELLS = "from_cells"
"""Tag of all that is made from what the cells have made: matrix, report, MLflow's records."""


def create_pipeline(grid: Grid) -> Pipeline:
    """The rest of the matrix, what it comes to by method, and the report on all of it."""
    bases = tuple(f"base.b{number}" for number in grid.base_models)
    methods = [(task, method) for task in grid.tasks for method in grid.algorithms]
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
            _collect_tests(BASE, bases, grid.tasks),
            *(node for task, method in methods for node in _collect_method(grid, task, method)),
            *(node for task in grid.tasks for node in _collect_task(task, tuple(grid.algorithms))),
            *_report(grid.tasks, tuple(grid.algorithms)),
        ]
    )


# Nodes that take datasets of several kinds take them by name, so that none is mistaken.


def _collect_tests(namespace: str, models: tuple[str, ...], tasks: tuple[str, ...]) -> Node:
    predictions = [f"{model}.{task}.predictions" for model in models for task in tasks]
    examples = [f"{task}.examples" for task in tasks]
    manifests = [*(f"{model}.checkpoint" for model in models), *examples, *predictions]
    return BoundNode(
        bind(collect_tests, models=models, tasks=tasks),
        inputs={name: name for name in manifests},
        outputs=f"{namespace}.tests",
        name="collect_tests",
        namespace=namespace,
    )


def _collect_method(grid: Grid, task: str, method: str) -> list[Node]:
    namespace = f"{task}.{method}"
    cells = tuple(cell for cell in grid.cells if (cell.task, cell.method) == (task, method))
    names = [f"{cell.name}.{kind}" for cell in cells for kind in ("checkpoint", "history")]
    return [
        _collect_tests(namespace, tuple(cell.name for cell in cells), grid.tasks),
        BoundNode(
            bind(collect_training, cells=cells),
            inputs={name: name for name in names},
            outputs=[f"{namespace}.history", f"{namespace}.training"],
            name="collect_training",
            namespace=namespace,
        ),
    ]


def _collect_task(task: str, methods: tuple[str, ...]) -> list[Node]:
    """All methods of a task: Kedro-Viz unfolds them within it, and not beside everything else."""

    def gather(function: Callable[..., Any], kind: str) -> Node:
        return Node(
            function,
            inputs=[f"{task}.{method}.{kind}" for method in methods],
            outputs=f"{task}.{kind}",
            name=f"{function.__name__}_{kind}".removesuffix("_tests"),
            namespace=task,
            tags=[FROM_CELLS],
        )

    return [
        gather(merge_tests, "tests"),
        gather(concatenate, "history"),
        gather(concatenate, "training"),
    ]


# Kedro-Viz folds up what a namespace alone makes and reads: what `report` makes and `mlflow` reads,
# or nobody, stands beside them for all to see.


def _report(tasks: tuple[str, ...], methods: tuple[str, ...]) -> list[Node]:
    """What is made of all that was collected, in the order of ``methods``."""
    examples = [f"{task}.examples" for task in tasks]

    def make(
        function: Callable[..., Any],
        inputs: list[str],
        outputs: str | list[str] | None,
        namespace: str = "report",
    ) -> Node:
        return BoundNode(
            bind(function, methods=methods),
            inputs=inputs,
            outputs=outputs,
            name=function.__name__,
            namespace=namespace,
            tags=[FROM_CELLS],
        )

    return [
        make(
            build_transfer_matrix,
            [f"{namespace}.tests" for namespace in (BASE, *tasks)],
            ["predictions", "transfer_matrix", "report.failures"],
        ),
        *(
            Node(
                concatenate,
                inputs=[f"{task}.{table}" for task in tasks],
                outputs=f"report.{table}",
                name=f"concatenate_{table}",
                namespace="report",
                tags=[FROM_CELLS],
            )
            for table in ("history", "training")
        ),
        make(
            draw_figures,
            ["transfer_matrix", "report.history", "params:known_methods"],
            ["heat_map", "training_curves"],
        ),
        make(
            write_report,
            [
                *("transfer_matrix", "predictions", "report.training", "report.failures"),
                *("params:report", "params:known_methods", "params:published", *examples),
            ],
            ["report", "differences", "verdict"],
        ),
        make(
            write_page,
            [
                *("report", "transfer_matrix", "predictions", "differences", "report.history"),
                *("params:report", "params:known_methods", *examples),
            ],
            ["report_page", "samples"],
        ),
        make(
            record_results,
            ["transfer_matrix", "predictions", "differences", "verdict", "params:known_methods"],
            None,
            namespace="mlflow",
        ),
    ]
