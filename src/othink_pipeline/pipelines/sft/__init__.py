"""The sft pipeline."""

from othink_pipeline.pipelines.sft.pipeline import create_pipeline

__all__ = ["create_pipeline"]
