"""The manifests of base models: one that the project made, and one as it is used."""

from __future__ import annotations

from othink_pipeline.core.manifests import FolderManifest, Manifest
from othink_pipeline.models.parameters import MiniModel


class MadeModel(FolderManifest):
    """How a mini Qwen2-VL was made, and what it can do."""

    made_by: str
    """The command."""
    key: str | None = None
    """Of all that it was made of; None of one that was made before there were such keys."""
    code: dict[str, str]
    rebuild: MiniModel
    facts: dict[str, int | float]
    data: dict[str, str]
    """Task -> digest of the examples that it was trained on."""
    measured: dict[str, dict[str, int | float]]
    """Task -> rates on the validation split, by how the model was made to answer."""


class FoundModel(Manifest):
    """A base model that is there: where, which, and how it was made if the project made it."""

    path: str
    digest: str
    hub: str | None = None
    """The repository's id; this and the next two are None for a plain folder."""
    revision: str | None = None
    commit: str | None = None
    made: MadeModel | None = None

    @property
    def origin(self) -> dict[str, str]:
        """What says which model it is."""
        names = {"path", "digest", "hub", "revision", "commit"}
        return self.model_dump(include=names, exclude_none=True)

    @property
    def is_hubs(self) -> bool:
        """It lies in the hub's cache."""
        return self.commit is not None


class BaseModelCheckpoint(FoundModel):
    """A base model as cells start from it and as it is tested: it has an MLflow run."""

    run_id: str
    model_id: str
    """Of the MLflow logged model."""

    @property
    def updates(self) -> int:
        """So many have made it out of the base model."""
        return 0

    @property
    def base_digest(self) -> str:
        """The digest of the base model that it comes from: itself."""
        return self.digest

    @property
    def base_path(self) -> str | None:
        """It is whole."""
        return None
