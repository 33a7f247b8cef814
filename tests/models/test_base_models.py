"""Base models in folders and on the hub: verified when a run starts, only looked up to plan it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from othink_pipeline.cells.keys import check_model
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import digest_folder
from othink_pipeline.models import base_models
from othink_pipeline.models.base_models import (
    base_model_folders,
    digest_model,
    find_base_model,
    locate_base_model,
)
from othink_pipeline.models.manifests import FoundModel
from othink_pipeline.models.parameters import BaseModel
from tests.support.fake_hub import COMMIT, FakeHub
from tests.support.manifests import made_model, make_model

FILES = {
    "config.json": b"{}",
    "model.safetensors": save({"weight": np.ones(9, dtype=np.float32)}),
}
ON_HUB = BaseModel.model_validate(
    {"path": None, "hub": {"id": "own/mini", "revision": "main"}}, strict=False
)


def in_folders(*paths: Path) -> BaseModel:
    return BaseModel.model_validate({"path": [str(path) for path in paths], "hub": None})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model without a manifest, as transformers saves it."""
    (tmp_path / "model").mkdir()
    for name, data in FILES.items():
        (tmp_path / "model" / name).write_bytes(data)
    return tmp_path / "model"


def test_a_folder_with_a_manifest_is_verified_but_to_plan(folder: Path) -> None:
    base_model, made = in_folders(folder), make_model(folder)
    expected = FoundModel(path=str(folder), digest=made.digest, made=made)
    assert find_base_model(base_model, 0, "") == locate_base_model(base_model, 0) == expected
    (folder / "config.json").write_text("[]")
    with pytest.raises(ConfigurationError, match=r"differ from the digest.*Mend it"):
        find_base_model(base_model, 0, "Mend it.")
    assert locate_base_model(base_model, 0) == expected


def test_the_same_model_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    """Else tests would count one base model as two."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    base_model = in_folders(folder, copy)
    assert find_base_model(base_model, 0, "").path == str(folder)
    with pytest.raises(ConfigurationError, match=r"are the same model.*rebuild\.seed=1"):
        find_base_model(base_model, 1, "")
    (copy / "config.json").write_text("{ }")
    assert find_base_model(base_model, 1, "").path == str(copy)
    for each in (folder, copy):  # trained with one seed, rounded otherwise
        make_model(each)
    with pytest.raises(ConfigurationError, match="are the same model"):
        find_base_model(base_model, 1, "")


def test_a_folder_without_a_manifest_is_read_once_for_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many base models are held against it; unless a file of it changes."""
    copies = [Path(shutil.copytree(folder, tmp_path / f"copy{number}")) for number in range(3)]
    for number, copy in enumerate(copies):
        (copy / "config.json").write_text(f"[{number}]")
    looked: list[Path] = []
    monkeypatch.setattr(
        base_models, "digest_folder", lambda folder: looked.append(folder) or digest_folder(folder)
    )
    found = [find_base_model(in_folders(*copies), number, "") for number in range(3)]
    assert looked == copies
    (copies[0] / "config.json").write_text("[0, 0]")
    again = locate_base_model(in_folders(*copies), 0)
    assert again is not None
    assert again.digest == digest_folder(copies[0]) != found[0].digest


def test_a_folder_without_a_manifest_has_a_digest(folder: Path) -> None:
    base_model = in_folders(folder.with_name("none"), folder)
    expected = FoundModel(path=str(folder), digest=digest_folder(folder))
    assert find_base_model(base_model, 1, "") == locate_base_model(base_model, 1) == expected
    with pytest.raises(ConfigurationError, match=r"none: no model there\. Mend it"):
        find_base_model(base_model, 0, "Mend it.")
    assert locate_base_model(base_model, 0) is None
    (folder / "manifest.json").write_text("{}")
    assert locate_base_model(base_model, 1) is None, "a damaged one is no plain folder"
    assert base_model_folders(base_model) == [folder.with_name("none"), folder]


def test_a_model_of_the_hub_is_downloaded_but_to_plan(hub: FakeHub, folder: Path) -> None:
    hub.add("own/mini", FILES | {"README.md": b"# Model"})
    assert locate_base_model(ON_HUB, 0) is None
    assert base_model_folders(ON_HUB) == []
    assert hub.requests == []
    manifest = find_base_model(ON_HUB, 0, "")
    assert manifest == FoundModel(
        path=f"{constants.HF_HUB_CACHE}/models--own--mini/snapshots/{COMMIT}",
        digest=digest_folder(folder),  # the same model, wherever it is from
        hub="own/mini",
        revision="main",
        commit=COMMIT,
    )
    assert locate_base_model(ON_HUB, 0) == manifest
    assert base_model_folders(ON_HUB) == [Path(manifest.path)]


def test_a_cache_may_be_moved_and_shared(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("own/mini", FILES)
    manifest = find_base_model(ON_HUB, 0, "")
    Path(manifest.path, "pytorch_model.bin").write_bytes(b"another program's")
    check_model(manifest.path, manifest.digest, "", manifest.is_hubs)
    moved = tmp_path / "moved"
    shutil.move(constants.HF_HUB_CACHE, moved)
    with pytest.raises(ConfigurationError, match=r"missing, or changed.*Mend it"):
        check_model(manifest.path, manifest.digest, "Mend it.", manifest.is_hubs)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(moved))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    again = find_base_model(ON_HUB, 0, "")
    assert again == manifest.model_copy(update={"path": again.path})
    assert Path(again.path).is_relative_to(moved)
    check_model(again.path, again.digest, "", again.is_hubs)


def test_a_changed_file_of_the_cache_is_found(hub: FakeHub) -> None:
    hub.add("own/mini", FILES)
    manifest = find_base_model(ON_HUB, 0, "")
    Path(manifest.path, "config.json").resolve().write_bytes(b"[]")
    assert digest_model(manifest.path, is_hubs=True) != manifest.digest
    with pytest.raises(ConfigurationError, match="changed since its manifest was written"):
        check_model(manifest.path, manifest.digest, "", manifest.is_hubs)


def test_a_model_says_where_it_is_from() -> None:
    """Id, revision and commit are of a hub's model; a folder has none."""
    plain = {"path": "model", "digest": "d"}
    origin = plain | {"hub": "own/mini", "revision": "main", "commit": COMMIT}
    for model in (plain, origin):
        assert FoundModel(**model).origin == model
    assert FoundModel(**plain, made=made_model("d")).origin == plain


def test_a_manifest_of_another_program_is_told_and_can_be_deleted(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"version": "3.2"}')
    with pytest.raises(ConfigurationError, match=r"of version 3\.2; .* delete that: the model"):
        find_base_model(in_folders(folder), 0, "Mend it.")
    (folder / "manifest.json").unlink()
    assert find_base_model(in_folders(folder), 0, "").made is None
