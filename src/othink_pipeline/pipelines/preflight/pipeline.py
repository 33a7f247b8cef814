"""Preflight: parameters -> a table of all that would stop a run, and of what it takes."""

from kedro.pipeline import Node, Pipeline

from othink_pipeline.pipelines.preflight.nodes import (
    check_fit,
    check_places,
    measure_costs,
    report_checks,
)


def create_pipeline() -> Pipeline:
    """Every check, whatever the others find; what it takes where nothing failed; the report."""
    return Pipeline(
        [
            Node(
                check_places,
                inputs="parameters",
                outputs="preflight.places",
                name="check_places",
                namespace="preflight",
            ),
            Node(
                check_fit,
                inputs="parameters",
                outputs="preflight.fit",
                name="check_fit",
                namespace="preflight",
            ),
            Node(
                measure_costs,
                inputs=["parameters", "preflight.fit"],
                outputs="preflight.costs",
                name="measure_costs",
                namespace="preflight",
            ),
            Node(
                report_checks,
                inputs=["preflight.places", "preflight.fit", "preflight.costs"],
                outputs=None,
                name="report_checks",
                namespace="preflight",
            ),
        ]
    )
