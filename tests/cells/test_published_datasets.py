"""Who reads a file of the catalog while a run writes it finds the former or the new one, whole."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from kedro.io import DatasetError, Version
from kedro_mlflow.io.artifacts import MlflowArtifactDataset

from othink_pipeline.cells.manifest_dataset import ManifestDataset
from othink_pipeline.cells.published_datasets import CSVDataset, ParquetDataset, TextDataset
from tests.support.manifests import made_model

ROOT = Path(__file__).parents[2]
TABLES = [pd.DataFrame({"step": [1, 2], "value": [value, 0.25]}) for value in (0.5, 1.5)]


def artifact(filepath: str) -> Any:
    """As the catalog has them, without a run that takes it."""
    kind = f"{CSVDataset.__module__}.CSVDataset"
    dataset: Any = MlflowArtifactDataset({"type": kind, "filepath": filepath})
    dataset._logging_activated = False
    return dataset


KINDS: list[tuple[Any, list[Any]]] = [
    (CSVDataset, TABLES),
    (ParquetDataset, TABLES),
    (artifact, TABLES),
    (TextDataset, ["former", "new"]),
    (partial(ManifestDataset, kind="made_model"), [made_model("former"), made_model("new")]),
]


def alike(found: Any, data: Any) -> bool:
    return bool(found.equals(data) if isinstance(data, pd.DataFrame) else found == data)


@pytest.mark.parametrize(("kind", "versions"), KINDS)
def test_the_former_file_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any, versions: list[Any]
) -> None:
    dataset, replace, seen = kind(filepath=str(tmp_path / "below" / "x")), os.replace, []
    former, new = versions
    dataset.save(former)
    assert alike(dataset.load(), former)

    def look(*paths: Any) -> None:
        seen.append(dataset.load())
        replace(*paths)

    monkeypatch.setattr(os, "replace", look)
    dataset.save(new)
    assert len(seen) == 1 and alike(seen[0], former)
    assert alike(dataset.load(), new)

    monkeypatch.setattr(os, "replace", lambda *_: 1 / 0)
    with pytest.raises(DatasetError, match="division by zero"):
        dataset.save(former)
    assert alike(dataset.load(), new)
    assert [path.name for path in (tmp_path / "below").iterdir()] == ["x"]


def test_versions_are_kedros_own(tmp_path: Path) -> None:
    dataset = CSVDataset(filepath=str(tmp_path / "x.csv"), version=Version(None, "1"))
    dataset.save(TABLES[0])
    assert alike(dataset.load(), TABLES[0])
    assert (tmp_path / "x.csv/1/x.csv").is_file()


def test_tables_are_previewed_as_kedros_are(tmp_path: Path) -> None:
    for dataset in (CSVDataset(filepath=str(tmp_path / "x")), artifact(str(tmp_path / "x"))):
        dataset.save(TABLES[0])
        assert dataset.preview(nrows=1)["data"] == [[1, 0.5]]


def test_the_catalog_has_none_that_empty_a_file_which_is_read() -> None:
    entries = yaml.safe_load((ROOT / "conf/base/catalog.yml").read_text()).values()
    kinds = {entry.get("dataset", entry)["type"] for entry in entries}
    ours = {kind for kind in kinds if kind.startswith("othink_pipeline.cells.")}
    assert kinds - ours == {"matplotlib.MatplotlibDataset"}  # nothing reads a picture
