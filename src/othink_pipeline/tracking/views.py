"""Saved views of MLflow's pages: what a link opens is the answer, not a list of runs.

A view is a tag of the experiment, ``mlflow.sharedViewState.<key>``, which MLflow's pages write and
read (3.17: nothing documents it). One that a page does not understand is told there, and the page
opens as it always does.
"""

from __future__ import annotations

import json
import re
import time
import zlib
from base64 import b64encode
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple
from urllib.parse import urlencode

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from othink_pipeline.core.redaction import redact_uri
from othink_pipeline.tracking.runs import grid_runs, grid_tag, grids_of

VIEW_TAG = "mlflow.sharedViewState."
SAMPLES = "samples.json"
"""The table of answers that each run has; see ``records.log_samples``."""

Mode = Literal["TABLE", "CHART", "ARTIFACT"]


class View(NamedTuple):
    """A page that shows all runs of one `kedro run`."""

    key: str
    title: str
    mode: Mode


VIEWS = (
    View("matrix", "Transfer matrix", "TABLE"),
    View("curves", "Curves and scores", "CHART"),
    View("samples", "Samples", "ARTIFACT"),
)


class Section(NamedTuple):
    """Charts that stand together: of the metrics whose whole name fits a pattern, in this order.

    ``{shown}`` is "_shuffled" where other pictures were shown, else nothing.
    """

    title: str
    chart: Literal["BAR", "LINE"]
    patterns: tuple[str, ...]
    is_open: bool = True


SECTIONS = (
    Section(
        "Test accuracy",
        "BAR",
        ("own{shown}/accuracy", "other{shown}/accuracy", "eval{shown}/[^/]+"),
    ),
    Section("Gain over the base model", "BAR", ("own{shown}/gain", "other{shown}/gain")),
    Section("Validation accuracy", "LINE", ("val/[^/]+",)),
    Section("Training", "LINE", ("train/reward", "train/kl", "train/kl_weight", "train/loss")),
    Section("Test accuracy by question form", "BAR", ("eval{shown}/form/.+",), is_open=False),
    Section("More scores", "BAR", ("(own|other|eval).*/.+",), is_open=False),
    Section("More curves", "LINE", ("(val|train)/.+",), is_open=False),
)
"""A metric stands in the first that it fits. What it cost is no chart: machines differ."""
NO_CHART = "(cost|system)/.+"


def view_links(parent_id: str) -> dict[str, str]:
    """Title -> address of each view of a `kedro run`.

    On the tracking server, or where ``mlflow ui`` answers when there is none.
    """
    experiment_id = MlflowClient().get_run(parent_id).info.experiment_id
    experiment = f"{server_address()}/#/experiments/{experiment_id}/runs?"
    return {
        view.title: experiment
        + urlencode(
            {
                "viewStateShareKey": _key(parent_id, view),
                "compareRunsMode": view.mode,
                "workflowType": "machine_learning",  # else it opens in its view for agents
            }
        )
        for view in VIEWS
    }


def latest_links(env: str) -> dict[str, str]:
    """The same of an environment's latest `kedro run` that has views; where there is none, nothing.

    A run saves them when it ends well. Of those before the latest hundred none is looked for.
    """
    newest_first = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.kind = 'grid' and tags.env = '{env}'",
        order_by=["attributes.start_time DESC"],
        max_results=100,
        output_format="list",
    )
    return next((view_links(run.info.run_id) for run in newest_first if _has_views(run)), {})


def latest_grid(run_ids: Iterable[str], env: str) -> str | None:
    """An environment's latest `kedro run` that has views, of those that all these runs are in.

    Environments may share cells: each tests them in a way of its own.
    """
    grids = [grid for grid in grids_of(run_ids) if grid.data.tags.get("env") == env]
    recorded = [grid for grid in grids if _has_views(grid)]
    latest = max(recorded, key=lambda grid: grid.info.start_time, default=None)
    return str(latest.info.run_id) if latest else None


def _has_views(grid: Run) -> bool:
    experiment = MlflowClient().get_experiment(grid.info.experiment_id)
    return VIEW_TAG + _key(grid.info.run_id, VIEWS[0]) in experiment.tags


def run_link(run: Run) -> str:
    """Address of the page of a run."""
    return f"{server_address()}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def server_address() -> str:
    """Where MLflow's pages are, without credentials."""
    uri = mlflow.get_tracking_uri()
    if not uri.startswith("http"):
        return "http://127.0.0.1:5000"
    return redact_uri(uri).replace("***@", "").rstrip("/")


def save_views(parent_id: str) -> None:
    """Save the views of a `kedro run`, with a chart for each metric that its runs have by now."""
    client = MlflowClient()
    parent = client.get_run(parent_id)
    metrics = {name for run in grid_runs(parent_id) for name in run.data.metrics}
    # A run has the scores of all pictures that it was ever shown; the parent only today's.
    shown = "_shuffled" if "base_shuffled/accuracy" in parent.data.metrics else ""
    now_ms = int(time.time() * 1000)
    for view in VIEWS:
        envelope = {
            "name": f"{view.title}, {parent.info.run_name}",
            "createdAt": now_ms,
            "updatedAt": now_ms,
            "state": _pack(_state(view.key, parent_id, metrics, shown)),
        }
        tag = VIEW_TAG + _key(parent_id, view)
        client.set_experiment_tag(parent.info.experiment_id, tag, json.dumps(envelope))


def _key(parent_id: str, view: View) -> str:
    return f"{parent_id[:8]}-{view.key}"


def _pack(state: dict[str, Any]) -> str:
    """As MLflow's pages do; an experiment's tag holds 20,000 characters."""
    text = json.dumps(state, separators=(",", ":"))
    return "deflate;" + b64encode(zlib.compress(text.encode(), level=9)).decode()


def _state(key: str, parent_id: str, metrics: Iterable[str], shown: str) -> dict[str, Any]:
    """What the page is told: which runs, in which order, which columns and charts."""
    tests = sorted(name for name in metrics if re.fullmatch(f"eval{shown}/[^/]+", name))
    scores = [f"{scope}{shown}/{of}" for scope in ("own", "other") for of in ("accuracy", "gain")]
    scores += tests
    columns = [f"tags.`{tag}`" for tag in ("task", "method", "seed")]
    columns += [f"metrics.`{name}`" for name in scores]
    state = {
        "searchFilter": f"tags.`{grid_tag(parent_id)}` != ''",
        "orderByKey": "attributes.run_name",  # by task, then by method
        "orderByAsc": True,
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": True,
        "runListHidden": key == "samples",  # its columns are the runs
    }
    if key == "curves":
        state |= _charts(metrics, shown)
    return state


def _charts(metrics: Iterable[str], shown: str) -> dict[str, Any]:
    """A card for each metric: one without would be drawn as a line, and scores are of one step."""
    sections, cards, left = [], [], sorted(metrics)
    for section in SECTIONS:
        sections.append(
            {
                "uuid": section.title,
                "name": section.title,
                "display": section.is_open,
                "isReordered": True,
            }
        )
        for pattern in section.patterns:
            fitting = [name for name in left if re.fullmatch(pattern.format(shown=shown), name)]
            cards += [_card(name, section.chart, section.title) for name in fitting]
            left = [name for name in left if name not in fitting]
    hidden = [name for name in left if re.fullmatch(NO_CHART, name)]
    cards += [{**_card(name, "BAR", SECTIONS[-1].title), "deleted": True} for name in hidden]
    return {
        "compareRunCharts": cards,
        "compareRunSections": sections,
        "isAccordionReordered": True,  # else the page sorts the sections by name
    }


def _card(metric: str, chart: str, section: str) -> dict[str, Any]:
    card = {
        "uuid": metric,
        "type": chart,
        "metricKey": metric,
        "metricSectionId": section,
        "displayName": metric,
        "isGenerated": False,  # the page would make a line of a score
        "deleted": False,
        "runsCountToCompare": 100,
    }
    if chart == "LINE":
        card |= {
            "xAxisKey": "step",
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "range": {},
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
            "useGlobalXaxisKey": True,
            "useGlobalLineSmoothing": True,
        }
    return card
