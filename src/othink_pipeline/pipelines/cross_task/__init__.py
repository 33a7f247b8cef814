"""The cross_task pipeline."""
