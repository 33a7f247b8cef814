"""Base model: nothing -> a trained mini Qwen2-VL; and the check of those in use."""

from kedro.pipeline import Node, Pipeline

from othink_pipeline.cells.grid import Grid
from othink_pipeline.pipelines.base_model.nodes import (
    check_base_model,
    prepare_base_examples,
    train_base_model,
)
from othink_pipeline.pipelines.wiring import BoundNode, bind


def create_pipeline(grid: Grid) -> Pipeline:
    """Rebuild the base model; needs the tasks' examples for their validation splits."""
    return Pipeline(
        [
            *(
                BoundNode(
                    bind(prepare_base_examples, task=task),
                    inputs=["params:data_preparation", "params:folders"],
                    outputs=f"{task}.base_examples",
                    name="prepare_base_examples",
                    namespace=f"data.{task}",
                )
                for task in grid.tasks
            ),
            Node(
                train_base_model,
                inputs=[
                    "params:rebuild",
                    "params:evaluation",
                    *(f"{task}.base_examples" for task in grid.tasks),
                    *(f"{task}.examples" for task in grid.tasks),
                ],
                outputs="rebuilt_base_model",
                name="train_base_model",
                namespace="base",
            ),
        ]
    )


def create_check(grid: Grid) -> Pipeline:
    """Verify the base models that the grid starts from, on the examples that it uses."""
    return Pipeline(
        [
            BoundNode(
                bind(check_base_model, number=number),
                inputs=[
                    "params:base_model",
                    "params:experiment",
                    "params:training",
                    "params:sft",
                    "params:rl",
                    "params:methods",
                    "params:evaluation",
                    "params:folders",
                    "params:model",
                    "params:compute",
                    "params:cluster",
                    *(f"{task}.examples" for task in grid.tasks),
                ],
                outputs=f"base.b{number}.checkpoint",
                name="check_base_model",
                namespace=f"base.b{number}",
                tags=["base_model"],
            )
            for number in grid.base_models
        ]
    )
