"""Registration: what a finished grid has learnt -> its best cell in MLflow's model registry."""

from kedro.pipeline import Node, Pipeline

from othink_pipeline.pipelines.registration.nodes import register_best_cell


def create_pipeline() -> Pipeline:
    """One node; only who asks for it registers a model."""
    return Pipeline(
        [
            Node(
                register_best_cell,
                inputs=["report.history", "report.training"],
                outputs=None,
                name="register_best_cell",
                namespace="mlflow",
            )
        ]
    )
