"""The base_model pipeline."""

from othink_pipeline.pipelines.base_model.pipeline import create_check, create_pipeline

__all__ = ["create_check", "create_pipeline"]
