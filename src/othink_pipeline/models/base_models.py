"""Where the base models are that the grid starts from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from othink_pipeline.core.blocks import SAME_ENV, ConfigurationError
from othink_pipeline.core.files import MANIFEST, digest_folder
from othink_pipeline.core.hub import fetch_model, find_model, model_files
from othink_pipeline.models.manifests import FoundModel, MadeModel
from othink_pipeline.models.parameters import BaseModel, HubModel

OTHER_MANIFEST = (
    f"If other code wrote its {MANIFEST}, delete that: the model stays the same, only the record "
    "of how it was made goes."
)


def find_base_model(base_model: BaseModel, number: int, remedy: str) -> FoundModel:
    """A base model, its files verified.

    A model of the hub is downloaded if need be.

    Args:
        number: which of them.
        remedy: what to do where there is none; ends the error message.

    Raises:
        ConfigurationError: no model there, files that differ from their manifest's digest, or the
            same model as one before it; or as ``fetch_model``.
    """
    if base_model.hub is not None:
        return _describe_snapshot(base_model.hub, *fetch_model(**base_model.hub.model_dump()))
    assert base_model.path is not None
    path = base_model.path[number]
    if (Path(path) / MANIFEST).is_file():
        MadeModel.read_folder(Path(path), f"{remedy.removesuffix('.')}. {OTHER_MANIFEST}")
    found = locate_base_model(base_model, number)
    if found is None:
        raise ConfigurationError(f"base_model.path: {path}: no model there. {remedy}")
    for earlier in range(number):
        other = locate_base_model(base_model, earlier)
        if other is not None and _are_one(other, found):
            raise ConfigurationError(
                f"base_model.path: {other.path} and {path} are the same model, made with the same "
                "seed: tests would count it twice. Make the second one with a seed of its own: "
                f"kedro run --pipelines=base_model --params=rebuild.seed={number},"
                f"rebuild.path={path} {SAME_ENV}"
            )
    return found


def _are_one(a: FoundModel, b: FoundModel) -> bool:
    """Whether two models are one, or would be but for how sums are rounded."""
    made_alike = (
        a.made is not None
        and b.made is not None
        and a.made.data == b.made.data
        and a.made.rebuild == b.made.rebuild.model_copy(update={"bf16": a.made.rebuild.bf16})
    )
    return made_alike or a.digest == b.digest


def locate_base_model(base_model: BaseModel, number: int) -> FoundModel | None:
    """As ``find_base_model``, but nothing is downloaded or verified; None where none is found."""
    if base_model.hub is not None:
        found = find_model(**base_model.hub.model_dump())
        return None if found is None else _describe_snapshot(base_model.hub, *found)
    assert base_model.path is not None
    path = base_model.path[number]
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        try:
            made = MadeModel.read(folder / MANIFEST, OTHER_MANIFEST)
        except ConfigurationError:
            return None  # told when the model itself is looked at
        return FoundModel(path=path, digest=made.digest, made=made)
    if not (folder / "config.json").is_file():
        return None
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    stamps = ((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return FoundModel(path=path, digest=_digest_plain(folder, tuple(stamps)))


@cache  # a large model takes seconds, and each base model is held against those before it
def _digest_plain(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """The digest of a folder whose files have these sizes and times."""
    return digest_folder(folder)


def base_model_folders(base_model: BaseModel) -> list[Path]:
    """The folders of all base models; none while that of the hub is not downloaded."""
    if base_model.hub is None:
        return [Path(path) for path in base_model.path or ()]
    found = find_model(**base_model.hub.model_dump())
    return [] if found is None else [Path(found[0])]


def digest_model(path: str, is_hubs: bool) -> str:
    """The digest of a model as its files are now.

    Args:
        is_hubs: it lies in the hub's cache. Its digest is the same wherever that is, and as that
            of a plain folder.
    """
    folder = Path(path)
    return digest_folder(folder, model_files(folder) if is_hubs else None)


def _describe_snapshot(hub: HubModel, path: str, commit: str) -> FoundModel:
    return FoundModel(
        path=path,
        digest=digest_model(path, is_hubs=True),
        hub=hub.id,
        revision=hub.revision,
        commit=commit,
    )
