"""The preflight pipeline."""
