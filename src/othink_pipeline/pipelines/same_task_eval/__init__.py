"""The same_task_eval pipeline."""

from othink_pipeline.pipelines.same_task_eval.pipeline import create_pipeline, create_table

__all__ = ["create_pipeline", "create_table"]
