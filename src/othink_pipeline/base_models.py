"""Where the base models are that the grid starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from othink_pipeline.model_parameters import BaseModel
from othink_pipeline.reuse import MANIFEST, digest_folder, read_manifest
from othink_pipeline.validation import ConfigurationError


def find_base_model(base_model: BaseModel, number: int, remedy: str) -> dict[str, Any]:
    """The manifest of a base model, its files verified: path, digest and where it is from.

    Args:
        number: which of them.
        remedy: what to do where there is none; ends the error message.

    Raises:
        ConfigurationError: no model there, or files that differ from their manifest's digest.
    """
    assert base_model.path is not None
    path = base_model.path[number]
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        return {**read_manifest(folder, remedy), "path": path}
    if not (folder / "config.json").is_file():
        raise ConfigurationError(f"base_model.path: {path}: no model there. {remedy}")
    return {"path": path, "digest": digest_folder(folder)}
