"""Kedro settings: the grid of the current parameters decides which pipelines there are."""

import warnings

from othink_pipeline.config_loader import GridConfigLoader
from othink_pipeline.core.console import colour_levels
from othink_pipeline.hooks import (
    FailureHooks,
    PreflightHooks,
    ScreenHooks,
    StoreHooks,
    TrackingHooks,
)

# Dots in data set names are meant: they nest the grid in kedro viz.
warnings.filterwarnings("ignore", message="One or more dataset names contain")
# Kedro's own call of an OmegaConf function that will go.
warnings.filterwarnings("ignore", message="register_new_resolver")
# TRL's own use of a transformers property that will be renamed.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")

colour_levels()

_preflight = PreflightHooks()
HOOKS = (
    StoreHooks(),
    _preflight,
    ScreenHooks(_preflight),
    TrackingHooks(),
    FailureHooks(),
)  # kedro-mlflow registers its own
CONFIG_LOADER_CLASS = GridConfigLoader
CONFIG_LOADER_ARGS = {"base_env": "base", "default_run_env": "local"}
