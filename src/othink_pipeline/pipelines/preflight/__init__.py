"""The preflight pipeline."""

from othink_pipeline.pipelines.preflight.pipeline import create_pipeline

__all__ = ["create_pipeline"]
