"""Kedro hooks: the checks before a run, its plan, its MLflow run, and what failed in it.

kedro-mlflow opens the store when the context is made and the parent run before the pipeline runs.
The checks come before that, so that a run that cannot work leaves no record; the tracking comes
after it. Kedro calls what is `tryfirst` first and what is `trylast` last, plugins included.
"""

from __future__ import annotations

import atexit
import logging
import os
import shlex
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import click
import mlflow
from kedro.config import OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import pipelines
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from mlflow.exceptions import MlflowException
from pydantic import ValidationError

from othink_pipeline.cells.accelerate_config import LAUNCHER_VARIABLE, read_launcher
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.manifests import FailedCell, FailedTest
from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.cells.progress import LEFT_VARIABLE
from othink_pipeline.cells.train import RUN_VARIABLE
from othink_pipeline.config_loader import GridConfigLoader, read_grid
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.code import code_tags
from othink_pipeline.core.files import content_key
from othink_pipeline.core.locks import lock, say_busy
from othink_pipeline.core.presence import at_work
from othink_pipeline.core.redaction import failure, redact_uri
from othink_pipeline.core.stopping import stop_as_before, stop_in_order, stop_no_more
from othink_pipeline.core.units import describe_seconds
from othink_pipeline.preflight import disk, environment
from othink_pipeline.preflight.plan import (
    Planned,
    check_room,
    describe_plan,
    plan_cells,
    without_fresh,
)
from othink_pipeline.preflight.stored import KINDS, check_stored
from othink_pipeline.preflight.time_left import TimeLeft
from othink_pipeline.tracking import lifecycle, records, runs, views

if TYPE_CHECKING:
    from kedro_mlflow.config.kedro_mlflow_config import MlflowTrackingOptions

logger = logging.getLogger(__name__)

MAKING = {"sft", "rl", "evaluation"}
"""Tags of the nodes whose results another run could mix with its own; so could those of others
whose outputs end like manifests that a cell starts from: ``stored.KINDS``."""
NO_RESULTS = ("cluster", "rebuild")
"""Blocks that change nothing of a grid: several base models may be made at once."""
AT_WORK = ".at_work"
"""The folder, within the data folder, with the marks of the runs that are at work there."""
RECORDING = "mlflow.record_results"
"""The node after which there is a matrix to be seen in MLflow."""


class PreflightHooks:
    """What would stop the run later stops it now, in one message."""

    def __init__(self) -> None:
        self._presence = ExitStack()
        self.planned: list[Planned] = []
        self._tracking: MlflowTrackingOptions | None = None

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Check the tracking store, and hand kedro-mlflow its address as an absolute one."""
        from kedro_mlflow.config.kedro_mlflow_config import KedroMlflowConfig

        environment.check_project(Path(context.project_path))
        # Paths in parameters are relative to the project, as Kedro makes those in the catalog.
        os.chdir(context.project_path)
        read_grid()  # bad parameters leave no trace in the store
        _check_names()
        loader = cast(OmegaConfigLoader, context.config_loader)
        loader.config_patterns.setdefault("mlflow", ["mlflow*", "mlflow*/**", "**/mlflow*"])
        settings = loader["mlflow"]
        try:
            config = KedroMlflowConfig.model_validate(settings)
        except ValidationError as error:
            faults = [  # without the values: one may be a URI with a password
                f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
            ]
            raise ConfigurationError("mlflow.yml:\n" + "\n".join(faults)) from None
        self._tracking = config.tracking
        named = config.server.mlflow_tracking_uri
        uri = named or os.environ.get("MLFLOW_TRACKING_URI")
        if uri is None:
            return
        uri = environment.move_credentials(uri)
        project = Path(context.project_path)
        artifacts = config.tracking.experiment.create_experiment_kwargs.artifact_location
        environment.check_store(uri, artifacts, project)
        uri = environment.anchor_store(uri, project)
        environment.settle_mlflow_variables(uri if named else None)
        if not uri.startswith("http"):  # a run's end would wait for a server that is away
            os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
        loader["mlflow"] = {
            **settings,
            "server": {**settings["server"], "mlflow_tracking_uri": uri},
        }

    @hook_impl(tryfirst=True)
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Check the runner, the files it starts from and the disk; say what will be trained."""
        environment.check_runner(run_params["runner"])
        option = f" --env={run_params['env']}" if run_params["env"] else ""
        environment.check_inputs(pipeline, catalog, option)
        environment.check_outputs(pipeline, catalog)
        self._check_artifacts(run_params)
        # Of a run that was interrupted in this process (a notebook), or with hooks before these.
        self._presence.close()
        os.environ.pop(LAUNCHER_VARIABLE, None)
        self.planned = []
        loader = GridConfigLoader.current
        if loader is None or not _makes(pipeline):
            return
        disk.check_disk(Path(run_params["project_path"]))
        raw = loader["parameters"]
        parameters = Parameters.read(raw)
        places = loader["globals"]
        if places.get("trained", places["data"]) != places["data"]:
            option = " (in the environment that trains; globals.yml: trained)"
        check_stored(pipeline, parameters, catalog, option)
        self.planned = plan_cells(pipeline, parameters, catalog)
        if self.planned:
            logger.info(describe_plan(self.planned))
        os.environ[RUN_VARIABLE] = uuid4().hex
        # Nothing calls the hooks below for a run that is refused.
        with ExitStack() as presence:
            at_once = 1
            if "RayRunner" in run_params["runner"]:
                from othink_pipeline.cluster import connection, runner

                runner.prepare(pipeline)
                presence.callback(connection.disconnect)
                at_once = connection.count_at_once(parameters.cluster)
            if self.planned:
                check_room(self.planned, parameters, at_once)
            marks = Path(loader["globals"]["data"]) / AT_WORK
            what = {name: block for name, block in raw.items() if name not in NO_RESULTS}
            if file := parameters.compute.launcher:
                what["compute.launcher"] = content_key(read_launcher(file))
                os.environ[LAUNCHER_VARIABLE] = what["compute.launcher"]
                presence.callback(os.environ.pop, LAUNCHER_VARIABLE, None)
            presence.enter_context(at_work(marks, content_key(what)))
            self._presence = presence.pop_all()

    def _check_artifacts(self, run_params: dict[str, Any]) -> None:
        """Where the experiment keeps what the run gives it: hours of training come before that."""
        tracking, names = self._tracking, set(run_params["pipeline_names"] or ["__default__"])
        if tracking is None or names <= {*tracking.disable_tracking.pipelines} - {"preflight"}:
            return  # it gives it nothing
        if experiment := lifecycle.current_experiment():
            asked = tracking.experiment.create_experiment_kwargs.artifact_location
            environment.check_artifacts(experiment, asked, Path(run_params["project_path"]))

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Make room for runs with other parameters."""
        self._presence.close()

    on_pipeline_error = after_pipeline_run


def _makes(pipeline: Pipeline) -> bool:
    """Whether a pipeline makes what cells are, or what they start from."""
    made = any(name.endswith(KINDS) for name in pipeline.all_outputs())
    return made or any(node.tags & MAKING for node in pipeline.nodes)


def _check_names() -> None:
    """Refuse what is not there to be run: Kedro would, but with a store made for nothing.

    What was asked for only the command itself knows; in a notebook there is none.
    """
    context = click.get_current_context(silent=True)
    options = context.params if context else {}
    asked = [*filter(None, [options.get("pipeline")]), *options.get("pipelines", ())]
    unknown = [name for name in asked if name not in pipelines]
    if "pipelines" in options and unknown:
        raise ConfigurationError(
            f"--pipelines={','.join(unknown)}: no pipeline. There are "
            f"{', '.join(name for name in pipelines if name != '__default__')}."
        )
    wanted = options.get("namespaces") or ()
    if not wanted:
        return
    chosen = [node for name in asked or ["__default__"] for node in pipelines[name].nodes]
    spaces = {node.namespace for node in chosen if node.namespace}
    unknown = [
        name for name in wanted if not any(f"{space}.".startswith(f"{name}.") for space in spaces)
    ]
    if unknown:
        there = sorted({".".join(space.split(".")[:2]) for space in spaces})
        raise ConfigurationError(
            f"--namespaces={','.join(unknown)}: nothing of that name. There are "
            f"{', '.join(there)}; a cell is task.method.s0."
        )


class ScreenHooks:
    """A line for each node that starts: it may then be silent for hours."""

    def __init__(self, preflight: PreflightHooks) -> None:
        """`preflight` has planned what is trained."""
        self._preflight = preflight
        self._left = TimeLeft([])
        self._nodes = self._begun = 0
        self._started_s = 0.0
        self._at_work: dict[Node, float] = {}  # on Ray several at once

    @hook_impl(trylast=True)
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        """Begin to count."""
        self._left = TimeLeft(self._preflight.planned)
        self._nodes, self._begun = len(pipeline.nodes), 0
        self._at_work.clear()  # what a run before this one, in a notebook, did not come to end
        self._started_s = time.monotonic()

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Say what starts, and how long all trainings that are left take."""
        self._begun += 1
        now_s = self._at_work[node] = time.monotonic()
        minutes, seconds = divmod(int(now_s - self._started_s), 60)
        place = f"{self._begun}/{self._nodes}, {minutes}:{seconds:02d}"
        trainings = sum(_cell_of(each) is not None for each in self._at_work)
        if (left := self._left.seconds / max(trainings, 1)) > 0:  # False for NaN
            place += f", about {describe_seconds(left)} to train"
        logger.info("[%s] %s", place, node.name)
        cell = _cell_of(node)
        if cell is not None:
            os.environ[LEFT_VARIABLE] = str(self._left.seconds - self._left.seconds_of(cell))

    @hook_impl
    def after_node_run(self, node: Node, outputs: dict[str, Any]) -> None:
        """Learn from it how long others will take."""
        seconds = time.monotonic() - self._at_work.pop(node)
        cell = _cell_of(node)
        if cell is not None:
            failed = any(isinstance(output, FailedCell) for output in outputs.values())
            self._left.finish(cell, None if failed else seconds)


def _cell_of(node: Node) -> Cell | None:
    """Of a node that trains."""
    cell: Cell | None = getattr(node, "identity", {}).get("cell")
    return cell


class StoreHooks:
    """One process at a time opens the MLflow store: two that make it at once would spoil it."""

    @hook_impl(wrapper=True)
    def after_context_created(self, context: KedroContext) -> Generator[None, Any, Any]:
        """Around kedro-mlflow, which makes the store and the experiment if need be."""
        busy = say_busy("another run is opening the MLflow store")
        with lock(Path(context.project_path) / records.STORE_LOCK, busy):
            try:
                return (yield)
            except (click.ClickException, OSError):
                raise
            except Exception as error:  # MLflow's, Alembic's or SQLAlchemy's
                raise ConfigurationError(
                    f"mlflow.yml: MLflow cannot open the store: {failure(error)}. Follow its "
                    "advice, move the store away, or name another (server.mlflow_tracking_uri; "
                    "conf/local/mlflow.yml, or with --env that of the environment, overrides "
                    "conf/base)."
                ) from error


class TrackingHooks:
    """One parent run a `kedro run`, with an end that says how it ended."""

    def __init__(self) -> None:
        self._parent: str | None = None

    @hook_impl(tryfirst=True)
    def after_context_created(self) -> None:
        """End a run that was interrupted in this process (a notebook): the next would join it."""
        from kedro_mlflow.framework.hooks.mlflow_hook import mlflow_hook

        self._end_interrupted()
        # A pipeline that is not tracked would reopen the last run of this process.
        mlflow_hook.run_id = None

    @hook_impl(trylast=True)
    def before_pipeline_run(self, run_params: dict[str, Any]) -> None:
        """Make kedro-mlflow's run the parent of the cells' runs and name it readably."""
        stop_in_order()
        self._parent = lifecycle.active_run_id()
        runs.set_parent(self._parent)
        if self._parent is None:
            return  # tracking is disabled for this pipeline in mlflow.yml
        atexit.register(self._end_interrupted)  # after MLflow's own, so it comes before it
        name = "+".join(run_params["pipeline_names"] or ["__default__"])
        tags = {
            "pipeline": name,
            "env": run_params["env"] or lifecycle.BASE_ENVIRONMENT,
            "command": redact_uri(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])),
            **code_tags(Path(run_params["project_path"])),
        }
        title = f"{name.strip('_')} {time.strftime('%Y-%m-%d %H:%M')}"
        lifecycle.name_parent(self._parent, title, tags)
        for run_id in lifecycle.reap_dead_runs(self._parent):
            logger.warning("MLflow run %s: its process is gone, marked as KILLED", run_id)

    @hook_impl
    def after_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """Say where the results are; let go of the parent, which kedro-mlflow ends."""
        # A name without a dot belongs to no single cell, method or task.
        names = pipeline.outputs() | {name for name in pipeline.all_outputs() if "." not in name}
        results = {n: getattr(catalog[n], "_filepath", "") for n in names if n in catalog}
        lines = [f"  {name:<20} {path}" for name, path in sorted(results.items()) if path]
        if parent := self._release():
            lines += [_where_mlflow_is(run_params["env"]), *_links(parent, pipeline)]
        if lines:
            logger.info("results:\n%s", "\n".join(lines))

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Let go of the parent; kedro-mlflow ends it, but not its children."""
        if parent := self._release():
            lifecycle.end_children(parent, "FAILED")

    def _end_interrupted(self) -> None:
        if self._parent is not None:
            stop_no_more()  # cut off, it would leave MLflow with an untrue end
            try:
                lifecycle.kill_parent(self._parent)
            finally:
                self._release()

    def _release(self) -> str | None:
        stop_as_before()
        parent, self._parent = self._parent, None
        if parent is not None:
            atexit.unregister(self._end_interrupted)
            runs.set_parent(None)
        return parent


class CellsFailedError(click.ClickException):
    """Some cells failed and the others went on: shown without a traceback, exit code 1."""


class FailureHooks:
    """A run with failed cells goes on to its end, and then says that it failed."""

    def __init__(self) -> None:
        self._parent: str | None = None
        self._failures: dict[str, str] = {}

    @hook_impl(trylast=True)
    def before_pipeline_run(self) -> None:
        """Begin with none."""
        self._parent = lifecycle.active_run_id()
        self._failures = {}

    @hook_impl
    def after_node_run(self, node: Node, outputs: dict[str, Any]) -> None:
        """Take note of a failed cell, by the first of its nodes."""
        for output in outputs.values():
            if isinstance(output, FailedCell | FailedTest):
                self._failures.setdefault(str(node.namespace), output.failed)

    @hook_impl(trylast=True)
    def after_pipeline_run(self) -> None:
        """After kedro-mlflow has ended the parent as FINISHED, and the report is written.

        Raises:
            CellsFailedError: with every failed cell and its reason.
        """
        if not self._failures:
            return
        if self._parent is not None:
            runs.end_run(self._parent, "FAILED", f"{len(self._failures)} cells")
        loader = GridConfigLoader.current
        change = without_fresh(Parameters.read(loader["parameters"]).compute) if loader else ""
        lines = [f"  {name}: {reason}" for name, reason in self._failures.items()]
        raise CellsFailedError(
            f"{len(lines)} of the cells failed; the others are finished.\n"
            + "\n".join(lines)
            + f"\nRemove the cause and run again{change}: "
            "what is finished is reused, the rest goes on."
        )


def _where_mlflow_is(env: str | None) -> str:
    if mlflow.get_tracking_uri().startswith("http"):
        return "in MLflow:"
    return f"in MLflow, while `make ui{f' ENV={env}' if env else ''}` runs:"


def _links(parent: str, pipeline: Pipeline) -> list[str]:
    """To the views of a run that recorded results, else to its page."""
    try:
        if any(node.name == RECORDING for node in pipeline.nodes):
            views.save_views(parent)
            links = views.view_links(parent)
        else:
            links = {"its run": views.run_link(mlflow.get_run(parent))}
    except MlflowException:  # the server went away at the very end: the results are there
        return [f"  look for the runs with the tag {runs.grid_tag(parent)}"]
    return [f"  {title:<20} {link}" for title, link in links.items()]
