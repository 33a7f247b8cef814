"""The cross_task pipeline."""

from othink_pipeline.pipelines.cross_task.pipeline import create_pipeline

__all__ = ["create_pipeline"]
