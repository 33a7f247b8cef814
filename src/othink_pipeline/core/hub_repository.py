"""What is asked of the Hugging Face hub, and what its refusals mean."""

from __future__ import annotations

import errno
import shlex
from typing import Any, Literal, NamedTuple

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.redaction import redact_uri

MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""Weights, settings, chat template, and what tokenizers are made of."""

NO_MODEL_FILES = ("*/*", "consolidated*")
"""Other formats of the same weights, in folders of their own or, with some vendors, beside them."""

DATA_FILES = ("*.parquet", "*.jsonl", "*.json", "*.csv", "*.png", "*.jpg", "*.jpeg", "README.md")
"""What needs no code to be read; the README names splits and columns."""

_AGAIN = "Run again later: files that are there as a whole are not downloaded again."


class Repository(NamedTuple):
    """What is fetched, and which of its files."""

    kind: Literal["model", "dataset"]
    id: str
    revision: str

    def __str__(self) -> str:
        return f"{'model' if self.kind == 'model' else 'data set'} {self.id}"

    @property
    def page(self) -> str:
        """Where a browser finds it."""
        from huggingface_hub import constants

        prefix = "" if self.kind == "model" else "datasets/"
        return f"{redact_uri(constants.ENDPOINT)}/{prefix}{self.id}"

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

    def _patterns(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return (MODEL_FILES, NO_MODEL_FILES) if self.kind == "model" else (DATA_FILES, ())


def is_offline() -> bool:
    """Whether the environment forbids to ask the hub."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def refuse_offline(repository: Repository) -> None:
    """Refuse to ask the hub where the environment forbids it.

    Raises:
        ConfigurationError: with what downloads the repository elsewhere.
    """
    if is_offline():
        raise ConfigurationError(
            f"{repository}: revision {repository.revision} is not in the local cache as a whole, "
            "and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) forbids to download it. Unset it; or "
            f"{_elsewhere(repository)}"
        )


def _elsewhere(repository: Repository) -> str:
    from huggingface_hub import constants

    return (
        f"where there is a network, run\n  {repository.command}\nand copy the HF_HOME of there "
        f"(~/.cache/huggingface) to the one of here ({constants.HF_HOME})."
    )


def find_cause(error: BaseException) -> BaseException:
    """What was wrong, of an error that only says that nothing was found locally instead."""
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError

    while isinstance(error, DryRunError | LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    return error


def is_refused(error: BaseException) -> bool:
    """Whether the hub did answer, and will answer the same again."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return False
    status = error.response.status_code
    return status < 500 and status != 429


def explain(repository: Repository, error: BaseException) -> ConfigurationError:
    """What to do about an error of the hub's client; its own words may hold a signed address."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    login = "log in (hf auth login) or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
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
            f"{redact_uri(constants.ENDPOINT)} has none with this id, or it is private. Correct "
            f"the id; if it is private, {login} of an account that may read it."
        )
    elif isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        text = f"{redact_uri(constants.ENDPOINT)} answers with HTTP status {status}. "
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
            f"the download from {redact_uri(constants.ENDPOINT)} failed ({type(error).__name__}: "
            f"{said}). Check the network, HF_ENDPOINT and HTTPS_PROXY. {_AGAIN} Or "
            f"{_elsewhere(repository)}"
        )
    return ConfigurationError(f"{repository}: {text}")
