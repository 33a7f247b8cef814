"""Kedro's runner on Ray: ``kedro run --runner=othink_pipeline.cluster.runner.RayRunner``.

The driver, this process, loads what a node reads, calls every hook and saves what the node makes,
all in its main thread: MLflow's active run and signals belong to that. Only the functions of nodes
that train or test run elsewhere, and what crosses is a manifest or a small table. Ray is imported
when a run begins.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from kedro.runner import AbstractRunner
from kedro.runner.task import Task

from othink_pipeline.cells.manifests import FailedCell, FailedTest
from othink_pipeline.cells.parameters import Cluster, Parameters
from othink_pipeline.cluster.connection import check_installed, connect
from othink_pipeline.cluster.pool import Ended, RayPool, TaskLostError, kind_of
from othink_pipeline.cluster.schedule import Schedule
from othink_pipeline.cluster.surroundings import describe_surroundings
from othink_pipeline.cluster.worker import NodeFailedError
from othink_pipeline.config_loader import GridConfigLoader
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.hub import find_model
from othink_pipeline.tracking import lifecycle, runs
from othink_pipeline.tracking.journal import HISTORY_COLUMNS

if TYPE_CHECKING:
    from pluggy import PluginManager

logger = logging.getLogger(__name__)

LANES = {None: 0, "evaluate": 1, "train": 2}
"""What a node needs -> its lane: what ends a cell goes before what begins one."""


class RayRunner(AbstractRunner):
    """Runs cells and their tests side by side, as ``cluster`` in the parameters says."""

    def __init__(self, is_async: bool = False) -> None:
        """Refuse what cannot work before Kedro opens a session.

        Raises:
            ConfigurationError: no Ray; or ``--async``.
        """
        check_installed()
        if is_async:
            raise ConfigurationError(
                "--async: RayRunner loads and saves in order. Leave --async out."
            )
        super().__init__()

    def _get_executor(self, max_workers: int) -> None:
        return None

    def _run(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],
        hook_manager: PluginManager | None = None,
        run_id: str | None = None,
    ) -> None:
        cluster = prepare(pipeline)
        pool = RayPool(cluster, describe_surroundings(_modules(pipeline)))
        try:
            _Run(pipeline, catalog, hook_manager, run_id, pool).finish_all()
        except BaseException:
            pool.cancel()
            raise
        finally:
            pool.close()


def prepare(pipeline: Pipeline) -> Cluster:
    """Be connected to a Ray that can run the pipeline (see ``connect``); the session's settings."""
    assert GridConfigLoader.current is not None  # Kedro's runners run in a session
    parameters = Parameters.read(GridConfigLoader.current["parameters"])
    shared, needed = [Path(parameters.folders.checkpoints)], []
    if (model := parameters.base_model.hub) is not None:
        from huggingface_hub import constants

        if found := find_model(**model.model_dump()):
            needed.append(Path(found[0]))
        else:  # one machine fetches it for all
            shared.append(Path(constants.HF_HUB_CACHE))
    connect(parameters.cluster, _modules(pipeline), shared, needed)
    return parameters.cluster


class _Run:
    """One run of a pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        catalog: CatalogProtocol[Any, Any],
        hook_manager: Any,
        run_id: str | None,
        pool: RayPool,
    ) -> None:
        from kedro_mlflow.framework.hooks.mlflow_hook import mlflow_hook

        self._catalog, self._hooks, self._run_id = catalog, hook_manager, run_id
        self._pool = pool
        # Kedro's stand-in for a manager has nothing to call.
        self._without_mlflow = hook_manager.subset_hook_caller("before_node_run", [mlflow_hook])
        self._schedule = Schedule(pipeline, lambda node: LANES[kind_of(node)], len(LANES))
        self._tasks = sum(kind_of(node) is not None for node in pipeline.nodes)
        self._ended = self._lost = 0
        self._logged: set[str] = set()

    def finish_all(self) -> None:
        """Run every node.

        Raises:
            NodeFailedError: of the first node that raised something.
            TaskLostError: the process of a node without which there is no report died.
        """
        while True:
            while (node := self._schedule.pop(self._has_room)) is not None:
                if kind_of(node) is None:
                    Task(node, self._catalog, False, self._hooks, self._run_id).execute()
                    self._finish(node)
                else:
                    self._pool.submit(node, self._load(node))
            if not self._pool.at_work:
                break
            if (ended := self._pool.wait()) is not None:
                self._take(ended)
        parent = runs.parent_run_id()
        if self._lost and parent is not None:  # their processes could not say so
            lifecycle.end_children(parent, "KILLED")

    def _has_room(self, node: Node) -> bool:
        return kind_of(node) is None or self._pool.has_room(node)

    def _load(self, node: Node) -> dict[str, Any]:
        """What a node reads, with the hooks around it."""
        hook, inputs = self._hooks.hook, {}
        for name in node.inputs:
            hook.before_dataset_loaded(dataset_name=name, node=node)
            inputs[name] = self._catalog.load(name)
            hook.after_dataset_loaded(dataset_name=name, data=inputs[name], node=node)
        changes = self._before_node_run(node)(
            node=node,
            catalog=self._catalog,
            inputs=dict(inputs),
            is_async=False,
            run_id=self._run_id,
        )
        for change in changes or ():
            inputs |= change or {}
        return inputs

    def _before_node_run(self, node: Node) -> Any:
        """The hook; without kedro-mlflow's where all parameters of a node are recorded.

        It writes each parameter of each node, 40 ms a node, though no value can change.
        """
        new = {name for name in node.inputs if name.startswith("params:")} - self._logged
        self._logged |= new
        if new or self._without_mlflow is None:
            return self._hooks.hook.before_node_run
        return self._without_mlflow

    def _take(self, ended: Ended) -> None:
        """Save what a task has made."""
        node, hook, result = ended.node, self._hooks.hook, ended.result
        around = {
            "node": node,
            "catalog": self._catalog,
            "inputs": ended.inputs,
            "is_async": False,
            "run_id": self._run_id,
        }
        if isinstance(result, TaskLostError):
            logger.error("%s: %s", node.name, result.message)
            self._lost += 1
            result = stand_in(node, ended.inputs, result)
        if isinstance(result, NodeFailedError | TaskLostError):
            hook.on_node_error(error=result, **around)
            raise result
        hook.after_node_run(outputs=result, **around)
        for name, data in result.items():
            hook.before_dataset_saved(dataset_name=name, data=data, node=node)
            self._catalog.save(name, data)
            hook.after_dataset_saved(dataset_name=name, data=data, node=node)
        self._ended += 1
        self._finish(node)
        logger.info(
            "%d of %d cells and tests done, %d at work; done: %s",
            *(self._ended, self._tasks, self._pool.at_work, node.name),
        )

    def _finish(self, node: Node) -> None:
        for name in self._schedule.finish(node):
            self._catalog.release(name)


def stand_in(
    node: Node, inputs: dict[str, Any], error: TaskLostError
) -> dict[str, Any] | TaskLostError:
    """What stands in the place of what a node would have made: the others go on.

    Returns:
        What it stands for, by dataset; the error itself where nothing can.
    """
    bound = getattr(node, "identity", {})
    if cell := bound.get("cell"):
        checkpoint, history = node.outputs
        failed = FailedCell(**cell._asdict(), failed=error.message)
        return {checkpoint: failed, history: pd.DataFrame(columns=HISTORY_COLUMNS)}
    tested = bound.get("tested")
    if tested is None or tested.seed is None:  # without the base model nothing can be compared
        return error
    about = {**tested._asdict(), "eval_task": inputs[node.inputs[1]].task}
    return {node.outputs[0]: FailedTest(**about, failed=error.message)}


def _modules(pipeline: Pipeline) -> list[str]:
    """Where the functions are that run elsewhere."""
    return sorted({node.func.__module__ for node in pipeline.nodes if kind_of(node) is not None})
