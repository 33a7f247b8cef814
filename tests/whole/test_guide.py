"""The worked examples of docs/{task,data_sources,model}.md, as they stand there, on small data."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MiniModel
from tests.support import commands
from tests.support.family_checkpoints import make_checkpoint
from tests.support.public_schemas import make_test_file, make_train_set

ROOT = Path(__file__).parents[2]
SMALL = {
    "data_preparation.splits.train": 8,
    "data_preparation.splits.validation": 4,
    "data_preparation.splits.test": 6,
    "training.updates": 1,
    "training.prompts_per_update": 2,
    "training.checkpoint_every_updates": 1,
    "training.validation_examples": 2,
    "rl.completions_per_prompt": 2,
    "rl.max_completion_tokens": 8,
    "evaluation.batch_size": 8,
    "evaluation.max_completion_tokens": 8,
}


def read_example(name: str) -> dict[str, str]:
    """The files of an example: path -> text. Each block says in its first line where it goes."""
    guide = (ROOT / "docs" / f"{name}.md").read_text()
    text = guide.partition("<!-- example -->\n")[2]
    files = {}
    while block := re.match(r"```\w+\n# (\S+)\n(.*?)```\n", text, re.DOTALL):
        files[block[1]] = block[2]
        text = text[block.end() :]
    return files


@pytest.fixture
def project(tmp_path: Path, mini_model: MiniModel, empty_store: Path) -> Path:
    """A copy of the project, with a small base model."""
    shutil.copy(empty_store, tmp_path)
    for folder in ("conf", "src"):
        ignored = shutil.ignore_patterns("local", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(mini_model.path, tmp_path / "data/01_raw/tiny")
    return tmp_path


@pytest.fixture
def follow(project: Path) -> Callable[..., str]:
    """Write an example's files into the project and run it; returns what it said."""

    def run(name: str, env: str, pipeline: str, **changes: object) -> str:
        for path, text in read_example(name).items():
            (project / path).parent.mkdir(exist_ok=True)
            (project / path).write_text(text)
        params = ",".join(f"{key}={value}" for key, value in {**SMALL, **changes}.items())
        options = [f"--env={env}", f"--pipelines={pipeline}", f"--params={params}"]
        environment = {**os.environ, "PYTHONPATH": str(project / "src")}
        done = commands.run("kedro", "run", *options, cwd=project, env=environment)
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    return run


def prepared(project: Path, env: str, task: str) -> dict[str, Any]:
    """The task's splits, as its manifest has them."""
    manifest = json.loads((project / f"data/{env}/03_primary/{task}/manifest.json").read_text())
    splits: dict[str, Any] = manifest["splits"]
    assert {name: split["examples"] for name, split in splits.items()} == {
        name: SMALL[f"data_preparation.splits.{name}"] for name in ("train", "validation", "test")
    }
    return splits


def test_a_task_of_ones_own(project: Path, follow: Callable[..., str]) -> None:
    """The new file is found, drawn and trained on; what comes after knows no task by its name."""
    follow("task", "clock", pipeline="sft", **{"base_model.path": "data/01_raw/tiny"})
    prepared(project, "clock", "clock")
    trained = (project / "data/clock/06_models").glob("*/sft/s0/*/update-000001")
    assert {folder.parents[3].name for folder in trained} == {"counting", "clock"}


def test_a_data_set_of_ones_own(project: Path, follow: Callable[..., str]) -> None:
    raw = project / "data/01_raw"
    make_train_set(raw, "counting", examples=16, seed=0, layout="parquet").rename(raw / "charts")
    file, images = make_test_file(raw, "counting", examples=6, seed=1)
    file.rename(raw / "charts_test.jsonl")
    images.rename(raw / "charts_test")
    base_model = {"base_model.path": "data/01_raw/tiny"}
    follow("data_sources", "my_data", pipeline="data_preparation", **base_model)
    splits = prepared(project, "my_data", "charts")
    prompts = {name: split["prompt"] for name, split in splits.items()}
    assert "}  Output" in prompts["train"] == prompts["validation"]
    assert "} Output" in prompts["test"]


def test_a_model_of_ones_own(project: Path, follow: Callable[..., str]) -> None:
    make_checkpoint("smolvlm", project / "data/01_raw/my_model")
    said = follow("model", "my_model", pipeline="preflight", **{"model.max_pixels": 512 * 512})
    assert "geometry through data/01_raw/my_model" in said
    assert "FAILED" not in said


def test_a_schedule_of_ones_own(project: Path, follow: Callable[..., str]) -> None:
    changes = {"base_model.path": "data/01_raw/tiny", "training.updates": 2}
    said = follow("change", "mine", pipeline="preflight", **changes)
    assert "KL weight 0.1 first, 1e-06 least" in " ".join(said.split())
    assert "FAILED" not in said
