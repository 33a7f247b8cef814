"""The rl pipeline."""

from othink_pipeline.pipelines.rl.pipeline import create_pipeline

__all__ = ["create_pipeline"]
