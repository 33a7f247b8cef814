"""The cross_task pipeline."""

from othink_pipeline.pipelines.cross_task.pipeline import REPORT, create_pipeline

__all__ = ["REPORT", "create_pipeline"]
