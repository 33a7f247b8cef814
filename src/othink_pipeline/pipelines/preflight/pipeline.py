"""Preflight: parameters -> a table of all that would stop a run, in seconds."""

from kedro.pipeline import Node, Pipeline

from othink_pipeline.pipelines.preflight.nodes import check_fit, check_places, report_checks

METHODS = [f"params:{block}" for block in ("experiment", "training", "sft", "rl", "methods")]


def create_pipeline() -> Pipeline:
    """Every check, whatever the others find, then the report."""
    return Pipeline(
        [
            Node(
                check_places,
                inputs=[
                    *METHODS,
                    "params:base_model",
                    "params:folders",
                    "params:data_preparation",
                    "params:model",
                ],
                outputs="preflight.places",
                name="check_places",
                namespace="preflight",
            ),
            Node(
                check_fit,
                inputs=[
                    *METHODS,
                    "params:base_model",
                    "params:folders",
                    "params:data_preparation",
                    "params:evaluation",
                    "params:model",
                    "params:compute",
                ],
                outputs="preflight.fit",
                name="check_fit",
                namespace="preflight",
            ),
            Node(
                report_checks,
                inputs=["preflight.places", "preflight.fit"],
                outputs=None,
                name="report_checks",
                namespace="preflight",
            ),
        ]
    )
