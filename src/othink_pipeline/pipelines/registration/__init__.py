"""The register pipeline."""
