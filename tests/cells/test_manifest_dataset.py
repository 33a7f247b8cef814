"""What nodes hand on comes back from the catalog as the block that it was."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.manifest_dataset import KINDS, BadManifestError, ManifestDataset
from othink_pipeline.cells.manifests import CollectedTests, FailedCell, FailedTest, Predictions
from othink_pipeline.core.manifests import Manifest
from othink_pipeline.models.manifests import BaseModelCheckpoint
from tests.support.manifests import checkpoint_of, examples_of, made_model

CELL = Cell("counting", "grpo_d", 3)
TEST: dict[str, Any] = {
    "train_task": "none",
    "method": "base",
    "seed": None,
    "base_model": 0,
    "eval_task": "geometry",
}
HANDED_ON: list[tuple[str, Manifest]] = [
    ("examples", examples_of("counting", sources={"test": {"kind": "hub", "commit": None}})),
    ("base_model", BaseModelCheckpoint(path="p", digest="d", run_id="r", model_id="m")),
    (
        "base_model",
        BaseModelCheckpoint(
            path="p", digest="d", run_id="r", model_id="m", made=made_model("d"), commit="c"
        ),
    ),
    ("made_model", made_model("d")),
    ("checkpoint", checkpoint_of(CELL, base_path="base")),
    ("checkpoint", FailedCell(**CELL._asdict(), failed="MemoryError: no room")),
    ("predictions", Predictions(**TEST, key="k", path="p", checkpoint="d")),
    ("predictions", FailedTest(**TEST, failed="OSError: gone")),
    (
        "tests",
        CollectedTests(
            tests=(
                Predictions(**TEST, key="k", path="p", checkpoint="d"),
                FailedTest(**TEST, failed="OSError: gone"),
            )
        ),
    ),
]


@pytest.mark.parametrize(("kind", "manifest"), HANDED_ON)
def test_a_manifest_comes_back_as_it_was(tmp_path: Path, kind: str, manifest: Manifest) -> None:
    dataset = ManifestDataset(kind=kind, filepath=str(tmp_path / "below/x.json"))
    dataset.save(manifest)
    assert dataset.load() == manifest
    assert json.loads(str(dataset.preview())) == manifest.to_json()


def test_every_kind_is_tried() -> None:
    assert {kind for kind, _ in HANDED_ON} == set(KINDS)


def test_a_figure_that_is_not_known_stays_so(tmp_path: Path) -> None:
    dataset = ManifestDataset(kind="checkpoint", filepath=str(tmp_path / "x.json"))
    dataset.save(checkpoint_of(CELL, weights_changed=math.nan))
    assert math.isnan(dataset.load().weights_changed)
    assert "NaN" not in str(dataset.preview())  # which a browser refuses


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"version": 2, "path": "p"', "no JSON object"),
        ("[]", "no JSON object"),
        ("null", "no JSON object"),
        ('{"path": "p", "digest": "d"}', "a manifest of version None; this code reads version 2"),
        ('{"version": 2, "train_task": "counting"}', "method: Field required"),
    ],
)
def test_a_file_that_is_none_is_told_with_the_command(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(BadManifestError, match="kedro run --pipelines=evaluation ") as error:
        ManifestDataset(kind="predictions", filepath=str(file)).load()
    assert f"{file}: {message}" in error.value.message
