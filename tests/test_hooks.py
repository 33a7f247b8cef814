"""The checks before a run, and the ends that a run can come to."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from kedro.config import OmegaConfigLoader
from kedro.framework.hooks import hook_impl
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from kedro_mlflow.framework.hooks.mlflow_hook import mlflow_hook
from mlflow import MlflowClient
from mlflow.entities import Experiment
from pandas import DataFrame

from othink_pipeline import cli
from othink_pipeline.cells.accelerate_config import LAUNCHER_VARIABLE, read_launcher
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.manifests import FailedCell
from othink_pipeline.cells.progress import LEFT_VARIABLE
from othink_pipeline.cells.train import RUN_VARIABLE
from othink_pipeline.cluster.surroundings import describe_surroundings
from othink_pipeline.config_loader import GridConfigLoader
from othink_pipeline.core import code
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.hooks import (
    CellsFailedError,
    FailureHooks,
    PreflightHooks,
    ScreenHooks,
    StoreHooks,
    TrackingHooks,
)
from othink_pipeline.pipelines.wiring import BoundNode, bind
from othink_pipeline.preflight import disk, environment
from othink_pipeline.preflight.plan import Planned
from othink_pipeline.tracking import lifecycle, runs, views
from tests.support import commands
from tests.support.manifests import checkpoint_of, shipped_method
from tests.support.store import open_store

PROJECT = Path(__file__).parents[1]
TWO_NODES = Pipeline([Node(list, None, "a", name="first"), Node(len, "a", "b", name="second")])


@pytest.fixture(autouse=True)
def _working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Come back from where the hooks go, and leave the grid of earlier tests."""
    monkeypatch.chdir(PROJECT)
    monkeypatch.setattr(GridConfigLoader, "current", None)
    pipelines.configure("othink_pipeline.pipeline_registry")


def run_params(folder: Path, **more: Any) -> dict[str, Any]:
    ran = {"project_path": str(folder), "env": None, "pipeline_names": None}
    return {**ran, "runner": "SequentialRunner", **more}


# --- The tracking store


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "sqlite:///new/folder/mlflow.db", "mlruns"])
def test_a_store_that_can_be_made_passes_and_is_not_made(uri: str, tmp_path: Path) -> None:
    environment.check_store(uri, "mlartifacts", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_store_in_use_passes(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "mlflow.db").execute("CREATE TABLE t (x)")
    before = (tmp_path / "mlflow.db").read_bytes()
    environment.check_store("sqlite:///mlflow.db", None, tmp_path)
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("no database " * 100)
    with pytest.raises(ConfigurationError) as error:
        environment.check_store("sqlite:///mlflow.db", None, tmp_path)
    for part in ("server.mlflow_tracking_uri", "sqlite:///mlflow.db", "not a database", "Move it"):
        assert part in error.value.message


def test_a_database_that_is_only_readable_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite3.connect(tmp_path / "mlflow.db").execute("CREATE TABLE t (x)")
    connect = sqlite3.connect
    # Root may write to any file, so the mode is what makes it read-only here.
    monkeypatch.setattr(
        environment.sqlite3,
        "connect",
        lambda file, **rest: connect(file.replace("mode=rw", "mode=ro"), **rest),
    )
    with pytest.raises(ConfigurationError, match="readonly"):
        environment.check_store("sqlite:///mlflow.db", None, tmp_path)


def test_the_jobs_of_an_array_do_not_share_a_database_over_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = {"/": "nfs4", str(tmp_path.resolve()): "ext4", str(tmp_path.resolve() / "net"): "nfs4"}
    partitions = [SimpleNamespace(mountpoint=at, fstype=kind) for at, kind in mounts.items()]
    monkeypatch.setattr(environment.psutil, "disk_partitions", lambda all: partitions)
    (tmp_path / "net").mkdir()
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    environment.check_store("sqlite:///net/mlflow.db", None, tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    environment.check_store("sqlite:///mlflow.db", None, tmp_path)
    with pytest.raises(ConfigurationError, match=r"network file system \(nfs4\).*mlflow server"):
        environment.check_store("sqlite:///net/mlflow.db", None, tmp_path)


@pytest.mark.parametrize("uri", ["sqlite:///taken/mlflow.db", "taken/mlruns"])
def test_a_store_below_a_file_is_named(uri: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigurationError, match=r"server\.mlflow_tracking_uri") as error:
        environment.check_store(uri, None, tmp_path)
    assert str(tmp_path / "taken") in error.value.message


def test_an_artifact_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlartifacts").write_text("")
    with pytest.raises(ConfigurationError, match="artifact_location = 'mlartifacts'"):
        environment.check_store("sqlite:///mlflow.db", "mlartifacts", tmp_path)
    environment.check_store("sqlite:///mlflow.db", "s3://bucket/mlartifacts", tmp_path)


@pytest.mark.parametrize(
    ("location", "asked", "told"),
    [
        ("{project}/mlartifacts", "mlartifacts", False),
        ("file://{project}/mlartifacts", "mlartifacts", False),
        ("file://{project}/a%20b", "a b", False),
        ("mlflow-artifacts:/1", None, False),
        ("{project}/before/it/moved/mlartifacts", "mlartifacts", True),
        ("{project}/mlartifacts", "s3://bucket/mlartifacts", True),
        ("s3://bucket/mlartifacts", "mlartifacts", True),
    ],
)
def test_artifacts_that_go_elsewhere_than_asked_are_told(
    location: str, asked: str | None, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment = Experiment("1", "mine", location.format(project=tmp_path), "active")
    environment.check_artifacts(experiment, asked, tmp_path)
    assert ("another experiment (mlflow.yml: tracking.experiment.name)" in caplog.text) == told
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_experiment_takes_no_artifacts_is_refused(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else made it, or the project was moved: what is configured now can be written."""
    (tmp_path / "file").write_text("")
    location = f"file://{tmp_path}/file/mlartifacts"
    experiment_id = MlflowClient().create_experiment("theirs", location)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)
    shutil.copytree(PROJECT / "conf" / "base", tmp_path / "conf" / "base")
    (tmp_path / "conf" / "local").mkdir()
    hooks = PreflightHooks()
    hooks.after_context_created(context_of(tmp_path, tmp_path / "conf"))

    def start(name: str) -> None:
        params = run_params(tmp_path, pipeline_names=[name])
        hooks.before_pipeline_run(params, TWO_NODES, DataCatalog())

    for name in ("cross_task", "preflight"):
        with pytest.raises(ConfigurationError, match=r"tracking\.experiment\.name") as error:
            start(name)
        told = f"MLflow experiment 'theirs': artifact_location = '{location}': cannot write to "
        assert f"{told}{tmp_path}/file" in error.value.message
    start("report")  # gives it nothing


@pytest.mark.parametrize("port", ["50OO", "99999"])
def test_a_port_that_is_none_is_named(port: str, tmp_path: Path) -> None:
    told = rf"server\.mlflow_tracking_uri = 'postgresql://\*\*\*@host:{port}/db': its port is no"
    with pytest.raises(ConfigurationError, match=told):
        environment.check_store(f"postgresql://me:secret@host:{port}/db", None, tmp_path)


@pytest.mark.parametrize(
    ("uri", "anchored"),
    [
        ("sqlite:///mlflow.db", "sqlite:////project/mlflow.db"),
        ("sqlite:///a/b.db?timeout=60", "sqlite:////project/a/b.db?timeout=60"),
        ("sqlite:////elsewhere/mlflow.db", "sqlite:////elsewhere/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("mlruns", "mlruns"),  # kedro-mlflow anchors folders itself
    ],
)
def test_a_relative_database_belongs_to_the_project(uri: str, anchored: str) -> None:
    assert environment.anchor_store(uri, Path("/project")) == anchored


def context_of(project: Path, conf: Path, env: str = "local") -> Any:
    loader = OmegaConfigLoader(str(conf), base_env="base", default_run_env="local", env=env)
    return SimpleNamespace(config_loader=loader, project_path=project)


def test_the_shipped_configuration_records_at_the_project_root(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "conf" / "base", tmp_path / "conf" / "base")
    (tmp_path / "conf" / "local").mkdir()
    context = context_of(tmp_path, tmp_path / "conf")
    PreflightHooks().after_context_created(context)
    assert Path.cwd() == tmp_path
    settings = context.config_loader["mlflow"]
    assert settings["server"]["mlflow_tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db?timeout=60"
    experiment = settings["tracking"]["experiment"]
    assert experiment["name"] == "othink-pipeline"
    assert experiment["create_experiment_kwargs"]["artifact_location"] == "mlartifacts"


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("server: {mlflow_tracking_url: sqlite:///mlflow.db}", "server.mlflow_tracking_url"),
        ("server: {mlflow_tracking_uri: 'sqlite:///base/mlflow.yml'}", "not a database"),
    ],
)
def test_a_faulty_mlflow_yml_stops_the_run(
    yaml: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("othink_pipeline.hooks.read_grid", lambda: None)
    for name in ("base", "local"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "mlflow.yml").write_text(yaml + "\n# " + "padding " * 50)
    with pytest.raises(ConfigurationError, match=message):
        PreflightHooks().after_context_created(context_of(tmp_path, tmp_path))


@pytest.mark.parametrize("asked", [["--pipelines=rl,slf"], ["--pipeline=slf"]])
def test_a_misspelt_pipeline_is_refused_before_there_is_a_store(
    asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there_are = {"sft": None, "rl": None, "__default__": None}
    monkeypatch.setattr("othink_pipeline.hooks.read_grid", lambda: None)
    monkeypatch.setattr("othink_pipeline.hooks.pipelines", there_are)
    context = context_of(tmp_path, tmp_path)  # without a mlflow.yml: nothing was read of it
    with cli.run.make_context("run", asked), pytest.raises(ConfigurationError) as refused:
        PreflightHooks().after_context_created(context)
    assert refused.value.message == "--pipelines=slf: no pipeline. There are sft, rl."


def test_so_is_a_misspelt_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("counting.grpo.s0", "counting.sft.s0")
    nodes = [Node(print, None, name, name="train", namespace=name) for name in names]
    monkeypatch.setattr("othink_pipeline.hooks.read_grid", lambda: None)
    monkeypatch.setattr("othink_pipeline.hooks.pipelines", {"__default__": Pipeline(nodes)})
    context = context_of(tmp_path, tmp_path)
    asked = "counting.grpo,counting.sft.s0,counting.gr,counting.sft.s0.x"
    with (
        cli.run.make_context("run", [f"--namespaces={asked}"]),
        pytest.raises(ConfigurationError) as refused,
    ):
        PreflightHooks().after_context_created(context)
    assert refused.value.message.startswith(
        "--namespaces=counting.gr,counting.sft.s0.x: nothing of that name. There are counting.grpo,"
        " counting.sft;"
    )


# --- The files that a pipeline starts from, and the disk


def test_missing_files_are_named_with_the_command_that_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Registry(dict[str, Pipeline]):
        def set_requested(self, names: None) -> None: ...

    make = Node(list, None, "examples")
    registry = {"everything": Pipeline([make, Node(list, None, "x")]), "prepare": Pipeline([make])}
    monkeypatch.setattr(environment, "pipelines", Registry(registry))
    text = {"type": "text.TextDataset"}
    catalog = DataCatalog.from_config(
        {
            "examples": {**text, "filepath": str(tmp_path / "examples.txt")},
            "raw.{name}": {**text, "filepath": str(tmp_path / "{name}.txt")},
            "there": {**text, "filepath": str(tmp_path / "there.txt")},
            "made": {**text, "filepath": str(tmp_path / "made.txt")},
            "memory": {"type": "MemoryDataset"},
        }
    )
    catalog["params:p"] = 1
    (tmp_path / "there.txt").write_text("")

    def pipeline(*inputs: str) -> Pipeline:
        return Pipeline([Node(max, [*inputs, "params:p"], "made"), Node(len, "made", "out")])

    environment.check_inputs(pipeline("there", "memory"), catalog)
    with pytest.raises(ConfigurationError) as error:
        environment.check_inputs(pipeline("there", "examples", "raw.a"), catalog, " --env=paper")
    message = error.value.message
    assert f"examples: {tmp_path}/examples.txt" in message
    assert "kedro run --pipelines=prepare --env=paper" in message
    assert f"raw.a: {tmp_path}/a.txt\n    No pipeline of this environment makes it" in message
    assert "there.txt" not in message
    assert "made.txt" not in message


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(9, 9, 3 * 1024**3))
    disk.check_disk(tmp_path, needed_bytes=3 * 1024**3)
    with pytest.raises(ConfigurationError, match=r"3\.2 GB free, a run needs 4\.3 GB") as error:
        disk.check_disk(tmp_path, needed_bytes=4 * 1024**3)
    assert str(tmp_path) in error.value.message


@pytest.mark.parametrize(
    "runner", ["ThreadRunner", "<kedro.runner.parallel_runner.ParallelRunner object at 0x7f>"]
)
def test_cells_are_not_trained_beside_each_other_in_one_process(runner: str) -> None:
    environment.check_runner("SequentialRunner")
    with pytest.raises(
        ConfigurationError, match=r"--runner: (Thread|Parallel)Runner runs"
    ) as error:
        environment.check_runner(runner)
    assert "--runner=othink_pipeline.cluster.runner.RayRunner" in error.value.message


def test_what_a_launcher_left_behind_does_not_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Training would wait for processes that do not come."""
    given = {"RANK": "3", "WORLD_SIZE": "1", "MASTER_ADDR": "10.0.0.1", "ACCELERATE_USE_FSDP": "1"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    environment.check_runner("SequentialRunner")
    assert not given.keys() & os.environ.keys()
    assert "ACCELERATE_USE_FSDP, MASTER_ADDR, RANK, WORLD_SIZE" in caplog.text


def test_mlflows_variables_that_do_not_count_are_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////a/mlflow.db")
    environment.settle_mlflow_variables("sqlite:////a/mlflow.db")
    assert caplog.text == ""
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)  # MLflow would go on with that run
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    environment.settle_mlflow_variables("http://user:secret@host")
    assert "MLFLOW_RUN_ID" not in os.environ
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        assert f"{name} does not count" in caplog.text
    assert "secret" not in caplog.text


def test_mlflows_address_counts_where_mlflow_yml_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The hook makes another text of it, which MLflow sets: a notebook's next session finds it."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "restored in the end")
    monkeypatch.setattr("othink_pipeline.hooks.read_grid", lambda: None)
    for name in ("base", "local"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "mlflow.yml").write_text("server: {mlflow_tracking_uri: null}")
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        for given, used in {
            "sqlite:///mine.db": f"sqlite:///{tmp_path}/mine.db",
            f"http://me:secret@{place}": f"http://{place}",
        }.items():
            for variable in (given, used):
                monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
                context = context_of(tmp_path, tmp_path)
                PreflightHooks().after_context_created(context)
                server_block = context.config_loader["mlflow"]["server"]
                assert server_block["mlflow_tracking_uri"] == used
    assert "does not count" not in caplog.text


@pytest.mark.parametrize("name", ["100% mine", "why?", "a#b"])
def test_a_project_path_that_no_address_can_hold_is_refused(tmp_path: Path, name: str) -> None:
    environment.check_project(tmp_path)
    with pytest.raises(ConfigurationError, match="Rename the folder"):
        environment.check_project(tmp_path / name)


def test_the_code_of_another_clone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project was copied with its .venv, or another one's is active."""
    monkeypatch.chdir(tmp_path)  # the hook goes there; this process comes back
    own = tmp_path / "src" / "othink_pipeline"
    own.mkdir(parents=True)
    told = f"the code in {code.PACKAGE}, not the project's in {own}: .*make"
    with pytest.raises(ConfigurationError, match=told):
        PreflightHooks().after_context_created(context_of(tmp_path, tmp_path))
    own.rmdir()
    shutil.copytree(code.PACKAGE, own)
    environment.check_project(tmp_path)  # installed without --editable: the same code
    with (own / "ui.py").open("a") as file:
        file.write("# edited")
    with pytest.raises(ConfigurationError, match=told):
        environment.check_project(tmp_path)


def test_what_mlflow_cannot_open_is_one_message(tmp_path: Path) -> None:
    manager = _create_hook_manager()

    class Plugin:
        @hook_impl
        def after_context_created(self) -> None:
            raise mlflow.MlflowException("Detected out-of-date database schema")

    for hooks in (StoreHooks(), Plugin()):
        manager.register(hooks)
    with pytest.raises(ConfigurationError, match=r"mlflow\.yml: .*out-of-date database schema"):
        manager.hook.after_context_created(context=context_of(tmp_path, tmp_path))


def test_ray_is_asked_before_a_run_leaves_a_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is refused here stands in no MLflow store: kedro-mlflow opens its run after this."""
    from othink_pipeline.cluster import runner

    def refuse(_: Pipeline) -> None:
        tokens.add(os.environ[RUN_VARIABLE])
        raise ConfigurationError("cluster.address does not answer")

    tokens: set[str] = set()
    monkeypatch.setenv(RUN_VARIABLE, "of a run before")

    monkeypatch.setattr(runner, "prepare", refuse)
    GridConfigLoader("conf", env="smoke", base_env="base", default_run_env="local")
    monkeypatch.setattr("othink_pipeline.hooks.plan_cells", lambda *_: [])
    training = Pipeline([Node(len, "x", "y", tags=["sft"])])
    params = run_params(tmp_path, runner=str(runner.RayRunner()))
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="does not answer"):
            PreflightHooks().before_pipeline_run(params, training, DataCatalog())
    assert len(tokens - {"of a run before"}) == 2, "Ray's processes have a token for each run"


def test_ray_says_how_many_cells_need_room_and_is_let_go_of_if_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container has fewer cores than its machine; the next run is to check its Ray itself."""
    import ray

    from othink_pipeline.cluster import runner

    def refuse(_: Any, __: Any, at_once: int) -> None:
        seen.append(at_once)
        raise ConfigurationError("the disk is full")

    seen: list[Any] = []
    cell = Cell("counting", "sft", 0)
    planned = Planned(cell, shipped_method(cell), "train", 0, 1.0)
    monkeypatch.setattr("othink_pipeline.hooks.plan_cells", lambda *_: [planned])
    monkeypatch.setattr("othink_pipeline.hooks.check_room", refuse)
    monkeypatch.setattr(runner, "prepare", lambda _: seen.append("connected"))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr(ray, "shutdown", lambda: seen.append("disconnected"))
    GridConfigLoader("conf", env="smoke", base_env="base", default_run_env="local")
    params = run_params(tmp_path, runner=str(runner.RayRunner()))
    with pytest.raises(ConfigurationError, match="the disk is full"):
        PreflightHooks().before_pipeline_run(params, TESTS, DataCatalog())
    assert seen == ["connected", 3, "disconnected"]


# --- Runs beside each other

TESTS = Pipeline([Node(len, "x", "y", tags=["evaluation"])])


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Begin a run of a pipeline with some parameters; returns its hooks."""
    monkeypatch.chdir(tmp_path)
    begun: list[PreflightHooks] = []

    def run(pipeline: Pipeline, **changes: Any) -> PreflightHooks:
        environments = {"base_env": "base", "default_run_env": "local", "env": "smoke"}
        GridConfigLoader(str(PROJECT / "conf"), runtime_params=changes, **environments)
        begun.append(PreflightHooks())
        begun[-1].before_pipeline_run(run_params(tmp_path), pipeline, DataCatalog())
        return begun[-1]

    yield run
    for hooks in begun:
        hooks.after_pipeline_run()


@pytest.mark.parametrize("made", ["counting.examples", "base.b0.checkpoint"])
def test_what_a_running_grid_starts_from_is_not_made_with_other_parameters(
    begin: Any, made: str
) -> None:
    making = Pipeline([Node(len, "x", made, name="make")])
    at_work = begin(TESTS)
    begin(making, rebuild={"seed": 7}).after_pipeline_run()
    with pytest.raises(ConfigurationError, match="at work there with other parameters"):
        begin(making, data_preparation={"seed": 7})
    begin(Pipeline([Node(len, "x", "report", name="write")]), data_preparation={"seed": 7})
    at_work.after_pipeline_run()
    begin(making, data_preparation={"seed": 7})


def test_a_launcher_that_is_edited_belongs_to_the_next_run(begin: Any, tmp_path: Path) -> None:
    file = tmp_path / "launcher.yaml"
    file.write_text("distributed_type: MULTI_GPU")
    launched = {"compute": {"launcher": str(file), "num_processes": 2}}
    begin(TESTS, **launched)
    file.write_text("# the same\ndistributed_type: MULTI_GPU")
    begin(TESTS, **launched)
    key = os.environ[LAUNCHER_VARIABLE]
    assert describe_surroundings([]).variables[LAUNCHER_VARIABLE] == key, "Ray's processes have it"
    file.write_text("distributed_type: MULTI_GPU\ngpu_ids: all")
    with pytest.raises(ConfigurationError, match=r"edited after this run began\. Run"):
        read_launcher(str(file))
    os.environ.pop(LAUNCHER_VARIABLE)  # as in another process
    with pytest.raises(ConfigurationError, match="at work there with other parameters"):
        begin(TESTS, **launched)


# --- The run that a `kedro run` is


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Tracking URI of a store with one experiment."""
    with open_store(empty_store, tmp_path_factory.mktemp("store")) as uri:
        yield uri


@pytest.fixture
def client(store: str) -> MlflowClient:
    return MlflowClient()


@pytest.fixture
def hooks(store: str) -> Iterator[TrackingHooks]:
    hooks = TrackingHooks()
    yield hooks
    hooks._end_interrupted()


def statuses(client: MlflowClient, *run_ids: str) -> list[str]:
    return [client.get_run(run_id).info.status for run_id in run_ids]


@pytest.mark.parametrize("plugin_first", [True, False])
def test_the_checks_come_before_the_parent_run_and_the_tracking_after_it(
    client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture, plugin_first: bool
) -> None:
    class Plugin:
        """What kedro-mlflow does: open a run and end it."""

        @hook_impl
        def before_pipeline_run(self) -> None:
            mlflow.start_run(run_name="opened by the plugin")

        @hook_impl
        def after_pipeline_run(self) -> None:
            mlflow.end_run()

    manager = _create_hook_manager()
    registered = [PreflightHooks(), TrackingHooks(), Plugin()]
    for hooks in registered[::-1] if plugin_first else registered:
        manager.register(hooks)
    files = {"x": "gone.txt", "b": "result.txt"}
    catalog = DataCatalog.from_config(
        {
            name: {"type": "text.TextDataset", "filepath": str(tmp_path / file)}
            for name, file in files.items()
        }
    )
    arguments: dict[str, Any] = {"run_params": run_params(tmp_path), "catalog": catalog}
    with pytest.raises(ConfigurationError, match=r"gone\.txt"):
        manager.hook.before_pipeline_run(pipeline=Pipeline([Node(len, "x", "y")]), **arguments)
    assert mlflow.active_run() is None

    manager.hook.before_pipeline_run(pipeline=TWO_NODES, **arguments)
    parent = runs.parent_run_id()
    assert parent == mlflow.active_run().info.run_id
    links = {"its run": views.run_link(client.get_run(parent))}
    ran = TWO_NODES
    if plugin_first:  # and results were recorded
        links = views.view_links(parent)
        arguments["run_params"]["env"] = "seeds"
        ran += Pipeline([Node(list, "b", None, name="record_results", namespace="mlflow")])
    with caplog.at_level("INFO", logger="othink_pipeline"):
        manager.hook.after_pipeline_run(run_result={}, pipeline=ran, **arguments)
    assert f"{tmp_path}/result.txt" in caplog.text
    mlflow_is = f"in MLflow, while `make ui{' ENV=seeds' * plugin_first}` runs:"
    told = [mlflow_is, *(f"  {title:<20} {link}" for title, link in links.items())]
    assert caplog.text.rstrip().split("\n")[-len(told) :] == told
    assert statuses(client, parent) == ["FINISHED"]
    assert runs.parent_run_id() is None


def test_the_parent_says_what_ran(
    client: MlflowClient, hooks: TrackingHooks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "file").write_text("")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    git = ["git", "-C", str(tmp_path), *identity]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message=a"], check=True)
    assert code.code_tags(tmp_path)["git_dirty"] == "false"
    (tmp_path / "file").write_text("changed")
    monkeypatch.setattr(sys, "argv", ["/bin/kedro", "run", "--params=a b"])

    mlflow.start_run(tags={"run_id": "2026-11-29T19.32", "tags": "rl"})  # as the plugin does
    parameters = run_params(tmp_path, env="paper", pipeline_names=["sft", "rl"])
    hooks.before_pipeline_run(parameters)
    run = client.get_run(str(runs.parent_run_id()))
    assert run.info.run_name.startswith("sft+rl 20")
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    expected = {
        "kind": "grid",
        "pipeline": "sft+rl",
        "env": "paper",
        "command": "kedro run '--params=a b'",
        "mlflow.source.git.commit": head.stdout.strip(),
        "git_dirty": "true",
        runs.HOST: socket.gethostname(),
        runs.PID: str(os.getpid()),
    }
    assert {key: run.data.tags[key] for key in expected} == expected
    assert "run_id" not in run.data.tags and run.data.tags["tags"] == "rl"


def test_a_project_that_is_no_checkout_still_has_a_version(tmp_path: Path) -> None:
    assert list(code.code_tags(tmp_path)) == ["code_version"]


def test_a_disabled_pipeline_has_no_parent(
    hooks: TrackingHooks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(runs.PARENT_VARIABLE, "of an earlier run")
    usual = signal.getsignal(signal.SIGTERM)
    hooks.before_pipeline_run(run_params(tmp_path))
    assert runs.parent_run_id() is None
    assert signal.getsignal(signal.SIGTERM) != usual, "it, too, ends in order"
    hooks.on_pipeline_error()
    assert signal.getsignal(signal.SIGTERM) == usual


def test_failed_cells_are_named_once_at_the_end_of_their_run(
    client: MlflowClient, tmp_path: Path
) -> None:
    def node(namespace: str) -> Node:
        return Node(len, "x", "y", name="train", namespace=namespace)

    def failed(reason: str) -> FailedCell:
        return FailedCell(task="counting", method="grpo", seed=0, failed=reason)

    hooks = FailureHooks()
    parent = mlflow.start_run().info.run_id
    hooks.before_pipeline_run()
    table = DataFrame({"failed": [1]})  # no manifest
    hooks.after_node_run(
        node("counting.sft.s0"), {"a": checkpoint_of(Cell("counting", "sft", 0)), "history": table}
    )
    hooks.after_node_run(node("counting.grpo.s0"), {"a": failed("no memory"), "b": table})
    hooks.after_node_run(node("counting.grpo.s0"), {"c": failed("its checkpoint failed")})
    hooks.after_node_run(node("geometry.sft.s1"), {"a": failed("no gradient")})
    mlflow.end_run()  # kedro-mlflow's part
    with pytest.raises(CellsFailedError) as error:
        hooks.after_pipeline_run()
    assert error.value.exit_code == 1
    assert error.value.message.splitlines()[:3] == [
        "2 of the cells failed; the others are finished.",
        "  counting.grpo.s0: no memory",
        "  geometry.sft.s1: no gradient",
    ]
    assert statuses(client, parent) == ["FAILED"]

    hooks.before_pipeline_run()  # the next run of this process, not tracked
    hooks.after_pipeline_run()
    hooks.after_node_run(node("geometry.sft.s1"), {"a": failed("no gradient")})
    with pytest.raises(CellsFailedError, match="1 of the cells failed"):
        hooks.after_pipeline_run()


def test_a_pipeline_without_a_parent_does_not_reopen_the_last_one(
    hooks: TrackingHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kedro-mlflow has one object for all sessions of a process, and it remembers."""
    monkeypatch.setattr(mlflow_hook, "run_id", "of the session before")
    hooks.after_context_created()
    assert mlflow_hook.run_id is None


def test_a_line_for_each_node_with_the_time_that_is_left(caplog: pytest.LogCaptureFixture) -> None:
    preflight = PreflightHooks()
    hooks = ScreenHooks(preflight)
    cell = Cell("counting", "sft", 0)
    preflight.planned = [Planned(cell, shipped_method(cell), "train", 0, 200.0)]

    def train(*, cell: Cell) -> str:
        return cell.name

    nodes = [BoundNode(bind(train, cell=cell), None, "a", name="first"), TWO_NODES.nodes[1]]
    pipeline = Pipeline(nodes)
    hooks.before_pipeline_run(pipeline)
    with caplog.at_level("INFO", logger="othink_pipeline"):
        for node in pipeline.nodes:
            hooks.before_node_run(node)
            hooks.after_node_run(node, {})
    assert caplog.messages == ["[1/2, 0:00, about 3 min to train] first", "[2/2, 0:00] second"]


def test_a_training_is_told_what_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LEFT_VARIABLE, "of a run before")
    preflight = PreflightHooks()
    hooks = ScreenHooks(preflight)
    cells = [Cell("counting", "sft", seed) for seed in (0, 1)]
    preflight.planned = [
        Planned(cell, shipped_method(cell), "train", 0, seconds)
        for cell, seconds in zip(cells, (200.0, 70.0), strict=True)
    ]
    node = BoundNode(bind(lambda *, cell: cell.name, cell=cells[0]), None, "a", name="train")
    hooks.before_pipeline_run(Pipeline([node]))
    hooks.before_node_run(node)
    assert os.environ[LEFT_VARIABLE] == "70.0"


def test_only_trainings_share_the_time_that_is_left(caplog: pytest.LogCaptureFixture) -> None:
    preflight = PreflightHooks()
    hooks = ScreenHooks(preflight)
    cells = [Cell("counting", "sft", seed) for seed in (0, 1)]
    preflight.planned = [Planned(cell, shipped_method(cell), "train", 0, 200.0) for cell in cells]

    def train(*, cell: Cell) -> str:
        return cell.name

    nodes = [
        *(BoundNode(bind(train, cell=cell), None, cell.name, name=cell.name) for cell in cells),
        TWO_NODES.nodes[1],
    ]
    hooks.before_pipeline_run(Pipeline(nodes))
    with caplog.at_level("INFO", logger="othink_pipeline"):
        for node in (nodes[2], nodes[0], nodes[1]):  # side by side
            hooks.before_node_run(node)
    left = [message.split(", ")[2].split("]")[0] for message in caplog.messages]
    assert left == ["about 7 min to train", "about 7 min to train", "about 3 min to train"]


def test_nodes_side_by_side_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, -50.0, 0.0, 0.0, 10.0, 100.0, 110.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    preflight = PreflightHooks()
    hooks = ScreenHooks(preflight)
    cells = [Cell("counting", "sft", seed) for seed in (0, 1)]
    preflight.planned = [Planned(cell, shipped_method(cell), "train", 0, 1.0) for cell in cells]
    took: list[float | None] = []

    def train(*, cell: Cell) -> str:
        return cell.name

    nodes = [BoundNode(bind(train, cell=cell), None, cell.name, name=cell.name) for cell in cells]
    hooks.before_pipeline_run(Pipeline(nodes))
    hooks.before_node_run(nodes[0])  # and is interrupted
    hooks.before_pipeline_run(Pipeline(nodes))
    assert not hooks._at_work
    monkeypatch.setattr(hooks._left, "finish", lambda _, seconds: took.append(seconds))
    for node in nodes:
        hooks.before_node_run(node)
    gone = FailedCell(**cells[1]._asdict(), failed="out of memory")
    for node, made in zip(nodes, ("trained", gone), strict=True):
        hooks.after_node_run(node, {"a": made})
    assert took == [100.0, None]


def test_an_error_fails_the_children_that_still_run(
    client: MlflowClient, hooks: TrackingHooks, tmp_path: Path
) -> None:
    mlflow.start_run()
    hooks.before_pipeline_run(run_params(tmp_path))
    parent = str(runs.parent_run_id())
    running, finished = (runs.start_run(name, "cell", {}) for name in ("a", "b"))
    runs.finish_run(finished)
    runs.set_parent(None)
    stranger = runs.start_run("c", "cell", {})
    hooks.on_pipeline_error()
    mlflow.end_run("FAILED")  # kedro-mlflow's part
    assert statuses(client, running, finished, stranger) == ["FAILED", "FINISHED", "RUNNING"]
    hooks.on_pipeline_error()  # without a parent: nothing to do
    assert statuses(client, parent) == ["FAILED"]


def test_a_run_interrupted_in_a_notebook_is_ended_before_the_next(
    client: MlflowClient, hooks: TrackingHooks, tmp_path: Path
) -> None:
    mlflow.start_run()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a test with Ray may have left Ray's handler
    hooks.before_pipeline_run(run_params(tmp_path))
    parent = str(runs.parent_run_id())
    child = runs.start_run("a", "cell", {})
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # a second one does not cut the clean-up
    hooks.after_context_created()
    assert statuses(client, parent, child) == ["KILLED", "KILLED"]
    assert mlflow.active_run() is None
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_the_runs_of_dead_processes_are_reaped_and_no_others(
    client: MlflowClient, store: str
) -> None:
    experiment_id = client.get_experiment_by_name("tests").experiment_id
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, own = socket.gethostname(), str(os.getpid())

    def start(host: str, pid: object, **more: str) -> str:
        tags = {**runs.process_tags(), runs.HOST: host, runs.PID: str(pid), **more}
        # The clock has been set back since: that says nothing.
        run_id: str = client.create_run(experiment_id, tags=tags, start_time=1000).info.run_id
        return run_id

    parent, gone = start(host, own), start(host, dead.pid)
    recycled = start(host, own, **{runs.PROCESS_START: "1"})  # long before this process was there
    container = start(
        host, dead.pid, **{runs.PROCESS_SPACE: "machine boot pid:[1]"}
    )  # of the same name
    elsewhere = start("another-" + host, dead.pid)
    done = start(host, dead.pid)
    client.set_terminated(done, "FAILED")
    assert set(lifecycle.reap_dead_runs(parent)) == {gone, recycled}
    assert client.get_run(gone).data.tags["ended_by"] == "process gone"
    assert statuses(client, container, parent, gone, recycled, elsewhere, done) == [
        "RUNNING",
        "RUNNING",
        "KILLED",
        "KILLED",
        "RUNNING",
        "FAILED",
    ]


INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored
import mlflow
from othink_pipeline.tracking import runs
from othink_pipeline.hooks import TrackingHooks

mlflow.set_experiment("tests")
mlflow.start_run()
params = {"project_path": sys.argv[1], "env": None, "pipeline_names": None}
TrackingHooks().before_pipeline_run(params)
cell = runs.start_run("a", "cell", {})
with runs.ending(cell):
    left_open = runs.start_run("b", "cell", {})
    print("runs", runs.parent_run_id(), cell, left_open, flush=True)
    time.sleep(600)
"""


def test_a_process_that_is_stopped_says_so_if_it_can(
    client: MlflowClient, store: str, tmp_path: Path
) -> None:
    ends = {
        "KILLED": [
            [signal.SIGINT],
            [signal.SIGTERM, signal.SIGTERM],
            [signal.SIGHUP, signal.SIGHUP],
        ],
        "RUNNING": [[signal.SIGKILL]],
    }
    (tmp_path / "interrupted.py").write_text(INTERRUPTED)
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    cases = [(status, signals) for status, all_of in ends.items() for signals in all_of]
    started = []
    for number in range(len(cases)):
        os.mkfifo(said := tmp_path / f"said_{number}")
        place: dict[str, Any] = {"cwd": tmp_path, "output": said, "env": environment}
        started.append((commands.start("interrupted", str(tmp_path), **place), said))
    for (status, signals), (process, said) in zip(cases, started, strict=True):
        with said.open() as output:
            run_ids = next(line for line in output if line.startswith("runs ")).split()[1:]
            for signal_number in signals:
                process.send(signal_number)
            log = output.read()
        assert process.wait(300) != 0
        assert statuses(client, *run_ids) == [status] * 3, log
    # The last one could say nothing: the next run says it.
    assert set(lifecycle.reap_dead_runs(run_ids[0])) >= set(run_ids)
    assert statuses(client, *run_ids) == ["KILLED"] * 3
