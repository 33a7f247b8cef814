"""Where the base models are that the grid starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import MANIFEST, digest_folder, read_json, read_manifest
from othink_pipeline.core.hub import fetch_model, find_model, model_files
from othink_pipeline.models.parameters import BaseModel, HubModel

ORIGIN = ("path", "digest", "hub", "revision", "commit")
"""Keys of a base model's manifest that say which it is; the last three are of the hub's."""


def find_base_model(base_model: BaseModel, number: int, remedy: str) -> dict[str, Any]:
    """The manifest of a base model, its files verified: path, digest and where it is from.

    A model of the hub is downloaded if need be.

    Args:
        number: which of them.
        remedy: what to do where there is none; ends the error message.

    Raises:
        ConfigurationError: no model there, or files that differ from their manifest's digest; or
            as ``fetch_model``.
    """
    if base_model.hub is not None:
        return _describe_snapshot(base_model.hub, *fetch_model(**base_model.hub.model_dump()))
    assert base_model.path is not None
    path = base_model.path[number]
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        return {**read_manifest(folder, remedy), "path": path}
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"base_model.path: {path}: no model there. {remedy}")
    return {"path": path, "digest": digest_folder(folder)}


def locate_base_model(base_model: BaseModel, number: int) -> dict[str, Any] | None:
    """As ``find_base_model``, but nothing is downloaded or verified; None where none is found."""
    if base_model.hub is not None:
        found = find_model(**base_model.hub.model_dump())
        return None if found is None else _describe_snapshot(base_model.hub, *found)
    assert base_model.path is not None
    path = base_model.path[number]
    manifest = read_json(Path(path) / MANIFEST)
    if manifest is not None:
        return {**manifest, "path": path} if "digest" in manifest else None
    if not (Path(path) / "config.json").is_file():
        return None
    return {"path": path, "digest": digest_folder(Path(path))}


def base_model_folders(base_model: BaseModel) -> list[Path]:
    """The folders of all base models; none while that of the hub is not downloaded."""
    if base_model.hub is None:
        return [Path(path) for path in base_model.path or ()]
    found = find_model(**base_model.hub.model_dump())
    return [] if found is None else [Path(found[0])]


def digest_model(model: dict[str, Any]) -> str:
    """The digest of a manifest's model as its files are now.

    A model of the hub has the same digest wherever its cache is, and as a plain folder.
    """
    folder = Path(model["path"])
    return digest_folder(folder, model_files(folder) if "commit" in model else None)


def _describe_snapshot(hub: HubModel, path: str, commit: str) -> dict[str, Any]:
    origin = {"path": path, "hub": hub.id, "revision": hub.revision, "commit": commit}
    return {**origin, "digest": digest_model(origin)}
