"""The saved views of MLflow's pages, in the format that 3.17 reads and nothing describes."""

import json
import zlib
from base64 import b64decode
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import mlflow
import pytest
from mlflow import MlflowClient

from othink_pipeline.tracking import runs, views
from tests.support.store import open_store

CURVES = ("val/counting", "val/geometry", "train/reward", "train/kl", "val/format_rate/counting")
SCORES = {
    **{"own/accuracy": 0.75, "other/accuracy": 0.5, "own/gain": 0.25, "own/accuracy_low": 0.7},
    **{"eval/counting": 0.75, "eval/geometry": 0.5, "eval/form/counting/price": 0.8},
    **{"cost/seconds": 71.0, "eval/format_rate/counting": 1.0},
}
PARENT = {"kind": "grid", "env": "seeds"}


@pytest.fixture(scope="module")
def grid(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A parent with two cells, one of them an earlier run's, and a stranger; its id."""
    with open_store(empty_store, tmp_path_factory.mktemp("store"), "views"):
        yield record_grid(MlflowClient())


def record_grid(client: MlflowClient) -> str:
    experiment_id = client.get_experiment_by_name("views").experiment_id
    earlier, parent = (
        client.create_run(experiment_id, run_name=name, tags=PARENT).info.run_id
        for name in ("earlier", "cross_task today")
    )
    runs.set_parent(earlier)
    reused = runs.start_run("geometry/grpo/s0", "cell", {"task": "geometry"})
    runs.start_run("counting/sft/s0", "cell", {"task": "counting"})
    runs.set_parent(parent)
    runs.join_grid(reused, "reused")
    trained = runs.start_run("counting/grpo/s0", "cell", {"task": "counting"})
    for name, value in SCORES.items():
        client.log_metric(reused, name, value, step=4)
    for step, name in product((2, 4), CURVES):
        client.log_metric(trained, name, 0.5, step=step)
    runs.set_parent(None)
    return parent


@pytest.fixture(scope="module")
def saved(grid: str) -> dict[str, dict[str, Any]]:
    return save_views(grid)


def save_views(parent: str) -> dict[str, dict[str, Any]]:
    """Title -> what MLflow's page reads of the view that the link to it names."""
    views.save_views(parent)
    experiment = MlflowClient().get_experiment_by_name("views")
    found = {}
    for title, link in views.view_links(parent).items():
        address = urlsplit(link)
        path, _, query = address.fragment.partition("?")
        assert (address.netloc, path) == (
            "127.0.0.1:5000",
            f"/experiments/{experiment.experiment_id}/runs",
        )
        key = parse_qs(query)["viewStateShareKey"][0]
        value = experiment.tags[f"mlflow.sharedViewState.{key}"]
        assert len(value) < 20_000
        envelope = json.loads(value)
        assert isinstance(envelope["name"], str)
        assert isinstance(envelope["createdAt"], int)
        kind, _, state = envelope["state"].partition(";")
        assert kind == "deflate"
        found[title] = json.loads(zlib.decompress(b64decode(state)))
    return found


def test_the_views_and_where_their_links_lead(grid: str, saved: dict[str, dict[str, Any]]) -> None:
    links = views.view_links(grid)
    assert list(links) == list(saved) == ["Transfer matrix", "Curves and scores", "Samples"]
    modes = [parse_qs(link.partition("?")[2])["compareRunsMode"] for link in links.values()]
    assert modes == [["TABLE"], ["CHART"], ["ARTIFACT"]]
    assert all(len(link) < 150 for link in links.values())
    assert views.latest_links("seeds") == links
    assert views.latest_links("base") == {}


def test_the_latest_views_are_those_of_a_run_that_saved_them(
    grid: str, saved: dict[str, dict[str, Any]]
) -> None:
    later = runs.start_run("stopped", "grid", {"env": "seeds"})
    assert later != grid
    assert views.latest_links("seeds") == views.view_links(grid)


def test_a_grids_runs_lead_to_the_latest_kedro_run_that_recorded_all_of_them(
    grid: str, saved: dict[str, dict[str, Any]]
) -> None:
    ids = {run.info.run_name: run.info.run_id for run in runs.grid_runs(grid)}
    assert len(ids) == 2
    assert views.latest_grid(ids.values(), "seeds") == grid
    assert views.latest_grid(ids.values(), "base") is None  # that tests them in another way
    stranger = runs.start_run("counting/sft/s1", "cell", {})
    assert views.latest_grid([*ids.values(), stranger], "seeds") is None
    assert views.latest_grid([*ids.values(), "0" * 32], "seeds") is None
    assert views.latest_grid([], "seeds") is None


def test_a_view_shows_the_runs_of_its_kedro_run_reused_ones_too(
    saved: dict[str, dict[str, Any]],
) -> None:
    for state in saved.values():
        assert state["orderByKey"] == "attributes.run_name"
        found = mlflow.search_runs(
            filter_string=state["searchFilter"],
            order_by=[f"{state['orderByKey']} ASC"],
            output_format="list",
        )
        names = [run.info.run_name for run in found]
        assert names == ["counting/grpo/s0", "geometry/grpo/s0"]


def test_the_matrix_has_its_scores_as_columns(saved: dict[str, dict[str, Any]]) -> None:
    assert saved["Transfer matrix"]["selectedColumns"] == [
        *("tags.`task`", "tags.`method`", "tags.`seed`"),
        *("metrics.`own/accuracy`", "metrics.`own/gain`"),
        *("metrics.`other/accuracy`", "metrics.`other/gain`"),
        *("metrics.`eval/counting`", "metrics.`eval/geometry`"),
    ]


def test_test_accuracy_comes_first_and_costs_are_no_charts(
    saved: dict[str, dict[str, Any]],
) -> None:
    state = saved["Curves and scores"]
    sections = {section["uuid"]: section["name"] for section in state["compareRunSections"]}
    assert next(iter(sections.values())) == "Test accuracy"
    cards = state["compareRunCharts"]
    placed = [
        (sections[card["metricSectionId"]], card["type"], card["metricKey"])
        for card in cards
        if not card["deleted"]
    ]
    assert placed[:4] == [
        ("Test accuracy", "BAR", name)
        for name in ("own/accuracy", "other/accuracy", "eval/counting", "eval/geometry")
    ]
    kinds = {name: (section, kind) for section, kind, name in placed}
    assert kinds["val/counting"] == ("Validation accuracy", "LINE")
    assert kinds["train/kl"] == ("Training", "LINE")
    assert kinds["eval/form/counting/price"] == ("Test accuracy by question form", "BAR")
    assert kinds["val/format_rate/counting"] == ("More curves", "LINE")
    # Every metric has a card: for others the page would make one of its own.
    assert {card["metricKey"] for card in cards} == {*SCORES, *CURVES}
    assert [card["metricKey"] for card in cards if card["deleted"]] == ["cost/seconds"]
    assert not any(card["isGenerated"] for card in cards)


def test_the_link_to_a_server_holds_no_password(grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://ada:secret@host:5000/")
    assert views.server_address() == "http://host:5000"


def test_after_other_pictures_the_views_show_their_scores(grid: str) -> None:
    """They stand on the same runs as those of the right pictures."""
    (cell,) = (run for run in runs.grid_runs(grid) if run.data.metrics.keys() >= SCORES.keys())
    experiment_id = MlflowClient().get_run(grid).info.experiment_id
    blind = MlflowClient().create_run(experiment_id, tags={"kind": "grid"}).info.run_id
    MlflowClient().set_tag(cell.info.run_id, runs.grid_tag(blind), "tested")
    other = {name.replace("/", "_shuffled/", 1): 0.25 for name in SCORES if "cost" not in name}
    for name in other:
        MlflowClient().log_metric(cell.info.run_id, name, 0.25, step=4)
    MlflowClient().log_metric(blind, "base_shuffled/accuracy", 0.25)
    state = save_views(blind)
    assert state["Transfer matrix"]["selectedColumns"][3:] == [
        *("metrics.`own_shuffled/accuracy`", "metrics.`own_shuffled/gain`"),
        *("metrics.`other_shuffled/accuracy`", "metrics.`other_shuffled/gain`"),
        *("metrics.`eval_shuffled/counting`", "metrics.`eval_shuffled/geometry`"),
    ]
    cards = state["Curves and scores"]["compareRunCharts"]
    placed = {card["metricKey"]: card["metricSectionId"] for card in cards}
    assert placed["own_shuffled/accuracy"] == "Test accuracy"
    assert placed["eval_shuffled/form/counting/price"] == "Test accuracy by question form"
    assert placed["own/accuracy"] == placed["eval/counting"] == "More scores"
    assert placed.keys() == {*SCORES, *other}
