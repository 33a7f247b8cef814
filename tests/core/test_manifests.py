"""A manifest comes back as written, or is told by file, key and version."""

import json
from pathlib import Path
from typing import Any

import pytest

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import MANIFEST, digest_folder
from othink_pipeline.core.manifests import FolderManifest, OtherVersionError


class Made(FolderManifest):
    """The manifest of some folder."""

    seed: int
    rates: tuple[float, ...] = ()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model/sub").mkdir(parents=True)
    (tmp_path / "model/a.txt").write_text("one")
    (tmp_path / "model/sub/b.bin").write_bytes(b"\0\1")
    return tmp_path / "model"


def test_a_manifest_comes_back_as_written(folder: Path) -> None:
    written = Made.write_folder(folder, seed=3, rates=(0.5, 1.0))
    assert written == Made(seed=3, rates=(0.5, 1.0), digest=digest_folder(folder))
    assert Made.read_folder(folder, "") == written
    assert json.loads((folder / MANIFEST).read_text())["version"] == 2


def test_a_missing_manifest_is_told_with_the_remedy(folder: Path) -> None:
    for place in (folder, folder / "nowhere"):
        with pytest.raises(ConfigurationError) as error:
            Made.read_folder(place, "Make it again.")
        expected = f"{place / MANIFEST}: missing, or no JSON object. Make it again."
        assert error.value.message == expected


def test_a_file_that_is_no_manifest_is_refused(folder: Path) -> None:
    (folder / MANIFEST).write_text("[]")
    with pytest.raises(ConfigurationError, match=r"no JSON object\. Make it again") as error:
        Made.read(folder / MANIFEST, "Make it again.")
    assert str(folder / MANIFEST) in error.value.message


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": None}, "seed"),
        ({"seed": "3"}, "seed"),
        ({"rates": [0.5, "x"]}, "rates.1"),
        ({"more": 1}, "more"),
        ({"digest": 7}, "digest"),
    ],
)
def test_the_key_at_fault_is_named(folder: Path, change: dict[str, Any], key: str) -> None:
    content = Made.write_folder(folder, seed=3).to_json() | change
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=r"Make it again\.$") as error:
        Made.read_folder(folder, "Make it again.")
    assert error.value.message.startswith(f"{folder / MANIFEST}: {key}: ")


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_another_version_is_refused_by_name(folder: Path, version: Any) -> None:
    content = Made.write_folder(folder, seed=3).to_json() | {"version": version}
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(OtherVersionError, match=r"reads version 2\. Make it again\.$") as error:
        Made.read_folder(folder, "Make it again.")
    assert f"{folder / MANIFEST}: a manifest of version {version};" in error.value.message


def test_a_folder_that_changed_is_refused(folder: Path) -> None:
    Made.write_folder(folder, seed=3)
    (folder / "sub" / "b.bin").write_bytes(b"\0\0")
    with pytest.raises(ConfigurationError, match="differ from the digest") as error:
        Made.read_folder(folder, "Make it again.")
    assert str(folder) in error.value.message
    assert error.value.message.endswith("Make it again.")
