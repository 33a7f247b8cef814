"""conf/paper as it stands, from the public data sets' schemas to the report, without the weights.

What is changed: where the data and the model come from, and all that makes it long: of the methods
of RL, which differ in their KL weights alone, one is left. The models are tiny and untrained, of
each family's real architecture; their answers are noise.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from othink_pipeline.models.load import load_model
from tests.support import commands
from tests.support.clone import make_clone
from tests.support.family_checkpoints import FAMILIES, make_checkpoint
from tests.support.public_schemas import make_source

ROOT = Path(__file__).parents[2]
TASKS, METHODS = ("counting", "geometry"), ("sft", "grpo_d")
SMALL: dict[str, dict[str, Any]] = {
    "data_preparation": {"splits": {"base": 0, "train": 12, "validation": 3, "test": 5}},
    "training": {
        "updates": 2,
        "prompts_per_update": 2,
        "checkpoint_every_updates": 2,
        "validation_examples": 2,
    },
    "rl": {"completions_per_prompt": 2, "max_completion_tokens": 6},
    "evaluation": {"batch_size": 4, "max_completion_tokens": 8},
    "compute": {"micro_batch_size": 2},
}
TILED = ("idefics3", "smolvlm")
TILES = {"min_pixels": None, "max_pixels": 512 * 512}  # one tile, and a small one of all


def read_paper() -> dict[str, Any]:
    """conf/paper's parameters."""
    blocks: dict[str, Any] = yaml.safe_load((ROOT / "conf/paper/parameters.yml").read_text())
    return blocks


def make_project(folder: Path, family: str, **changes: dict[str, Any]) -> Path:
    """A project whose environment ``paper`` is as shipped, but small, local and of that family."""
    make_clone(folder)
    raw = folder / "data/01_raw"
    make_checkpoint(family, raw / "tiny")
    blocks = read_paper()
    for name, keys in SMALL.items():
        blocks[name] |= {**keys, **changes.get(name, {})}
    blocks["experiment"]["methods"] = list(METHODS)
    blocks["base_model"] = {"path": "data/01_raw/tiny", "hub": None}
    if family in TILED:
        blocks["model"] |= TILES
    shipped = blocks["data_preparation"]["sources"]
    for task in TASKS:
        made = make_source(raw, task, train=20, test=5, seed=1)
        for split, source in shipped[task].items():
            assert source["columns"] == made[split]["columns"]  # the public ones
            source["source"] = made[split]["source"]
    (folder / "conf/paper/parameters.yml").write_text(yaml.safe_dump(blocks))
    return folder


def kedro_run(project: Path, *options: str) -> str:
    """`kedro run --env=paper` there; returns all that it said."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        "PYTHONPATH": str(ROOT / "src"),
    }
    run = commands.run("kedro", "run", "--env=paper", *options, cwd=project, env=environment)
    assert run.returncode == 0, run.stdout[-6000:]
    return run.stdout


@pytest.mark.parametrize(
    "family",
    [
        name if name == "qwen2_vl" else pytest.param(name, marks=pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_the_papers_setting_goes_from_data_to_report(
    family: str, empty_store: Path, tmp_path: Path
) -> None:
    project = make_project(tmp_path / "project", family)
    shutil.copy(empty_store, project)
    said = kedro_run(project, "--pipelines=cross_task")
    assert "prompts cannot be shared" not in said
    results = project / "data/paper/08_reporting"
    matrix = pd.read_csv(results / "transfer_matrix.csv")
    rows = matrix[["train_task", "method", "eval_task"]].apply(tuple, axis=1)
    cells = [("none", "base"), *((task, method) for task in TASKS for method in METHODS)]
    assert sorted(rows) == sorted((*cell, task) for cell in cells for task in TASKS)
    assert (matrix["n"] == 5).all()
    assert "grpo_d" in (results / "report.md").read_text()
    history = pd.read_csv(results / "history.csv")
    weights = history[history["metric"] == "train/kl_weight"].pivot_table(
        index=["task", "method"], columns="step", values="value"
    )
    assert weights.loc[("counting", "grpo_d")].tolist() == [0.07, 0.1]
    assert weights.loc[("geometry", "grpo_d")].tolist() == [0.01, 0.02]
    shared = history[history["metric"] == "train/shared_prompts"]
    assert (shared["value"] == 1).all()
    assert len(shared) == 2 * 2  # tasks x updates
    for task in TASKS:
        manifest = json.loads((project / f"data/paper/06_models/{task}/grpo_d/s0.json").read_text())
        model, processor = load_model(str(project / manifest["path"]))
        assert model.config.model_type == family
        assert str(model.dtype) == "torch.bfloat16"
        limit = processor.image_processor.size["longest_edge"]
        assert limit == (512 if family in TILED else 401408)


@pytest.mark.slow
@pytest.mark.parametrize("merge", [False, True])
def test_with_adapters(merge: bool, tmp_path: Path) -> None:
    lora = {"rank": 4, "alpha": 8, "dropout": 0.0, "modules": "all-linear", "merge": merge}
    project = make_project(tmp_path / "project", "qwen2_vl", training={"lora": lora})
    kedro_run(project, "--pipelines=cross_task")
    matrix = pd.read_csv(project / "data/paper/08_reporting/transfer_matrix.csv")
    assert len(matrix) == 5 * 2
    folder = next((project / "data/paper/06_models/counting/grpo_d").glob("s0/*/update-000002"))
    assert (folder / "adapter_model.safetensors").exists() is not merge
    assert (folder / "model.safetensors").exists() is merge
