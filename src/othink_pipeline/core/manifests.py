"""Manifests: what a finished piece of work is, in a closed block of a known version, as JSON.

What leaves a process for another one, or for next week's, is read strictly: what is missing,
unknown or of another version is told by file and key, and never guessed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError

from othink_pipeline.core.blocks import Block, ConfigurationError
from othink_pipeline.core.files import MANIFEST, digest_folder, read_json, write_json

VERSION: Literal[2] = 2
"""Of all manifests. To be raised when a key changes its meaning, goes, or comes without a default:
what was made before is then refused by name."""


Figure = Annotated[
    float,
    Field(allow_inf_nan=True),
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: None if math.isnan(value) else value, when_used="json"),
]
"""A number that may be unknown: NaN here, null in JSON, which has no NaN."""


class OtherVersionError(ConfigurationError):
    """A manifest was written by other code: it may be as good as ever, but not to this one."""


class Manifest(Block):
    """A block that is kept beside what it speaks of."""

    version: Literal[2] = VERSION

    def to_json(self) -> dict[str, Any]:
        """What a JSON file holds of it."""
        return self.model_dump(mode="json")

    @classmethod
    def parse(cls, content: Any, place: Path | str, remedy: str) -> Self:
        """The manifest that a JSON file holds.

        Args:
            content: as ``json`` reads it.
            place: the file; begins the error message.
            remedy: what to do where it is none; ends the error message.

        Raises:
            OtherVersionError: it is of another version.
            ConfigurationError: no object, or with the key that is at fault.
        """
        if not isinstance(content, dict):
            raise ConfigurationError(f"{place}: no JSON object. {remedy}")
        version = content.get("version")
        if version != VERSION:
            raise OtherVersionError(
                f"{place}: a manifest of version {version}; this code reads version {VERSION}. "
                f"{remedy}"
            )
        try:
            return cls.model_validate_json(json.dumps(content))  # in JSON lists are tuples, too
        except ValidationError as error:
            fault = error.errors()[0]
            key = ".".join(map(str, fault["loc"]))
            raise ConfigurationError(f"{place}: {key}: {fault['msg']}. {remedy}") from None

    @classmethod
    def read(cls, file: Path, remedy: str) -> Self:
        """The manifest in a file.

        Raises:
            ConfigurationError: no file, or as ``parse``.
        """
        content = read_json(file)
        if content is None:
            raise ConfigurationError(f"{file}: missing, or no JSON object. {remedy}")
        return cls.parse(content, file, remedy)

    def write(self, file: Path) -> None:
        """Write it so that the file is there as a whole or not at all."""
        write_json(file, self.to_json())


class FolderManifest(Manifest):
    """The manifest of a published folder: it stands in it and holds its digest."""

    digest: str
    """SHA-256; see ``files.digest_folder``."""

    @classmethod
    def read_folder(cls, folder: Path, remedy: str) -> Self:
        """The manifest in a folder, after checking that the folder still matches it.

        Raises:
            ConfigurationError: no folder, no manifest, or files that differ from its digest.
        """
        manifest = cls.read(folder / MANIFEST, remedy)
        if manifest.digest != digest_folder(folder):
            raise ConfigurationError(
                f"{folder}: its files differ from the digest in {MANIFEST} (corrupt or edited). "
                f"{remedy}"
            )
        return manifest

    @classmethod
    def write_folder(cls, folder: Path, **content: Any) -> Self:
        """Write the manifest of a folder, last of all its files; returns what was written."""
        manifest = cls(**content, digest=digest_folder(folder))
        manifest.write(folder / MANIFEST)
        return manifest
