"""The sft and rl pipelines, which differ in the methods whose cells they train."""

from othink_pipeline.pipelines.training.pipeline import create_pipeline

__all__ = ["create_pipeline"]
