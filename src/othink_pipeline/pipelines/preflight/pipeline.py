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
    places, fit, costs = "preflight.places", "preflight.fit", "preflight.costs"
    return Pipeline(
        [
            Node(function, inputs, outputs, name=function.__name__, namespace="preflight")
            for function, inputs, outputs in (
                (check_places, ["parameters"], places),
                (check_fit, ["parameters"], fit),
                (measure_costs, ["parameters", fit], costs),
                (report_checks, [places, fit, costs], None),
            )
        ]
    )
