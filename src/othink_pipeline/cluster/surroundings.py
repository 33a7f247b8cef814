"""What a run wants of every process that computes for it, and how one of Ray's enters that.

Of the project nothing but ``core`` is imported before that: libraries read the environment when
they are imported, and a node is unpickled by the driver's code or not at all.
"""

from __future__ import annotations

import logging
import logging.config
import os
import pickle
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.code import PACKAGE, code_digest, library_versions
from othink_pipeline.core.launchers import drop_launcher_variables
from othink_pipeline.core.locks import is_locked

logger = logging.getLogger(__name__)

SHIPPED = (
    *("AWS_", "AZURE_", "GOOGLE_", "DATABRICKS_", "GLOO_", "NCCL_"),
    *("DO_NOT_TRACK", "HF_", "MLFLOW_", "OTHINK_", "TOKENIZERS_", "TRANSFORMERS_"),
)
"""What the names of the driver's environment variables begin with that its workers need, too."""


class Surroundings(NamedTuple):
    """What a run wants of every process that computes for it. It can be pickled."""

    host: str
    """Name of the driver's machine."""
    project: str
    modules: tuple[str, ...]
    """Whose code, with all that it imports, has to be the driver's."""
    code: str
    """Its digest."""
    package: str
    """The folder that the driver has it from."""
    libraries: dict[str, str]
    variables: dict[str, str]
    """Of the environment. They travel with the tasks: what Ray itself is told, it shows."""
    tracking_uri: str
    logging: dict[str, Any]


def describe_surroundings(modules: Sequence[str]) -> Surroundings:
    """Those of this process, the driver; ``modules``: those of the nodes' functions."""
    import mlflow
    from kedro.framework.project import LOGGING

    variables = {name: value for name, value in os.environ.items() if name.startswith(SHIPPED)}
    return Surroundings(
        host=socket.gethostname(),
        project=os.getcwd(),
        modules=tuple(modules),
        code=code_digest(*modules),
        package=str(PACKAGE),
        libraries=library_versions(),
        variables=variables,
        tracking_uri=mlflow.get_tracking_uri(),
        logging=dict(LOGGING),
    )


def check_node(surroundings: bytes, marks: Sequence[str], needed: Sequence[str]) -> str | None:
    """What is wrong with the machine that this runs on; None when nothing is.

    Args:
        marks: a file of each shared folder, which the driver has made and holds locked.
        needed: folders that are only read.
    """
    here, place = f"machine {socket.gethostname()}", Path.cwd()
    try:
        enter(surroundings)
        for mark in marks:
            file = Path(mark)
            place = file.parent
            if not file.exists():
                return (
                    f"{here}: does not see what the driver has just written, {file}. The "
                    "project's folder, data included, must be one that all machines share; so "
                    "must the cache of the hub, where base_model.hub is set (export HF_HOME)."
                )
            if not is_locked(file):
                return (
                    f"{here}: {file}, which the driver holds locked, can be locked here, too. "
                    "Mount the shared folder with locks that reach all machines."
                )
            with tempfile.TemporaryFile(dir=place):
                pass
        for folder in needed:
            if not Path(folder).is_dir():
                return (
                    f"{here}: does not see the base model, {folder}. The cache of the hub must be "
                    "one that all machines share (export HF_HOME), or hold it on each of them."
                )
    except ConfigurationError as error:
        return error.message
    except OSError as error:
        return f"{here}: cannot read or write {error.filename or place} ({error.strerror})."
    return None


@cache  # once a process, unless it failed
def enter(surroundings: bytes) -> None:
    """Be a process of a run: its folder, its environment, its log.

    Raises:
        ConfigurationError: this machine has no such project, other code or other libraries, or the
            run's store is a file on another machine.
    """
    wanted: Surroundings = pickle.loads(surroundings)
    here = f"machine {socket.gethostname()}"
    if not Path(wanted.project, "pyproject.toml").is_file():
        raise ConfigurationError(
            f"{here}: no project in {wanted.project}. Its folder must be one that all machines "
            "share, under the same path."
        )
    os.chdir(wanted.project)
    if code_digest(*wanted.modules) != wanted.code:
        raise ConfigurationError(
            f"{here}: the code in {PACKAGE} is not the driver's in {wanted.package}. Start Ray "
            "there with the driver's .venv, or bring both to the same commit."
        )
    if (found := library_versions()) != wanted.libraries:
        names = sorted(found.keys() | wanted.libraries.keys())
        other = [
            f"{name} {found.get(name, 'not installed')} (driver: {wanted.libraries.get(name)})"
            for name in names
            if found.get(name) != wanted.libraries.get(name)
        ]
        raise ConfigurationError(
            f"{here}: other libraries than the driver's: {', '.join(other)}. Install "
            "requirements.lock there."
        )
    is_file = wanted.tracking_uri.startswith("sqlite:")
    if is_file and socket.gethostname() != wanted.host:
        raise ConfigurationError(
            f"mlflow.yml: server.mlflow_tracking_uri is a SQLite file of {wanted.host}, and {here} "
            "would write to it over the network, which spoils it. Start `mlflow server` and name "
            "its address in conf/local/mlflow.yml, or with --env in that of the environment."
        )
    drop_launcher_variables()  # of whatever `ray start` ran below
    os.environ.update(wanted.variables)
    os.environ["MLFLOW_TRACKING_URI"] = wanted.tracking_uri
    logging.config.dictConfig(wanted.logging)
    # As settings.py, which workers do not read.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")


def begin_task(surroundings: bytes, threads: int) -> None:
    """``enter``, to compute with so many threads until this task is done or cancelled."""
    # Below `ray start` in the background of a shell it is ignored; to cancel is to send it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    enter(surroundings)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if torch := sys.modules.get("torch"):  # it has read the number of an earlier task
        torch.set_num_threads(threads)
