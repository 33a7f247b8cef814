"""Each model family through a whole `kedro run`, from drawn tasks to the report."""

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from family_checkpoints import FAMILIES, make_checkpoint

from othink_pipeline.models import load_model

ROOT = Path(__file__).parents[1]
TASKS, METHODS = ("counting", "geometry"), ("sft", "grpo_d")
CHANGES: dict[str, dict[str, Any]] = {
    "experiment": {"tasks": list(TASKS), "methods": list(METHODS), "seeds": [0]},
    "data_preparation": {"splits": {"base": 4, "train": 6, "validation": 2, "test": 8}},
    "base_model": {"path": "data/01_raw/tiny", "hub": None},
    "model": {"max_pixels": 512 * 512},  # a single tile for the families that tile
    "training": {
        "updates": 2,
        "prompts_per_update": 3,
        "checkpoint_every_updates": 2,
        "validation_examples": 2,
    },
    "rl": {"completions_per_prompt": 2, "max_completion_tokens": 8},
    "evaluation": {"batch_size": 4, "max_completion_tokens": 8},
    "report": {"comparisons": [["grpo_d", "sft"]]},
}


def make_project(folder: Path, family: str) -> Path:
    """A project whose environment ``family`` starts from a tiny checkpoint of that family."""
    shutil.copytree(ROOT / "conf", folder / "conf", ignore=shutil.ignore_patterns("local"))
    (folder / "conf/local").mkdir()
    (folder / "src").mkdir()  # the code itself comes from this checkout
    shutil.copy(ROOT / "pyproject.toml", folder)
    make_checkpoint(family, folder / "data/01_raw/tiny")
    blocks: dict[str, Any] = {}
    for file in (folder / "conf/base").glob("parameters*.yml"):
        blocks |= yaml.safe_load(file.read_text())
    changed = {name: {**blocks[name], **changes} for name, changes in CHANGES.items()}
    (folder / "conf/family").mkdir()
    (folder / "conf/family/parameters.yml").write_text(yaml.safe_dump(changed))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_through_the_whole_pipeline(family: str, tmp_path: Path) -> None:
    if family == "smolvlm" and find_spec("num2words") is None:
        pytest.skip("SmolVLM2's processor needs the package num2words")
    project = make_project(tmp_path / "project", family)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        "PYTHONPATH": str(ROOT / "src"),
    }
    run = subprocess.run(
        [sys.executable, "-m", "kedro", "run", "--env=family", "--pipelines=cross_task"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "prompts cannot be shared" not in run.stdout + run.stderr
    results = project / "data/08_reporting"
    matrix = pd.read_csv(results / "transfer_matrix.csv")
    rows = matrix[["train_task", "method", "eval_task"]].apply(tuple, axis=1)
    cells = [("none", "base"), *((task, method) for task in TASKS for method in METHODS)]
    assert sorted(rows) == sorted((*cell, task) for cell in cells for task in TASKS)
    assert (matrix["n"] == 8).all()
    assert "grpo_d" in (results / "report.md").read_text()
    history = pd.read_csv(results / "history.csv")
    shared = history[history["metric"] == "train/shared_prompts"]
    assert len(shared) == 2 * 2  # tasks x updates
    assert (shared["value"] == 1).all()
    for task in TASKS:
        manifest = json.loads((project / f"data/06_models/{task}/grpo_d/s0.json").read_text())
        model, processor = load_model(str(project / manifest["path"]))
        assert model.config.model_type == family
        assert processor.image_processor.size["longest_edge"] in (512, 512 * 512)
