"""The best cell by validation is registered, once, and answers as the documents say."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from PIL import Image

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import digest_folder
from othink_pipeline.pipelines.registration.nodes import register_best_cell
from othink_pipeline.tracking import runs
from tests.support.store import open_store

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "data/01_raw/mini_qwen2_vl"
TOLD = ("method", "seed", "validation_accuracy", "validated_on")
HISTORY = pd.DataFrame(
    [
        # Ahead on its own task and before the last update, not in the mean after it.
        ("counting", "sft", 0, 4, "val/counting", 0.9),
        ("counting", "sft", 0, 4, "val/geometry", 0.2),
        ("counting", "sft", 0, 2, "val/geometry", 1.0),
        ("counting", "grpo", 3, 2, "val/counting", 0.1),
        ("counting", "grpo", 3, 4, "val/geometry", 0.5),
        ("counting", "grpo", 3, 4, "val/counting", 0.7),
        ("counting", "sft", 0, 4, "val/think_rate/counting", 1.0),
    ],
    columns=["task", "method", "seed", "step", "metric", "value"],
)


@pytest.fixture
def training(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pd.DataFrame]:
    """Two cells with runs of their own; a checkpoint of the better one alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(runs.PARENT_VARIABLE, raising=False)
    shutil.copytree(SHIPPED, "best")
    rows = [("counting", "grpo", 3, "best"), ("counting", "sft", 0, "gone")]
    table = pd.DataFrame(rows, columns=["task", "method", "seed", "path"])
    table["digest"] = [digest_folder(Path("best")), ""]
    with open_store(empty_store, tmp_path, "othink-pipeline"):
        yield table.assign(run_id=[runs.start_run(name, "cell", {}) for name in ("grpo", "sft")])


def test_the_best_cell_is_registered_once_and_answers(
    training: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient()
    for _ in range(2):
        register_best_cell(HISTORY, training)
    (version,) = client.search_model_versions("name = 'othink-pipeline'")
    assert version.run_id == training["run_id"][0]
    assert {key: version.tags[key] for key in TOLD} == {
        "method": "grpo",
        "seed": "3",
        "validation_accuracy": "0.6000",
        "validated_on": "counting, geometry",
    }
    Image.new("RGB", (64, 64), "#ebebeb").save("picture.png")
    guide = (ROOT / "docs/change.md").read_text().partition("<!-- registered -->\n")[2]
    code = re.match(r"```python\n(.*?)```", guide, re.DOTALL)
    assert code
    exec(code[1], {})
    assert re.match(r"<think>.*</think><answer>\d+</answer>$", capsys.readouterr().out)

    better = HISTORY.assign(value=HISTORY["value"] + (HISTORY["method"] == "sft"))
    shutil.copytree(SHIPPED, "gone")
    Path("gone/README.md").write_text("another")
    with pytest.raises(ConfigurationError, match=r"counting/sft/s0: .* was changed since"):
        register_best_cell(better, training)
    register_best_cell(better, training.assign(digest=digest_folder(Path("gone"))))
    best = client.get_model_version_by_alias("othink-pipeline", "best")
    assert (best.version, best.tags["method"]) == (2, "sft")


def test_what_cannot_be_registered_is_said(tmp_path: Path) -> None:
    rows = [("counting", "grpo", 3, str(tmp_path)), ("counting", "sft", 0, "gone")]
    training = pd.DataFrame(rows, columns=["task", "method", "seed", "path"])
    (tmp_path / "adapter_config.json").write_text("{}")
    training = training.assign(run_id="of another store", digest=digest_folder(tmp_path))
    with pytest.raises(ConfigurationError, match="no cell is finished"):
        register_best_cell(HISTORY[:0], training)
    better = HISTORY.assign(value=HISTORY["value"] + (HISTORY["method"] == "sft"))
    with pytest.raises(ConfigurationError, match="counting/sft/s0: its checkpoint gone is gone"):
        register_best_cell(better, training)
    with pytest.raises(ConfigurationError, match=r"adapters.*training\.lora\.merge: true"):
        register_best_cell(HISTORY, training)
    (tmp_path / "adapter_config.json").unlink()
    whole = training.assign(digest=digest_folder(tmp_path))
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(ConfigurationError, match=r"must be in the store of today's mlflow\.yml"):
        register_best_cell(HISTORY, whole)
    mlflow.set_tracking_uri(None)
