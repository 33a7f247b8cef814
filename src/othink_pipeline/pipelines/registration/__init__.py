"""The register pipeline."""

from othink_pipeline.pipelines.registration.pipeline import create_pipeline

__all__ = ["create_pipeline"]
