"""The smallest grid, run as `kedro run` runs it: Kedro, TRL, MLflow, all real."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
import pytest
import yaml
from conftest import PROMPT, TASKS, MiniModel
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from mlflow import MlflowClient
from mlflow.entities import Run

from othink_pipeline import tracking
from othink_pipeline.grid import GridConfigLoader

ROOT = Path(__file__).parents[1]
METHODS = ("sft", "grpo", "grpo_d")
CELLS = [(task, method) for task in TASKS for method in METHODS]
TEST_EXAMPLES = 6
PARAMETERS: dict[str, Any] = {
    "experiment": {"tasks": list(TASKS), "methods": list(METHODS), "seeds": [0]},
    "data_preparation": {
        "seed": 0,
        "splits": {"base": 16, "train": 6, "validation": 5, "test": TEST_EXAMPLES},
        "prompt": PROMPT,
        "max_rejected": 0,
    },
    "base_model": {"path": "data/01_raw/tiny"},
    "training": {
        "updates": 2,
        "prompts_per_update": 3,
        "checkpoint_every_updates": 1,
        "validation_examples": 4,
    },
    "evaluation": {"batch_size": 8, "max_completion_tokens": 10},
    "rl": {
        "learning_rate": 1.0e-3,
        "lr_schedule": "constant",
        "warmup_ratio": 0.0,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "completions_per_prompt": 4,
        "max_completion_tokens": 10,
        "temperature": 1.0,
        "rewards": {"accuracy": 1.0, "format": 1.0},
    },
}
