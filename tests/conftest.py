"""The tests talk to nobody: set before any library reads it."""

import os

os.environ["DO_NOT_TRACK"] = "true"  # MLflow takes nothing but "true"
os.environ["KEDRO_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
