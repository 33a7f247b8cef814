"""Kedro's data set of a manifest: a JSON file on disk, a typed block in the nodes."""

from __future__ import annotations

import json
from typing import Any, cast

from kedro.io import DatasetError
from kedro_datasets._typing import JSONPreview
from kedro_datasets.json import JSONDataset

from othink_pipeline.cells.manifests import (
    Checkpoint,
    CollectedTests,
    FailedCell,
    FailedTest,
    Predictions,
)
from othink_pipeline.cells.published_datasets import Published
from othink_pipeline.core.blocks import SAME_ENV, ConfigurationError
from othink_pipeline.core.manifests import Manifest
from othink_pipeline.data.manifests import Examples
from othink_pipeline.models.manifests import BaseModelCheckpoint, MadeModel

KINDS: dict[str, tuple[type[Manifest], str]] = {
    "examples": (Examples, "data_preparation"),
    "base_model": (BaseModelCheckpoint, "data_preparation"),
    "made_model": (MadeModel, "base_model"),
    "checkpoint": (Checkpoint, "cross_task"),
    "predictions": (Predictions, "evaluation"),
    "tests": (CollectedTests, "evaluation"),
}
"""Kind -> what it is, and the pipeline that makes it."""

FAILURES: dict[type[Manifest], type[Manifest]] = {Checkpoint: FailedCell, Predictions: FailedTest}
"""What stands in the place of those that can fail."""


class BadManifestError(ConfigurationError, DatasetError):
    """Of the latter kind, too: Kedro hands on no other as it is."""


class ManifestDataset(Published, JSONDataset):  # type: ignore[misc]  # it is not typed
    """Reads and writes one manifest."""

    def __init__(self, *, kind: str, **options: Any) -> None:
        """As ``JSONDataset``.

        Args:
            kind: a key of ``KINDS``.
        """
        super().__init__(**options)
        self._type, self._pipeline = KINDS[kind]

    def load(self) -> Manifest:
        """The manifest.

        Raises:
            BadManifestError: it is of another version, or a key is at fault.
        """
        remedy = f"Make it again: kedro run --pipelines={self._pipeline} {SAME_ENV}"
        failure = FAILURES.get(self._type, self._type)
        try:
            content = super().load.__wrapped__(self)  # Kedro logs one load, not two
            is_failure = isinstance(content, dict) and "failed" in content
            kind = failure if is_failure else self._type
            return kind.parse(content, str(self._filepath), remedy)
        except ConfigurationError as error:
            raise BadManifestError(error.message) from None
        except ValueError:
            raise BadManifestError(f"{self._filepath}: no JSON object. {remedy}") from None

    def save(self, data: Manifest) -> None:
        """Write the manifest."""
        super().save(data.to_json())

    def preview(self) -> JSONPreview:
        """What Kedro-Viz shows."""
        return JSONPreview(json.dumps(cast(Any, self.load).__wrapped__(self).to_json()))
