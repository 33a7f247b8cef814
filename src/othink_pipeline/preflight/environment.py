"""Checks before a run starts: what would stop it later must stop it now, in one message.

These need no torch and take no time; `compatibility.py` has those that load the model.
"""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import psutil  # type: ignore[import-untyped]
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.code import PACKAGE
from othink_pipeline.core.files import digest_folder
from othink_pipeline.core.launchers import drop_launcher_variables
from othink_pipeline.core.redaction import redact_uri
from othink_pipeline.preflight.disk import nearest
from othink_pipeline.preflight.rows import Row, refuse

if TYPE_CHECKING:
    from mlflow.entities import Experiment

logger = logging.getLogger(__name__)

_SQLITE = "sqlite:///"
_NETWORKS = (
    *("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "wekafs", "fuse."),
    *("panfs", "afs", "9p", "virtiofs", "orangefs", "pvfs2", "gfs2", "ocfs2"),
)
"""What the types of file systems begin with that several machines may mount."""
_ANSWER_S = 3.0
"""How long a server takes to answer at most."""
_URI_KEY = "mlflow.yml: server.mlflow_tracking_uri"
_ARTIFACTS_KEY = "mlflow.yml: tracking.experiment.create_experiment_kwargs.artifact_location"
_OR_ELSEWHERE = (
    "or name another place (conf/local/mlflow.yml, or with --env that of the environment, "
    "overrides conf/base)."
)


def check_folders(places: Mapping[str, Path]) -> list[Row]:
    """Check that each folder can be written, or made: a row a key."""
    rows = []
    for key, place in places.items():
        try:
            _check_folder(key, str(place), nearest(place), "or name another in the parameters.")
        except ConfigurationError as error:
            rows.append(Row(key, "FAILED", error.message))
        else:
            rows.append(Row(key, "ok", f"{place} can be written"))
    return rows


def anchor_store(uri: str, project: Path) -> str:
    """Make the path in a SQLite URI absolute.

    SQLite takes a relative one from the working folder: `kedro run` in a sub-folder of the
    project, or a worker process elsewhere, would open a second, empty store.
    """
    if not uri.startswith(_SQLITE):
        return uri
    path, query = _split_query(uri.removeprefix(_SQLITE))
    return f"{_SQLITE}{(project / path).as_posix()}{query}"


def move_credentials(uri: str) -> str:
    """The address of a server without user and password, which go to MLflow's own variables.

    MLflow shows the address in its errors, on the screen and in its records.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def check_store(uri: str, artifact_location: str | None, project: Path) -> None:
    """Check that a tracking store and its artifact folder can be written, without MLflow.

    Args:
        uri: tracking URI; paths in it may be relative to the project.
        artifact_location: where a new experiment keeps its artifacts; None leaves it to MLflow.

    Raises:
        ConfigurationError: with the key, its value and the remedy.
    """
    parts = urlsplit(uri)
    if uri.startswith(_SQLITE):
        _check_sqlite(uri, project)
    elif folder := _local_folder(uri, project):
        _check_folder(_URI_KEY, uri, nearest(folder), _OR_ELSEWHERE)
    elif parts.hostname is not None:
        _check_server(uri)
    if folder := _local_folder(artifact_location or "", project):
        _check_folder(_ARTIFACTS_KEY, str(artifact_location), nearest(folder), _OR_ELSEWHERE)


def check_artifacts(experiment: Experiment, asked: str | None, project: Path) -> None:
    """Check that an experiment takes artifacts; a warning says if they go elsewhere than asked.

    They go where they were to go when it was made: before the project was moved, or by somebody
    else, whose machine it may have been.

    Args:
        asked: where a new experiment would keep them; None leaves it to MLflow.

    Raises:
        ConfigurationError: with the folder and the remedy.
    """
    name, location = experiment.name, experiment.artifact_location
    folder = _local_folder(location, project)
    remedy = "name another experiment (mlflow.yml: tracking.experiment.name)."
    if folder is not None:
        key = f"MLflow experiment {name!r}: artifact_location"
        _check_folder(key, location, nearest(folder), f"or {remedy}")
    if asked is not None and (_local_folder(asked, project) or asked) != (folder or location):
        logger.warning(
            "MLflow experiment %r keeps artifacts (report, figures, samples) in %s since it was "
            "made, whatever artifact_location says now (%s). To have them elsewhere %s",
            *(name, location, asked, remedy),
        )


def check_project(project: Path) -> None:
    """Check that the project's path can stand in the address of a store, and that its code runs.

    Raises:
        ConfigurationError: it holds a character that means something else there; or what runs is
            the code of another clone.
    """
    if bad := sorted(set("%?#") & set(str(project))):
        raise ConfigurationError(
            f"{project}: the project's path holds {' and '.join(map(repr, bad))}, which mean "
            "something else in the addresses of MLflow's stores. Rename the folder."
        )
    own = project / "src" / PACKAGE.name
    if own.is_dir() and not own.samefile(PACKAGE) and _sources(own) != _sources(PACKAGE):
        raise ConfigurationError(
            f"{project}: this `kedro` runs the code in {PACKAGE}, not the project's in {own}: its "
            ".venv is another clone's, or was copied or moved. Call make in this folder (make "
            "demo), which sets up a .venv where it has none of its own, and take its kedro "
            "(.venv/bin/kedro)."
        )


def _sources(package: Path) -> str:
    return digest_folder(package, package.rglob("*.py"))


def settle_mlflow_variables(named: str | None) -> None:
    """Say which of MLflow's own variables do not count here, and drop those that break a run.

    Args:
        named: the tracking store of mlflow.yml, as MLflow is given it; None where it names none,
            and the variable counts.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if named is not None and given not in (None, named):
        logger.warning(
            "MLFLOW_TRACKING_URI does not count: records go to %s, as mlflow.yml says. For the "
            "variable to count set server.mlflow_tracking_uri: null there.",
            redact_uri(named),
        )
    for name, key in {
        "MLFLOW_EXPERIMENT_NAME": "tracking.experiment.name",
        "MLFLOW_RUN_ID": "tracking.run.id",
    }.items():
        if os.environ.pop(name, None) is not None:
            logger.warning("%s does not count: mlflow.yml has %s.", name, key)


def check_inputs(pipeline: Pipeline, catalog: DataCatalog, options: str = "") -> None:
    """Check that each file that the pipeline reads and does not make is there.

    Args:
        pipeline: what is about to run, filters applied.
        options: what the remedy's command must repeat, e.g. ``--env=paper``.

    Raises:
        ConfigurationError: with every missing dataset, its file and the command that makes it.
    """
    missing = []
    for name in sorted(pipeline.inputs()):
        if name.startswith("params:") or name == "parameters" or name not in catalog:
            continue  # Kedro itself names the ones that the catalog does not know
        dataset = catalog[name]
        path = getattr(dataset, "_filepath", None) or getattr(dataset, "_path", None)
        if path is not None and not dataset.exists():
            missing.append(f"  {name}: {path}\n    {_remedy(name, options)}")
    if missing:
        raise ConfigurationError("The pipeline reads what is not there:\n" + "\n".join(missing))


def check_runner(runner: str) -> None:
    """Refuse runners that run several nodes at a time, and launchers of several processes.

    What launchers of a single one have set in the environment is dropped, with a warning.

    Cells in one process would draw from one random generator, each run otherwise than the last;
    in several they would fight for the same threads, ten times slower than one after the other.

    Args:
        runner: its name or representation, as in Kedro's ``run_params``.

    Raises:
        ConfigurationError: a runner that does so.
    """
    if os.environ.get("WORLD_SIZE", "1") not in ("", "1"):
        raise ConfigurationError(
            f"WORLD_SIZE = {os.environ['WORLD_SIZE']}: a `kedro run` is one process, and several "
            "that were launched together would wait for each other's cells for ever. Start it "
            "without accelerate or torchrun."
        )
    if dropped := drop_launcher_variables():
        logger.warning("variables of a launcher do not count here: %s", ", ".join(dropped))
    for name in ("ThreadRunner", "ParallelRunner"):
        if name in runner:
            raise ConfigurationError(
                f"--runner: {name} runs several cells at a time, which would share random numbers "
                "or fight for threads. Leave it out (SequentialRunner). To use more cores, GPUs "
                "or machines: --runner=othink_pipeline.cluster.runner.RayRunner "
                "(docs/cluster.md)"
            )


def check_outputs(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Check that what a pipeline makes can be written.

    Raises:
        ConfigurationError: with every folder that cannot.
    """
    names: dict[Path, str] = {}
    for name in sorted(pipeline.all_outputs()):
        dataset = catalog.get(name)  # by pattern, too
        path = getattr(dataset, "_filepath", None)
        if path is not None and getattr(dataset, "_protocol", "file") == "file":
            names.setdefault(nearest(Path(path).absolute().parent), f"catalog.yml: {name}")
    refuse(check_folders({key: place for place, key in names.items()}))


def _check_sqlite(uri: str, project: Path) -> None:
    path, _ = _split_query(uri.removeprefix(_SQLITE))
    file = project / path
    _check_folder(_URI_KEY, uri, nearest(file.parent), _OR_ELSEWHERE)
    if "SLURM_ARRAY_TASK_ID" in os.environ and (kind := _network(nearest(file.parent))):
        raise ConfigurationError(
            f"{_URI_KEY} = {uri!r}: {file} is on a network file system ({kind}), where a SQLite "
            "file breaks when the jobs of a SLURM array write to it from several machines. Start "
            "`mlflow server` and name its address (conf/local/mlflow.yml, or with --env that of "
            "the environment)."
        )
    if not file.exists():
        return  # MLflow makes it, with the folders above it
    try:
        # A write that is taken back: nothing changes in the file.
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=10)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("PRAGMA user_version = 1")
            database.rollback()
    except sqlite3.Error as error:
        raise ConfigurationError(
            f"{_URI_KEY} = {uri!r}: {file} is no SQLite database that can be written ({error}). "
            f"Move it away, or make it writable, {_OR_ELSEWHERE}"
        ) from None


def _network(folder: Path) -> str | None:
    """The file system of a folder, if other machines may have it, too."""
    place = folder.resolve()
    mounts = {
        Path(each.mountpoint): each.fstype
        for each in psutil.disk_partitions(all=True)
        if place.is_relative_to(each.mountpoint)
    }
    kind = mounts[max(mounts, key=lambda mount: len(mount.parts))] if mounts else ""
    return kind if kind.startswith(_NETWORKS) else None


def _check_folder(key: str, value: str, folder: Path, or_else: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"{key} = {value!r}: cannot write to {folder} ({error.strerror}). "
            f"Make it a writable folder, {or_else}"
        ) from None


def _local_folder(location: str, project: Path) -> Path | None:
    """The folder that a path or a file's address names; None for one of another kind."""
    parts = urlsplit(location)
    if not parts.path or parts.scheme not in ("", "file"):
        return None
    return project / url2pathname(parts.path)


def _check_server(uri: str) -> None:
    parts, shown = urlsplit(uri), f"{_URI_KEY} = {redact_uri(uri)!r}"
    ports = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
    try:
        port = parts.port or ports.get(parts.scheme.partition("+")[0])
    except ValueError:
        raise ConfigurationError(
            f"{shown}: its port is no number from 1 to 65535. Correct it, {_OR_ELSEWHERE}"
        ) from None
    if port is None:
        return  # a hosted service under a name of its own, such as databricks
    try:
        socket.create_connection((parts.hostname, port), timeout=_ANSWER_S).close()
    except OSError as error:
        raise ConfigurationError(
            f"{shown}: {parts.hostname}:{port} does not answer ({error}). "
            f"Start the server, {_OR_ELSEWHERE}"
        ) from None


def _split_query(path: str) -> tuple[str, str]:
    path, mark, query = path.partition("?")
    return path, mark + query


def _remedy(name: str, options: str) -> str:
    """The command of the smallest pipeline that makes a dataset."""
    pipelines.set_requested(None)
    makers = {key: len(p.nodes) for key, p in pipelines.items() if name in p.all_outputs()}
    if not makers:
        return (
            "No pipeline of this environment makes it. Make it in the environment that trains "
            "(globals.yml: trained), or correct the path in catalog.yml."
        )
    maker = min(makers, key=lambda key: makers[key])
    return f"Make it with: kedro run --pipelines={maker}{options}"
