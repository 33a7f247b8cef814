"""What would open every command and says nothing to its user is not said, nor told to others."""

import os
import warnings


def import_quietly() -> None:
    """Import kedro-mlflow before Kedro does: MLflow warns of a model that it has of its own.

    No filter helps: MLflow sets one of its own around the warning.
    """
    os.environ.setdefault("DO_NOT_TRACK", "true")  # MLflow would report home
    with warnings.catch_warnings(record=True):
        import kedro_mlflow.mlflow  # noqa: F401
