"""One cell trained by several processes: the same numbers, and no process outlives the run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import pytest
import torch
from conftest import PROMPT, TASKS, MiniModel, shipped_health
from safetensors.torch import load_file

from othink_pipeline import processes, tracking
from othink_pipeline.cell_training import train_cell
from othink_pipeline.cells import FAILED, training_key
from othink_pipeline.data_parameters import DataPreparation
from othink_pipeline.grid import Cell
from othink_pipeline.launchers import check_launcher, find_device_fault, launcher_environment
from othink_pipeline.model_parameters import Compute, ModelSettings
from othink_pipeline.parameters import RL, SFT, Evaluation, Folders
from othink_pipeline.pipelines.data_preparation.nodes import CELL_SPLITS, prepare_splits
from othink_pipeline.validation import ConfigurationError

Result = tuple[dict[str, Any], pd.DataFrame]

BUDGET: dict[str, Any] = {
    "updates": 3,
    "prompts_per_update": 4,
    "checkpoint_every_updates": 2,
    "validation_examples": 3,
    "optimizer": "adamw",
    "freeze_vision": False,
    "lora": None,
    "learning_rate": 5.0e-3,
    "lr_schedule": "constant",
    "warmup_ratio": 0.0,
    "max_grad_norm": 1.0,
    "weight_decay": 0.01,
}
METHODS: dict[str, SFT | RL] = {
    "sft": SFT(**BUDGET, algorithm="sft", target="steps"),
    "grpo_d": RL.model_validate(
        {
            **BUDGET,
            "algorithm": "rl",
            "completions_per_prompt": 4,
            "max_completion_tokens": 6,
            "temperature": 1.0,
            "rewards": {"accuracy": 1.0, "format": 1.0, "answer": "tagged"},
            "kl": {"schedule": "linear", "start": 0.1, "end": 0.7},
        }
    ),
}
COMPUTE: dict[str, Any] = {
    "share_prompts": True,
    "data_workers": 0,
    "bf16": False,
    "num_processes": 2,
    "launcher": None,
    "micro_batch_size": None,
    "gradient_checkpointing": False,
    "vllm": None,
    "resume_every_updates": 1,
    "fresh": False,
}
MODEL = ModelSettings(dtype="float32", attention="sdpa", min_pixels=None, max_pixels=None)
EVALUATION = Evaluation(
    batch_size=8,
    max_completion_tokens=6,
    samples=0,
    sample_temperature=1.0,
    shuffle_images=False,
    seed=0,
)
FOLDERS = Folders(
    examples="data/examples", checkpoints="data/models", predictions="data/predictions"
)
SHIPPED = Path(__file__).parents[1] / "conf/base/accelerate"


@pytest.fixture(scope="module")
def prepared(mini_model: MiniModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a base model, examples and a store, and nothing trained."""
    project = tmp_path_factory.mktemp("distributed")
    preparation = DataPreparation.model_validate(
        {
            "seed": 0,
            "splits": {"base": 1, "train": 12, "validation": 4, "test": 4},
            "prompt": PROMPT,
            "max_rejected": 0,
            "sources": {},
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.delenv(tracking.PARENT_VARIABLE, raising=False)
        examples = [
            prepare_splits(preparation, task, CELL_SPLITS, Path(FOLDERS.examples, task))
            for task in TASKS
        ]
        shutil.copytree(mini_model.path, "model")
        mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
        mlflow.set_experiment("tests")
        run_id = tracking.start_run("base/b0", "base_model", {}, {})
        model_id = tracking.log_checkpoint(run_id, "base/b0", 0, Path("model"), {})
    base = {**mini_model.manifest, "path": "model", "run_id": run_id, "model_id": model_id}
    (project / "inputs.json").write_text(json.dumps([base, examples]))
    return project


@pytest.fixture
def project(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of its own, with a store of its own, in which nothing is trained."""
    shutil.copytree(prepared, tmp_path / "project")
    enter(tmp_path / "project")
    monkeypatch.delenv(tracking.PARENT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path / "project")
    yield tmp_path / "project"
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)


def enter(project: Path) -> None:
    os.chdir(project)
    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")


def call(method: str = "sft", seed: int = 3, **compute: Any) -> Result:
    base, examples = json.loads(Path("inputs.json").read_text())
    return train_cell(
        Cell("counting", method, seed),
        METHODS[method],
        base,
        tuple(examples),
        EVALUATION,
        FOLDERS,
        MODEL,
        Compute(**{**COMPUTE, **compute}),
        shipped_health(),
    )


def weights(manifest: dict[str, Any]) -> dict[str, torch.Tensor]:
    return dict(load_file(Path(manifest["path"], "model.safetensors")))


def curve(result: Result) -> dict[tuple[str, int], float]:
    """All values but the time, each recorded once."""
    history = result[1]
    keys = list(zip(history["metric"], history["step"], strict=True))
    assert len(set(keys)) == len(keys)
    values = dict(zip(keys, history["value"], strict=True))
    return {key: value for key, value in values.items() if key[0] != "cost/seconds"}


def assert_alike(first: Result, second: Result, rel: float, atol: float) -> None:
    assert FAILED not in first[0] and FAILED not in second[0], (first[0], second[0])
    assert curve(first) == pytest.approx(curve(second), rel=rel, abs=1e-5)
    one, other = weights(first[0]), weights(second[0])
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-3, atol=atol, msg=name)


def test_supervised_training_is_the_same(project: Path) -> None:
    alone = call(num_processes=1)
    assert_alike(call(), alone, 1e-3, 1e-4)


def main(what: str, job: Path) -> None:
    """A process of a training whose completions are fixed, or which fails on its way."""
    from othink_pipeline import worker

    worker.main(job)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
