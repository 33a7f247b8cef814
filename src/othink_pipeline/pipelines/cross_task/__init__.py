"""The cross_task pipeline."""

from othink_pipeline.pipelines.cross_task.pipeline import FROM_CELLS, create_pipeline

__all__ = ["FROM_CELLS", "create_pipeline"]
