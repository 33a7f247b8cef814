"""Models and data sets of the Hugging Face hub: downloaded once, then found in the local cache.

The cache is that of ``huggingface_hub`` (in HF_HOME), the address HF_ENDPOINT, the token that of
``hf auth login`` or HF_TOKEN. No code of a repository is run and no pickle is read: neither is so
much as downloaded. The libraries are imported inside the functions: the registry imports this
module.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import read_json
from othink_pipeline.core.hub_repository import (
    DATA_FILES,
    MODEL_FILES,
    NO_MODEL_FILES,
    Repository,
    explain,
    find_cause,
    is_offline,
    is_refused,
    refuse_offline,
)
from othink_pipeline.core.redaction import redact_uri
from othink_pipeline.core.safetensors import read_weights

if TYPE_CHECKING:
    from datasets import Dataset
    from huggingface_hub import DryRunFileInfo

logger = logging.getLogger(__name__)


def fetch_model(id: str, revision: str) -> tuple[str, str]:
    """The folder of a model's files and their commit; what is not in the cache is downloaded.

    Args:
        id: ``owner/name``.
        revision: a commit, tag or branch. Where the hub does not answer, a tag or branch stands
            for what it was when it was last fetched.

    Raises:
        ConfigurationError: no such model or revision, no access to it, no weights as safetensors,
            a model that runs code of its own, no network, no room.
    """
    folder = _fetch(Repository("model", id, revision))
    return str(folder), folder.name


def find_model(id: str, revision: str) -> tuple[str, str] | None:
    """As ``fetch_model``, from the cache alone; None where it is not there as a whole."""
    folder = _find(Repository("model", id, revision))
    return None if folder is None else (str(folder), folder.name)


def measure_model(id: str, revision: str) -> int:
    """Ask the hub, which is all that it does, for the bytes that ``fetch_model`` would download.

    Raises:
        ConfigurationError: as ``fetch_model``.
    """
    repository = Repository("model", id, revision)
    refuse_offline(repository)
    try:
        files = repository.snapshot(dry_run=True)
    except Exception as error:  # whatever the many layers below raise
        raise explain(repository, find_cause(error)) from error
    _check_files(repository, files)
    return _missing_bytes(files)


def model_files(folder: Path) -> list[Path]:
    """The files of a snapshot that make the model.

    The cache is shared: other programs may have put more files of the repository beside them.
    """
    return [
        file
        for file in sorted(folder.iterdir())
        if any(fnmatchcase(file.name, pattern) for pattern in MODEL_FILES)
        and not any(fnmatchcase(file.name, pattern) for pattern in NO_MODEL_FILES)
    ]


def load_hub_dataset(id: str, revision: str, split: str) -> tuple[Dataset, str]:
    """A split of a data set, memory-mapped, and the commit that the revision stood for.

    Args:
        id: ``owner/name``.
        revision: as of ``fetch_model``.

    Raises:
        ConfigurationError: as ``fetch_model``; or nothing there that can be read without running
            code, several subsets, no such split.
    """
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    repository = Repository("dataset", id, revision)
    folder = _fetch(repository)
    try:
        splits = load_dataset(str(folder), keep_in_memory=False)
    except Exception as error:  # whatever the many readers raise
        raise ConfigurationError(
            f"{repository}: does not load: {redact_uri(str(error))}. A data set with several "
            "subsets, or one that needs code of its own, has to be saved as a folder "
            "(Dataset.save_to_disk): then write kind: folder for its source."
        ) from error
    if split not in splits:
        raise ConfigurationError(
            f"{repository}, revision {revision}: split = {split!r}: there is none. Allowed: "
            f"{', '.join(splits)}"
        )
    return splits[split], folder.name


def _fetch(repository: Repository) -> Path:
    """The snapshot folder, after the download of what was missing."""
    if is_offline() and (folder := _find(repository)) is not None:
        return folder
    refuse_offline(repository)
    try:
        files = repository.snapshot(dry_run=True)
    except Exception as error:
        cause = find_cause(error)
        if is_refused(cause) or (folder := _find(repository)) is None:
            raise explain(repository, cause) from error
        logger.warning(
            "%s: the hub does not answer (%s); revision %s is taken as it was fetched before: %s",
            *(repository, type(cause).__name__, repository.revision, folder.name),
        )
        return folder
    _check_files(repository, files)
    if missing := _missing_bytes(files):
        _check_room(repository, missing)
    try:
        return Path(repository.snapshot(bars=missing > 0))
    except Exception as error:
        raise explain(repository, find_cause(error)) from error


def _find(repository: Repository) -> Path | None:
    """The snapshot folder, if all that is wanted is in the cache."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import (
        CachedRepoTreeNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        folder = Path(repository.snapshot(local_files_only=True))
        if repository.kind == "dataset":
            # Else a folder with some of its parts would pass for the whole.
            get_cached_repo_tree(repository.id, repo_type="dataset", revision=folder.name)
        else:
            read_weights(folder)
    except (LocalEntryNotFoundError, CachedRepoTreeNotFoundError, ConfigurationError):
        return None
    except HFValidationError:  # no id at all: told when the hub is asked
        return None
    return folder


def _check_files(repository: Repository, files: Sequence[DryRunFileInfo]) -> None:
    """Refuse a repository without what is needed, before the large files are downloaded."""
    names = [file.filename for file in files]
    if repository.kind == "dataset":
        if not set(names) - {"README.md", "dataset_infos.json"}:
            raise ConfigurationError(
                f"{repository}: no file that can be read without running code of the repository: "
                f"{', '.join(DATA_FILES[:-1])}. Many data sets have a copy as parquet: set "
                "revision: refs/convert/parquet. Else save it as a folder and write kind: folder "
                "for its source."
            )
        return
    if not any(name.endswith(".safetensors") for name in names):
        raise ConfigurationError(
            f"{repository}: no weights as safetensors at revision {repository.revision}; pickles, "
            "which can run code, are not read. Set base_model.hub.revision to one that has them "
            f"(look at {repository.page}/discussions), or convert the model with "
            "save_pretrained and set base_model.path to its folder."
        )
    if "config.json" not in names:
        raise ConfigurationError(
            f"{repository}: no config.json at revision {repository.revision}: no model that "
            "transformers loads. Set base_model.hub to one that is."
        )
    _refuse_own_code(repository, files[names.index("config.json")].commit_hash)


def _refuse_own_code(repository: Repository, commit: str) -> None:
    from huggingface_hub import hf_hub_download

    try:
        file = hf_hub_download(repository.id, "config.json", revision=commit)
    except Exception as error:
        raise explain(repository, find_cause(error)) from error
    config = read_json(Path(file)) or {}
    if "auto_map" not in config:
        return
    from transformers import CONFIG_MAPPING

    if config.get("model_type") not in CONFIG_MAPPING:
        raise ConfigurationError(
            f"{repository}: model_type = {config.get('model_type')!r} runs code of its own "
            "(auto_map in config.json), which is never run here. Set base_model.hub to a model of "
            "a type that transformers has itself; many have a copy whose name ends in -hf."
        )


def _missing_bytes(files: Sequence[DryRunFileInfo]) -> int:
    return sum(file.file_size or 0 for file in files if file.will_download)


def _check_room(repository: Repository, missing: int) -> None:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).absolute()
    logger.info(
        "%s: downloading %s to %s (set HF_HOME for another place)",
        *(repository, _size(missing), cache),
    )
    # A data set is laid out anew beside what was downloaded, to be mapped into memory.
    needed = missing if repository.kind == "model" else 2 * missing
    free = shutil.disk_usage(next(each for each in (cache, *cache.parents) if each.exists())).free
    if free < needed:
        raise ConfigurationError(
            f"{repository}: needs {_size(needed)} on the disk of {cache}, which has {_size(free)} "
            "free. Free some space, or set HF_HOME to a folder on another disk."
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
