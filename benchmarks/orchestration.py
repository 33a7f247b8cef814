"""What a grid of cells that do nothing costs: to build, to plan, to run, to list, to draw."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial, update_wrapper
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, time
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from benchmarks.grid import copy_project, run
from benchmarks.harness import interleave, record

if TYPE_CHECKING:
    from kedro.pipeline import Pipeline
    from kedro.pipeline.node import Node

    from othink_pipeline.cells.grid import Cell
    from othink_pipeline.cells.manifests import Checkpoint
    from othink_pipeline.cells.parameters import Parameters
    from othink_pipeline.training.parameters import RL, SFT

CELLS = (1, 10, 100, 1000)
VIZ_LIMIT_S = 180
ROUNDS = 3
ALL_METHODS = ("sft", "sft_cot", "grpo", "grpo_d", "grpo_format")


def experiment(cells: int) -> dict[str, Any]:
    """The ``experiment`` block of a grid of so many cells: 1, or a multiple of 10."""
    if cells == 1:
        return {"tasks": ["counting"], "methods": ["grpo"], "seeds": 1}
    return {
        "tasks": ["counting", "geometry"],
        "methods": list(ALL_METHODS),
        "seeds": cells // (2 * len(ALL_METHODS)),
    }


def add_environment(project: Path, cells: int) -> str:
    """Give a project an environment with a grid of so many cells; its name."""
    name = f"cells_{cells}"
    folder = project / "conf" / name
    folder.mkdir()
    # JSON is YAML.
    (folder / "parameters.yml").write_text(json.dumps({"experiment": experiment(cells)}))
    (folder / "globals.yml").write_text(json.dumps({"data": f"data/{name}"}))
    return name


def make_empty_project(project: Path) -> Path:
    """A Kedro project without anything in it: what Kedro and its plugins cost by themselves."""
    files = {
        "pyproject.toml": '[tool.kedro]\npackage_name = "empty"\nproject_name = "empty"\n'
        'kedro_init_version = "1.7.0"\nsource_dir = "src"\n',
        "src/empty/__init__.py": "",
        "src/empty/settings.py": "",
        "src/empty/pipeline_registry.py": "from kedro.pipeline import Pipeline\n\n\n"
        'def register_pipelines():\n    return {"__default__": Pipeline([])}\n',
        "conf/base/catalog.yml": "",
        "conf/local/catalog.yml": "",
    }
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    return project


def without_work(pipeline: Pipeline) -> Pipeline:
    """The same nodes, with functions of the same signature that do nothing."""
    from kedro.pipeline import Pipeline

    from benchmarks import orchestration  # by its name, which Ray's workers know
    from othink_pipeline.pipelines.wiring import BoundNode

    nothing = orchestration.do_nothing
    return Pipeline(
        BoundNode(
            update_wrapper(partial(nothing, node.outputs, **_identity(node)), node.func),
            inputs=node.inputs,
            outputs=node.outputs,
            name=node.name.removeprefix(f"{node.namespace}."),
            namespace=node.namespace,
            tags=node.tags,
        )
        for node in pipeline.nodes
    )


def _identity(node: Node) -> dict[str, Any]:
    """What a node is bound to: the plan of a run reads its cell there."""
    identity = dict(getattr(node, "identity", {}))
    if "cell" in identity:
        identity["checkpoint"] = checkpoint_of(identity["cell"])
    return identity


def do_nothing(outputs: list[str], *inputs: Any, **identity: Any) -> list[Any]:
    """Something small for each output that its dataset in the catalog can keep."""
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from othink_pipeline.cells.manifests import CollectedTests, Predictions
    from othink_pipeline.data.manifests import Examples
    from othink_pipeline.models.manifests import BaseModelCheckpoint

    kinds: dict[str, Callable[[], Any]] = {
        "examples": lambda: Examples(
            task="counting", seed=0, key="", files="", rejected=0, splits={}, digest=""
        ),
        "checkpoint": lambda: (
            identity["checkpoint"]
            if "cell" in identity
            else BaseModelCheckpoint(path="", digest="", run_id="", model_id="")
        ),
        "tests": lambda: CollectedTests(tests=()),
        "report": str,
        "report_page": str,
        "heat_map": Figure,
        "samples": Figure,
        "training_curves": Figure,
    }
    if tested := identity.get("tested"):
        kinds["predictions"] = lambda: Predictions(
            **tested._asdict(), eval_task="counting", key="", path="", checkpoint=""
        )
    table = partial(DataFrame, {"value": [0.0]})
    return [kinds.get(name.rsplit(".")[-1], table)() for name in outputs]


@cache
def _parameters() -> tuple[Parameters, dict[tuple[str, str], SFT | RL]]:
    """Those of the session, and each method's own."""
    from othink_pipeline.cells.parameters import Parameters
    from othink_pipeline.config_loader import GridConfigLoader

    assert GridConfigLoader.current is not None
    parameters = Parameters.read(GridConfigLoader.current["parameters"])
    return parameters, parameters.resolve()


def checkpoint_of(cell: Cell) -> Checkpoint:
    """The last checkpoint of a cell that was never trained."""
    from othink_pipeline.cells.manifests import Checkpoint
    from othink_pipeline.scoring.kinds import EXACT

    parameters, methods = _parameters()
    texts = dict.fromkeys(
        ("checkpoint", "digest", "data", "base_model", "path", "run_id", "model_id"), ""
    )
    counts = dict.fromkeys(("prompts", "completion_tokens", "skipped_batches"), 0)
    return Checkpoint(
        **cell._asdict(),
        **texts,
        **counts,
        answers=EXACT,
        parameters=methods[cell.task, cell.method],
        health=parameters.health.model_dump(),
        faults={},
        updates=1,
        seconds=0.0,
        weights_changed=0.0,
    )


def time_kedro(environment: str) -> dict[str, float]:
    """Seconds to build the pipelines, to plan one, and to run it with all data in memory."""
    from kedro.framework.startup import bootstrap_project
    from kedro.io import DataCatalog, MemoryDataset
    from kedro.pipeline import Pipeline
    from kedro.runner import SequentialRunner

    from othink_pipeline import pipeline_registry
    from othink_pipeline.config_loader import GridConfigLoader

    bootstrap_project(Path.cwd())
    logging.disable()

    def build() -> Pipeline:
        GridConfigLoader("conf", env=environment, base_env="base", default_run_env="local")
        return pipeline_registry.register_pipelines()["cross_task"]

    whole = build()

    def plan() -> Pipeline:  # as KedroSession.run
        return (Pipeline([]) + whole).filter(node_namespaces=["counting.grpo"])

    empty = without_work(whole)

    do_nothing([])  # imports
    catalog = DataCatalog({name: MemoryDataset({}) for name in empty.inputs()})
    started = perf_counter()
    SequentialRunner().run(empty, catalog)
    run_s = perf_counter() - started
    seconds = interleave(ROUNDS, build=build, plan=plan)
    return {
        "nodes": len(whole.nodes),
        "build": median(seconds["build"]),
        "plan": median(seconds["plan"]),
        "run": run_s,
    }


def time_session(environment: str, on_ray: bool = False) -> dict[str, float]:
    """Seconds of ``kedro run`` on cells that do nothing: catalog, files, hooks, log and MLflow.

    And the most memory that its process had, in MB.
    """
    from resource import RUSAGE_SELF, getrusage
    from unittest.mock import patch

    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    started = perf_counter()
    bootstrap_project(Path.cwd())
    from othink_pipeline import pipeline_registry
    from othink_pipeline.cluster.runner import RayRunner

    register = pipeline_registry.register_pipelines

    def register_without_work() -> dict[str, Pipeline]:
        return {"cross_task": without_work(register()["cross_task"])}

    with (
        patch.object(pipeline_registry, "register_pipelines", register_without_work),
        KedroSession.create(Path.cwd(), env=environment) as session,
    ):
        session.run(pipeline_names=["cross_task"], runner=RayRunner() if on_ray else None)
    megabytes = getrusage(RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {"seconds": perf_counter() - started, "MB": megabytes}


def time_session_on_ray(environment: str) -> dict[str, float]:
    """The same on Ray, with a worker a core."""
    return time_session(environment, on_ray=True)


def time_viz(environment: str) -> float:
    """Seconds that Kedro-Viz takes to load the project."""
    from kedro_viz.server import load_and_populate_data

    started = perf_counter()
    load_and_populate_data(Path.cwd(), env=environment or None)
    return perf_counter() - started


def time_tracking(_: str) -> dict[str, float]:
    """Milliseconds of a run and of an update's metrics: ours, and MLflow's own functions."""
    import mlflow

    from othink_pipeline.tracking import mlflow_store, runs
    from othink_pipeline.training.loop import CURVES

    mlflow.set_tracking_uri("sqlite:///tracking.db")
    mlflow.set_experiment("orchestration")
    metrics = dict.fromkeys(CURVES.values(), 0.5)
    parameters = {f"parameter_{number}": number for number in range(30)}  # about a cell's
    with mlflow.start_run() as parent:
        runs.set_parent(parent.info.run_id)

        def our_run() -> None:
            file = Path(f"{uuid4()}.json")
            runs.finish_run(runs.open_run(file, "counting/grpo/s0", "cell", {}, parameters))

        def mlflow_run() -> None:
            with mlflow.start_run(nested=True):
                mlflow.log_params(parameters)

        run_id = runs.start_run("counting/grpo/s0", "cell", {})

        def our_metrics() -> None:
            values = mlflow_store.metric_entities(run_id, metrics, 1, round(1000 * time()))
            mlflow_store.write_metrics(mlflow_store.patient_store(), run_id, values)

        seconds = interleave(
            20,
            run=our_run,
            mlflow_run=mlflow_run,
            metrics=our_metrics,
            mlflow_metrics=lambda: mlflow.log_metrics(metrics, 1),
        )
    return {name: 1000 * median(taken) for name, taken in seconds.items()}


TIMED = {function.__name__: function for function in (time_kedro, time_session, time_viz)}
TIMED |= {each.__name__: each for each in (time_session_on_ray, time_tracking)}


def apart(project: Path, function: Any, environment: str = "", limit_s: float | None = None) -> Any:
    """What one of the functions above returns, from a process of its own in the project."""
    command = [sys.executable, "-m", "benchmarks.orchestration", function.__name__, environment]
    return json.loads(run(command, project, limit_s=limit_s).output.splitlines()[-1])


def measure() -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each size of the grid, the empty project first; milliseconds of tracking."""
    with TemporaryDirectory() as scratch:
        project = copy_project(Path(scratch) / "project")
        empty = make_empty_project(Path(scratch) / "empty")
        tracking = apart(project, time_tracking)
        environments = {cells: add_environment(project, cells) for cells in CELLS}

        def kedro_list(place: Path, environment: str) -> Any:
            command = [sys.executable, "-m", "kedro", "registry", "list"]
            return lambda: run(command, place, KEDRO_ENV=environment)

        listing = interleave(
            ROUNDS,
            empty=kedro_list(empty, "local"),
            **{name: kedro_list(project, name) for name in environments.values()},
        )
        rows = [
            {
                "cells": 0,
                "nodes": 0,
                **dict.fromkeys(("build s", "plan s", "ms a cell in memory", "run s"), "–"),
                **dict.fromkeys(("ms a cell", "run on Ray s", "ms a cell on Ray"), "–"),
                "driver MB": "–",
                "list s": median(listing["empty"]),
                "viz s": apart(empty, time_viz),
            }
        ]
        apart(project, time_session, environments[1])  # the first run ever sets up the store
        one_cell_s = one_on_ray_s = 0.0
        for cells, name in environments.items():
            kedro = apart(project, time_kedro, name)
            seconds = apart(project, time_session, name)["seconds"]
            one_cell_s = one_cell_s or seconds
            on_ray = apart(project, time_session_on_ray, name)
            one_on_ray_s = one_on_ray_s or on_ray["seconds"]
            try:
                viz = apart(project, time_viz, name, VIZ_LIMIT_S)
            except subprocess.TimeoutExpired:
                viz = f"over {VIZ_LIMIT_S}"
            rows.append(
                {
                    "cells": cells,
                    "nodes": kedro["nodes"],
                    "build s": kedro["build"],
                    "plan s": kedro["plan"],
                    "ms a cell in memory": 1000 * kedro["run"] / cells,
                    "run s": seconds,
                    "ms a cell": 1000 * (seconds - one_cell_s) / (cells - 1) if cells > 1 else "–",
                    "run on Ray s": on_ray["seconds"],
                    "ms a cell on Ray": 1000 * (on_ray["seconds"] - one_on_ray_s) / (cells - 1)
                    if cells > 1
                    else "–",
                    "driver MB": on_ray["MB"],
                    "list s": median(listing[name]),
                    "viz s": viz,
                }
            )
            print(rows[-1], flush=True)
    return rows, tracking


if __name__ == "__main__":
    if sys.argv[1:]:
        print(json.dumps(TIMED[sys.argv[1]](sys.argv[2])))
        sys.exit()
    rows, tracking = measure()
    record(
        "orchestration",
        "Grids of cells that do nothing",
        rows,
        "Every node's function is replaced by one of the same signature that does nothing, so that "
        "what is left is the project's and Kedro's own work. Build: parameters read, all pipelines "
        "made. Plan: `--namespaces=counting.grpo` picked out and ordered. In memory: Kedro's "
        "SequentialRunner alone, no file, no hook. Run: all of `kedro run --pipelines=cross_task` "
        "in a process that has Kedro imported, with the project's catalog (each cell writes a "
        "checkpoint's manifest, its history and a table for each task), hooks, log and MLflow; ms "
        "a cell: what each cell after the first adds. On Ray: the same with RayRunner, a worker a "
        "core, and the most memory of the driver. List: `kedro registry list`, the whole "
        "process; the row without cells is an empty Kedro project with the same plugins. Viz: "
        "Kedro-Viz loads the project. Not in the table: a cell's MLflow run, opened with 30 "
        f"parameters and closed, takes {tracking['run']:.0f} ms (MLflow's own `start_run`: "
        f"{tracking['mlflow_run']:.0f} ms), an update's metrics {tracking['metrics']:.1f} ms "
        f"(`mlflow.log_metrics`: {tracking['mlflow_metrics']:.1f} ms), in SQLite.",
    )
