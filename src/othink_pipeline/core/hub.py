"""Models and data sets of the Hugging Face hub: downloaded once, then found in the local cache.

The cache is that of ``huggingface_hub`` (in HF_HOME), the address HF_ENDPOINT, the token that of
``hf auth login`` or HF_TOKEN. No code of a repository is run and no pickle is read: neither is so
much as downloaded. The libraries are imported inside the functions: the registry imports this
module.
"""

from __future__ import annotations

import errno
import logging
import shlex
import shutil
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import read_json
from othink_pipeline.core.redaction import redact_uri
from othink_pipeline.core.safetensors import read_weights
from othink_pipeline.core.units import describe_bytes

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""Weights, settings, chat template, and what tokenizers are made of."""

NO_MODEL_FILES = ("*/*", "consolidated*")
"""Other formats of the same weights, in folders of their own or, with some vendors, beside them."""

DATA_FILES = ("*.parquet", "*.jsonl", "*.json", "*.csv", "*.png", "*.jpg", "*.jpeg", "README.md")
"""What needs no code to be read; the README names splits and columns."""

_AGAIN = "Run again later: files that are there as a whole are not downloaded again."


def fetch_model(id: str, revision: str) -> tuple[str, str]:
    """The folder of a model's files and their commit; what is not in the cache is downloaded.

    Args:
        id: ``owner/name``.
        revision: a commit, tag or branch. Where the hub does not answer, a tag or branch stands
            for what it was when it was last fetched.

    Raises:
        ConfigurationError: no such model or revision, no access to it, no weights as safetensors,
            no network, no room.
    """
    folder = _fetch(_Repository("model", id, revision))
    return str(folder), folder.name


def find_model(id: str, revision: str) -> tuple[str, str] | None:
    """As ``fetch_model``, from the cache alone; None where it is not there as a whole."""
    folder = _find(_Repository("model", id, revision))
    return None if folder is None else (str(folder), folder.name)


def measure_model(id: str, revision: str) -> int:
    """Ask the hub for the bytes that ``fetch_model`` would download; config.json alone is fetched.

    Raises:
        ConfigurationError: as ``fetch_model``.
    """
    repository = _Repository("model", id, revision)
    try:
        return repository.missing_bytes()
    except ConfigurationError:
        raise
    except Exception as error:  # whatever the many layers below raise
        raise _explain(repository, _find_cause(error)) from error


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


def load_hub_dataset(
    id: str, revision: str, split: str, subset: str | None = None
) -> tuple[Dataset, Path]:
    """A split of a data set, memory-mapped, and its folder, named by the revision's commit.

    Args:
        id: ``owner/name``.
        revision: as of ``fetch_model``.
        subset: which of several (the hub's configurations).

    Raises:
        ConfigurationError: as ``fetch_model``; or nothing there that can be read without running
            code, several subsets and none named, no such split.
    """
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    repository = _Repository("dataset", id, revision)
    folder = _fetch(repository)
    try:
        splits = load_dataset(str(folder), subset, keep_in_memory=False)
    except Exception as error:  # whatever the many readers raise
        raise ConfigurationError(
            f"{repository}: does not load: {redact_uri(str(error))}. What is read without running "
            f"code of the repository: {', '.join(DATA_FILES[:-1])}. Many data sets have a copy as "
            "parquet: set revision: refs/convert/parquet. Of several subsets name one: set subset."
        ) from error
    if split not in splits:
        raise ConfigurationError(
            f"{repository}, revision {revision}: split = {split!r}: there is none. Allowed: "
            f"{', '.join(splits)}"
        )
    return splits[split], folder


class _Repository(NamedTuple):
    """What is fetched, and which of its files."""

    kind: Literal["model", "dataset"]
    id: str
    revision: str

    def __str__(self) -> str:
        return f"{'model' if self.kind == 'model' else 'data set'} {self.id}"

    @property
    def page(self) -> str:
        """Where a browser finds it."""
        return f"{_address()}/{'' if self.kind == 'model' else 'datasets/'}{self.id}"

    @property
    def command(self) -> str:
        """What downloads the same files anywhere else."""
        wanted, unwanted = self._patterns()
        kind = [] if self.kind == "model" else ["--repo-type=dataset"]
        options = [f"--include={each}" for each in wanted] + [f"--exclude={x}" for x in unwanted]
        command = ["hf", "download", self.id, f"--revision={self.revision}", *kind, *options]
        return shlex.join(command)

    def snapshot(self, bars: bool = False, **options: Any) -> Any:
        """Call ``snapshot_download`` for the files that are wanted; bars on a terminal alone."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils.tqdm import tqdm

        class Bar(tqdm):
            def __init__(self, *args: Any, **settings: Any) -> None:
                settings["disable"] = None if bars else True
                super().__init__(*args, **settings)  # type: ignore[no-untyped-call]

        wanted, unwanted = self._patterns()
        return snapshot_download(
            self.id,
            repo_type=self.kind,
            revision=self.revision,
            allow_patterns=list(wanted),
            ignore_patterns=list(unwanted),
            tqdm_class=Bar,
            **options,
        )

    def missing_bytes(self) -> int:
        """What would be downloaded, as the hub says.

        Raises:
            ConfigurationError: a model without weights as safetensors.
        """
        files = self.snapshot(dry_run=True)
        if self.kind == "model" and not any(f.filename.endswith(".safetensors") for f in files):
            raise ConfigurationError(
                f"{self}: no weights as safetensors at revision {self.revision}; pickles, which "
                "can run code, are not read. Set base_model.hub.revision to one that has them "
                f"(look at {self.page}/discussions), or convert the model with save_pretrained "
                "and set base_model.path to its folder."
            )
        if self.kind == "model":
            self._refuse_own_code()
        return sum(file.file_size or 0 for file in files if file.will_download)

    def _refuse_own_code(self) -> None:
        """Transformers refuses it, too, but after the download of all the weights."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError
        from transformers import CONFIG_MAPPING

        try:
            file = hf_hub_download(self.id, "config.json", revision=self.revision)
        except RemoteEntryNotFoundError:
            raise ConfigurationError(
                f"{self}: no config.json at revision {self.revision}: no model that transformers "
                "loads. Set base_model.hub to one that is."
            ) from None
        config = read_json(Path(file)) or {}
        if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING:
            raise ConfigurationError(
                f"{self}: model_type = {config.get('model_type')!r} runs code of its own (auto_map "
                "in config.json), which is never run here. Set base_model.hub to a model of a type "
                "that transformers has itself; many have a copy whose name ends in -hf."
            )

    def _patterns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (MODEL_FILES, NO_MODEL_FILES) if self.kind == "model" else (DATA_FILES, ())


def _fetch(repository: _Repository) -> Path:
    """The snapshot folder, after the download of what was missing."""
    from huggingface_hub import constants

    try:
        if missing := repository.missing_bytes():
            logger.info(
                "%s: downloading %s to %s (set HF_HOME for another place)",
                *(repository, describe_bytes(missing), constants.HF_HUB_CACHE),
            )
            _check_room(repository, missing)
        return Path(repository.snapshot(bars=missing > 0))
    except ConfigurationError:
        raise
    except Exception as error:  # whatever the many layers below raise
        cause = _find_cause(error)
        if _is_refused(cause) or (folder := _find(repository)) is None:
            raise _explain(repository, cause) from error
    if not constants.is_offline_mode():
        logger.warning(
            "%s: the hub does not answer (%s); revision %s is taken as it was fetched before: %s",
            *(repository, type(cause).__name__, repository.revision, folder.name),
        )
    return folder


def _check_room(repository: _Repository, missing: int) -> None:
    """Refuse what does not fit: ``huggingface_hub`` only warns, and fills the disk."""
    from huggingface_hub import constants

    # A data set is laid out anew beside what was downloaded, to be mapped into memory.
    needed = missing if repository.kind == "model" else 2 * missing
    cache = Path(constants.HF_HUB_CACHE).absolute()
    free = shutil.disk_usage(next(each for each in (cache, *cache.parents) if each.exists())).free
    if free < needed:
        raise ConfigurationError(
            f"{repository}: needs {describe_bytes(needed)} on the disk of {cache}, which has "
            f"{describe_bytes(free)} free. Free some space, or set HF_HOME to a folder on another "
            "disk."
        )


def _find(repository: _Repository) -> Path | None:
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


def _find_cause(error: BaseException) -> BaseException:
    """What was wrong, of an error that only says that nothing was found locally instead."""
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError

    while isinstance(error, DryRunError | LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    return error


def _is_refused(error: BaseException) -> bool:
    """Whether the hub did answer, and will answer the same again."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return False
    status = error.response.status_code
    return status < 500 and status != 429


def _explain(repository: _Repository, error: BaseException) -> ConfigurationError:
    """What to do about an error of the hub's client; its own words may hold a signed address."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    login = "log in (hf auth login) or set HF_TOKEN"
    elsewhere = (
        f"where there is a network, run\n  {repository.command}\nand copy the HF_HOME of there "
        f"(~/.cache/huggingface) to the one of here ({constants.HF_HOME})."
    )
    if constants.is_offline_mode():
        text = (
            f"revision {repository.revision} is not in the local cache as a whole, and "
            "HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids to download it. Unset it; or "
            f"{elsewhere}"
        )
    elif isinstance(error, GatedRepoError):
        token = "the token in use may not read it" if get_token() else f"no token is set: {login}"
        text = (
            f"gated, and {token}. Accept its terms on {repository.page} with the account that the "
            "token belongs to; some are then granted by hand."
        )
    elif isinstance(error, RevisionNotFoundError):
        text = (
            f"revision = {repository.revision!r}: there is none. Allowed: a whole commit, tag or "
            f"branch of {repository.page}/commits/main"
        )
    elif isinstance(error, RepositoryNotFoundError):
        text = (
            f"{_address()} has none with this id, or it is private. Correct the id; if it is "
            f"private, {login} of an account that may read it."
        )
    elif isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        text = f"{_address()} answers with HTTP status {status}. "
        text += f"The token is not accepted: {login}." if status in (401, 403) else _AGAIN
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        text = (
            f"no room left on the disk of {constants.HF_HOME}. Free some space, or set HF_HOME to "
            f"a folder on another disk. {_AGAIN}"
        )
    elif isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        text = f"{error.filename}: {error.strerror}. Set HF_HOME to a folder that can be written."
    else:
        said = redact_uri(str(error)).partition("\n")[0]
        text = (
            f"the download from {_address()} failed ({type(error).__name__}: {said}). Check the "
            f"network, HF_ENDPOINT and HTTPS_PROXY. {_AGAIN} Or {elsewhere}"
        )
    return ConfigurationError(f"{repository}: {text}")


def _address() -> str:
    from huggingface_hub import constants

    return redact_uri(constants.ENDPOINT)
