"""Checks that need no torch, the gate before the first training, and the preflight pipeline."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from kedro.io import DataCatalog
from kedro.pipeline import Node, Pipeline
from safetensors.torch import load_file, save_file

from othink_pipeline.cells.methods import resolve_method
from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.cluster.machines import on_machines
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.hub import fetch_model
from othink_pipeline.core.safetensors import Weights, read_weights
from othink_pipeline.data.examples import draw_examples
from othink_pipeline.data.manifests import Examples, Split
from othink_pipeline.data.parameters import DataPreparation, SplitSizes, TaskSource
from othink_pipeline.data.preparation import CELL_SPLITS, examples_key
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.pipelines.base_model import nodes as base_model_nodes
from othink_pipeline.pipelines.base_model.nodes import CHECKED, check_base_model
from othink_pipeline.pipelines.preflight.nodes import (
    Fit,
    check_fit,
    check_places,
    measure_costs,
    report_checks,
)
from othink_pipeline.preflight import compatibility, disk, environment
from othink_pipeline.preflight.costs import Speed
from othink_pipeline.preflight.disk import needed_disk_bytes, source_bytes
from othink_pipeline.preflight.rows import Row
from othink_pipeline.tracking import records, runs
from othink_pipeline.training.parameters import Lora
from tests.conftest import PROMPT, TASKS, MiniModel, shipped_parameters
from tests.support.examples import write_examples
from tests.support.fake_hub import COMMIT, FakeHub
from tests.support.manifests import make_model, with_split

SIZES = {"train": 6, "validation": 4, "test": 5}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def raw() -> dict[str, Any]:
    """The shipped parameters, for a grid of two cells a task."""
    merged = shipped_parameters()
    merged["experiment"] = {"tasks": list(TASKS), "methods": ["sft", "grpo"], "seeds": [0]}
    merged["folders"] = {
        "examples": "data/03_primary",
        "checkpoints": "data/06_models",
        "predictions": "data/07_model_output",
    }
    merged["rebuild"]["path"] = "data/06_models/rebuilt"
    merged["base_model"]["path"] = "model"
    merged["data_preparation"] |= {"prompt": PROMPT, "splits": {"base": 9, **SIZES}}
    merged["training"]["validation_examples"] = SIZES["validation"]
    return merged


@pytest.fixture
def project(tmp_path: Path, mini_model: MiniModel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base model, and MLflow out of the way."""
    shutil.copytree(mini_model.path, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: "sqlite:///mlflow.db")
    return tmp_path


def prepare(folder: Path, task: str) -> Examples:
    """Prepared examples of a task, as the data_preparation pipeline leaves them."""
    (folder / task).mkdir(parents=True)
    examples = list(draw_examples(task, SIZES, seed=0))
    splits = {}
    for split, size in SIZES.items():
        file = folder / task / f"{split}.arrow"
        write_examples([row for row in examples if row["split"] == split], file)
        splits[split] = Split(
            path=str(file), examples=size, digest=f"digest of {split}", prompt=PROMPT
        )
    sizes = SplitSizes(base=9, **SIZES)
    preparation = DataPreparation(
        seed=0, splits=sizes, prompt=PROMPT, max_rejected=0, train_examples={}, sources={}
    )
    key = examples_key(preparation, task, CELL_SPLITS)
    return Examples.write_folder(
        folder / task, task=task, seed=0, key=key, files="f", rejected=0, splits=splits
    )


def of(rows: list[Row], check: str) -> Row:
    (row,) = [row for row in rows if row.check == check]
    return row


# --- Sizes: weights, disk


def test_parameters_are_counted_without_loading(mini_model: MiniModel) -> None:
    parameters = mini_model.facts["parameters"]
    found = read_weights(mini_model.path)
    assert (found.parameters, found.stored_bytes) == (parameters, 4 * parameters)


def test_weights_in_several_files_are_counted_by_their_index(
    mini_model: MiniModel, tmp_path: Path
) -> None:
    weights = load_file(mini_model.path / "model.safetensors")
    names = sorted(weights)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, some in parts.items():
        save_file({name: weights[name] for name in some}, tmp_path / file)
    save_file(weights, tmp_path / "adapter.safetensors")  # not in the index
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {n: f for f, some in parts.items() for n in some}}))
    assert read_weights(tmp_path) == read_weights(mini_model.path)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ConfigurationError, match=r"two\.safetensors: not there"):
        read_weights(tmp_path)
    index.write_text("[]")
    with pytest.raises(ConfigurationError, match="not an index of weights"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"\xff" * 100,
        bytes(100),
        b"\x04" + bytes(7) + b"null",
    ],
)
def test_what_is_no_safetensors_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"model\.safetensors: no whole safetensors file"):
        read_weights(tmp_path)


def test_the_disk_holds_checkpoints_of_all_cells_and_the_states_of_one(
    raw: dict[str, Any],
) -> None:
    raw["training"] |= {"updates": 10, "checkpoint_every_updates": 4}  # 4, 8 and the last
    raw["methods"]["sft"]["updates"] = 8  # 4 and 8
    rl, sft = (resolve_method(raw, name, "counting") for name in ("grpo", "sft"))
    settings = Parameters.read(raw).model
    weights = Weights(100, 400, {"model.visual.a.weight": (2, 10), "model.b.weight": (8, 10)})
    rest = needed_disk_bytes(weights, [], settings)
    assert rest == 2 * 1024**3

    def need(*cells: Any, **changes: Any) -> int:
        changed = [cell.model_copy(update=changes) for cell in cells]
        return needed_disk_bytes(weights, changed, settings) - rest

    assert need(rl, sft, rl) == (3 + 2 + 3) * 400 + 3 * (100 * 4 + 2 * 100 * 4)
    assert need(rl, sync_ref_model=True) == need(rl) + 3 * 100 * 4
    assert need(sft, optimizer="adamw_8bit") == 2 * 400 + 3 * (100 * 4 + 2 * 100)
    assert need(sft, freeze_vision=True) == 2 * 400 + 3 * (80 * 12 + 20 * 4)
    at_once = needed_disk_bytes(weights, [rl, sft, rl], settings, at_once=2) - rest
    assert at_once == need(rl, sft, rl) + 3 * (100 * 4 + 2 * 100 * 4)  # on Ray
    small = sft.model_copy(update={"optimizer": "adamw_8bit"})
    assert need(small, sft) == need(sft, small) == 4 * 400 + 3 * 100 * 12  # the larger states
    settings = settings.model_copy(update={"dtype": "bfloat16"})
    assert need(sft) == 2 * 200 + 3 * 100 * 12
    assert need(sft, freeze_vision=True) == 2 * 200 + 3 * (80 * 12 + 20 * 2)
    lora = Lora(rank=2, alpha=4.0, dropout=0.0, modules="all-linear", merge=False)
    adapters = 2 * (2 + 10) + 2 * (8 + 10)
    assert need(sft, lora=lora) == 2 * 4 * adapters + 3 * 12 * adapters
    merged = lora.model_copy(update={"merge": True})
    assert need(sft, lora=merged) == 2 * 200 + 3 * 12 * adapters


def test_the_copy_of_pictures_that_are_read_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, size in {"set/a.parquet": 100, "images/x/y.png": 20, "images/z.png": 3}.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(bytes(size))
    columns = {"image": "image", "question": "q", "answer": "a", "steps": None}
    places: dict[str, dict[str, Any]] = {
        "folder": {"kind": "folder", "path": "set", "split": "train"},
        "jsonl": {"kind": "jsonl", "file": "test.jsonl", "images": "images"},
        "hub": {"kind": "hub", "id": "a/b", "revision": "main", "split": "train"},
    }

    def source(train: str, test: str) -> TaskSource:
        splits = {"train": places[train], "test": places[test]}
        return TaskSource(
            **{
                name: {"source": place, "columns": columns, "prompt": None}
                for name, place in splits.items()
            }
        )

    sources = {"one": source("folder", "jsonl"), "two": source("hub", "hub")}
    assert source_bytes(sources, ["one", "two", "drawn"]) == 123
    assert source_bytes({"one": source("folder", "folder")}, ["one"]) == 100  # a folder once
    assert source_bytes(sources, ["two"]) == 0


# --- Where a run writes


def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    text = {"type": "text.TextDataset"}
    (tmp_path / "taken").write_text("")
    catalog = DataCatalog.from_config(
        {
            "fine": {**text, "filepath": str(tmp_path / "new/folder/a.txt")},
            "bad_{name}": {**text, "filepath": str(tmp_path / "taken/{name}.txt")},
            "far": {**text, "filepath": "memory://nowhere/c.txt"},
        }
    )
    makes = [Node(list, None, name, name=name) for name in ("fine", "far", "unknown")]
    environment.check_outputs(Pipeline(makes), catalog)
    assert [file.name for file in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(ConfigurationError, match=r"catalog\.yml: bad_a") as error:
        environment.check_outputs(
            Pipeline([*makes, Node(list, None, "bad_a", name="bad")]), catalog
        )
    assert str(tmp_path / "taken") in error.value.message


def test_room_is_measured_where_the_folder_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def usage(folder: Path) -> Usage:
        asked.append(folder)
        return Usage(9, 9, 5 * 1024**3)

    monkeypatch.setattr(disk.shutil, "disk_usage", usage)
    disk.check_disk(tmp_path / "not" / "there")
    assert asked == [tmp_path]


def test_a_silent_server_is_named_without_its_password(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for scheme in ("http", "postgresql"):
        with pytest.raises(ConfigurationError, match="does not answer") as error:
            environment.check_store(f"{scheme}://me:secret@127.0.0.1:{port}/x", None, tmp_path)
        assert "secret" not in error.value.message
        assert f"127.0.0.1:{port}" in error.value.message


# --- The pipeline


def fits(raw: dict[str, Any]) -> list[Row]:
    return check_fit(raw).rows


def test_what_the_grid_costs_is_said(raw: dict[str, Any], project: Path) -> None:
    raw["experiment"]["seeds"] = 3
    raw["training"] |= {"updates": 10, "prompts_per_update": 5}
    raw["rl"] |= {"completions_per_prompt": 4, "max_completion_tokens": 20}
    rows = check_places(raw)
    assert of(rows, "sft on counting").detail == "3 cells, each 10 updates, 50 prompts"
    assert of(rows, "grpo on geometry").detail.startswith(
        "3 cells, each 10 updates, 50 prompts, 200 completions, 4,000 tokens at most; KL weight "
    )
    assert of(rows, "grid").detail == (
        "12 cells, in all 120 updates, 1,200 completions, 24,000 tokens at most"
    )
    assert {row.outcome for row in rows} == {"note", "ok"}
    assert sorted(path.name for path in project.iterdir()) == ["model"]  # nothing is made


def test_every_place_that_cannot_be_written_is_shown(
    raw: dict[str, Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "taken").write_text("")
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: "sqlite:///taken/mlflow.db")
    raw["folders"] = {
        "examples": "taken/03",
        "checkpoints": "taken/06",
        "predictions": "taken/07",
    }
    rows = check_places(raw)
    failed = {row.check: row.detail for row in rows if row.outcome == "FAILED"}
    folders = {f"folders.{name}" for name in ("examples", "checkpoints", "predictions")}
    assert set(failed) == {"MLflow store", *folders}
    assert "folders.examples = 'taken/03': cannot write to" in failed["folders.examples"]


def test_each_fault_of_a_launcher_that_a_run_would_refuse_is_shown(
    raw: dict[str, Any], project: Path
) -> None:
    (project / "fsdp.yaml").write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}")
    raw["compute"]["launcher"] = "fsdp.yaml"
    faults = [row.detail for row in check_places(raw) if row.outcome == "FAILED"]
    assert [fault.partition(". Set")[0] for fault in faults] == [
        "compute.launcher = 'fsdp.yaml': fsdp_config.fsdp_version = 1",
        "compute.launcher = 'fsdp.yaml': fsdp_config.fsdp_state_dict_type = None",
    ]


def test_a_grid_that_the_disk_cannot_hold_fails(
    raw: dict[str, Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = read_weights(project / "model").stored_bytes
    cells = 4
    need = 2 * 1024**3 + cells * 3 * stored + 3 * 3 * stored  # three checkpoints a cell
    free = {"bytes": need}
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: Usage(9, 9, free["bytes"]))
    assert of(check_places(raw), "disk").outcome == "ok"
    free["bytes"] -= 1
    assert of(check_places(raw), "disk").outcome == "FAILED"
    raw["base_model"]["path"] = ["model", "nowhere"]
    assert "nowhere/model.safetensors: not there" in of(check_places(raw), "disk").detail


def test_examples_that_are_not_there_yet_are_a_note(raw: dict[str, Any], project: Path) -> None:
    prepare(project / "data/03_primary", "geometry")
    rows = fits(raw)
    assert of(rows, "counting examples").outcome == "note"
    assert of(rows, "counting test").detail.startswith(f"{compatibility.DRAWN['test']} examples")
    assert of(rows, "geometry examples").outcome == "ok"
    assert of(rows, "geometry test").detail.startswith(f"{SIZES['test']} examples")
    assert "FAILED" not in {row.outcome for row in rows}
    for key, value in {
        "seed": 1,
        "prompt": "{question}",
        "splits": {"base": 9, **SIZES, "test": 6},
    }.items():
        changed = {**raw, "data_preparation": {**raw["data_preparation"], key: value}}
        assert "other settings" in of(fits(changed), "geometry examples").detail


def test_a_model_of_the_hub_is_asked_for_and_checked_once_it_is_there(
    raw: dict[str, Any], project: Path, hub: FakeHub, mini_model: MiniModel
) -> None:
    hub.add_folder("own/mini", mini_model.path)
    raw["base_model"] = {"path": None, "hub": {"id": "own/mini", "revision": "main"}}
    fit = check_fit(raw)
    row = of(fit.rows, "model own/mini")
    assert (row.outcome, row.detail[:26]) == ("note", "on the hub, a run download")
    assert fit.unseen == ["the model"]
    assert of(check_places(raw), "disk") == Row(
        "disk", "note", "not known before the model is downloaded"
    )
    assert hub.downloads() == ["config.json"]  # which says whether it needs code of its own
    folder, _ = fetch_model("own/mini", "main")
    hub.requests.clear()
    fit = check_fit(raw)
    assert of(fit.rows, f"model {folder}").outcome == "ok"
    assert not fit.unseen
    assert of(check_places(raw), "disk").outcome == "ok"
    assert hub.requests == []
    raw["base_model"]["hub"]["id"] = "own/none"
    row = of(fits(raw), "model own/none")
    assert (row.outcome, "has none with this id" in row.detail) == ("FAILED", True)


def test_every_fault_is_shown_whatever_the_others_are(
    raw: dict[str, Any], project: Path, mini_model: MiniModel
) -> None:
    """Damaged examples, a damaged model, a model that cannot take the prompts."""
    prepare(project / "data/03_primary", "counting")
    with (project / "data/03_primary/counting/test.arrow").open("ab") as file:
        file.write(b"more")
    shutil.copytree(mini_model.path, project / "damaged")
    (project / "damaged/config.json").write_text((project / "model/config.json").read_text() + " ")
    make_model(project / "damaged")  # of another digest than ``model``: these are two
    with (project / "damaged/config.json").open("a") as file:
        file.write("\n")
    raw["base_model"]["path"] = ["damaged", "model"]
    raw["evaluation"]["max_completion_tokens"] = 1000
    rows = fits(raw)
    failed = {row.check: row for row in rows if row.outcome == "FAILED"}
    assert set(failed) == {"counting examples", "model damaged", "context of model for evaluation"}
    assert "kedro run --pipelines=data_preparation" in failed["counting examples"].detail
    assert "differ from the digest" in failed["model damaged"].detail


def test_the_largest_base_model_is_measured_with_its_own_longest_examples(
    raw: dict[str, Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from othink_pipeline.preflight import measure

    shutil.copytree(project / "model", project / "larger")
    weights = load_file(project / "larger/model.safetensors")
    more = {f"{name}.more": weight.clone() for name, weight in weights.items()}
    save_file({**weights, **more}, project / "larger/model.safetensors")
    raw["base_model"]["path"] = ["model", "larger"]
    fit = Fit([], {"model": "its lengths", "larger": "other lengths"})  # type: ignore[dict-item]
    given: list[Any] = []

    def grid(*arguments: Any) -> Any:
        given.append(arguments)
        return [Row("an update of sft", "note", "quick")], Speed({"sft": 1.0, "rl": 1.0}, 0.0)

    monkeypatch.setattr(measure, "measure_grid", grid)
    rows = measure_costs(raw, fit)
    ((path, lengths, methods, _),) = given
    assert (path, lengths, set(methods)) == ("larger", "other lengths", {"sft", "grpo"})
    assert [row.check for row in rows] == ["an update of sft", "the grid that is left"]
    updates = 4 * raw["training"]["updates"]
    assert rows[1].detail.startswith(f"4 of 4 cells, {updates} updates and ")


def test_nothing_is_measured_where_a_check_failed(
    raw: dict[str, Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw["evaluation"]["max_completion_tokens"] = 1000
    found = check_fit(raw)
    assert found.lengths == {}
    monkeypatch.setattr(
        "othink_pipeline.preflight.measure.measure_grid", lambda *_: pytest.fail("measured")
    )
    assert measure_costs(raw, found) == []
    raw["evaluation"]["max_completion_tokens"] = 72
    found = check_fit(raw)
    assert list(found.lengths) == ["model"]
    failed = found._replace(rows=[Row("counting examples", "FAILED", "are damaged.")])
    assert measure_costs(raw, failed) == []
    assert measure_costs(raw, found._replace(unseen=["the examples of geometry"])) == []


def test_the_report_prints_all_and_fails_with_what_failed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = [Row("disk", "ok", "room"), Row("long name", "note", "by the way")]
    cost = Row("hours", "note", "two")
    report_checks(good[:1], Fit(good[1:], {"model": "its lengths"}), [cost])  # type: ignore[dict-item]
    assert capsys.readouterr().out == (
        "disk       ok      room\nlong name  note    by the way\nhours      note    two\n"
        "Ready: hours, two.\n"
    )
    bad = [Row("model", "FAILED", "is broken.", "Mend it."), Row("task", "FAILED", "is wrong.")]
    with pytest.raises(ConfigurationError) as error:
        report_checks(good, Fit(bad[:1], {}), bad[1:])
    assert error.value.message == (
        "checks that failed: 2\n  model: is broken. Mend it.\n  task: is wrong."
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "task", "disk", "long"]
    unseen = ["the examples of geometry", "the model"]
    report_checks([Row("a long detail", "ok", "word " * 60)], Fit([], {}, unseen), [])
    first, *rest = capsys.readouterr().out.splitlines()
    assert "the examples of geometry and the model could not." in " ".join(rest)
    assert all(len(line) <= 100 for line in (first, *rest))
    assert rest[0].startswith(" " * first.index("word") + "word")


# --- The gate before the first training


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "open_run", lambda *_: "run")
    monkeypatch.setattr(runs, "finish_run", lambda _: None)
    monkeypatch.setattr(records, "log_checkpoint", lambda *_: "model id")


def gate(raw: Mapping[str, Any], examples: list[Examples]) -> BaseModelCheckpoint:
    p = Parameters.read(raw)
    return check_base_model(
        p.base_model,
        p.experiment,
        raw["training"],
        raw["sft"],
        raw["rl"],
        raw["methods"],
        p.evaluation,
        p.folders,
        p.model,
        p.compute,
        p.cluster,
        *examples,
        number=0,
    )


@pytest.fixture
def examples(project: Path) -> list[Examples]:
    return [prepare(project / "data/03_primary", task) for task in TASKS]


def test_the_gate_checks_once_and_again_after_any_change(
    raw: dict[str, Any],
    examples: list[Examples],
    untracked: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checked, found = [], []
    check_model = compatibility.check_model

    def check(*given: Any) -> Any:  # really once: what comes out is the same each time
        checked.append(given[0])
        found[:] = found or [check_model(*given)]
        return found[0]

    monkeypatch.setattr(compatibility, "check_model", check)
    first = gate(raw, examples)
    assert first.path == "model"
    assert (first.run_id, first.model_id) == ("run", "model id")
    digest = first.digest[:16]  # a folder for each model that was ever number 0
    assert Path(f"data/06_models/base/b0/{digest}/{CHECKED}").is_file()
    assert gate(raw, examples) == first
    assert len(checked) == 1
    changes: list[dict[str, Any]] = [
        {"rl": {**raw["rl"], "max_completion_tokens": 73}},
        {"evaluation": {**raw["evaluation"], "max_completion_tokens": 73}},
        {"training": {**raw["training"], "prompts_per_update": 3}},
    ]
    for number, change in enumerate(changes, start=2):
        gate({**raw, **change}, examples)
        assert len(checked) == number
    gate(raw, examples)  # only the last outcome is kept
    count = len(checked)
    # What no check looks at.
    methods, rl = deepcopy(raw["methods"]), {**raw["rl"], "learning_rate": 0.5}
    methods["grpo"] |= {"kl": {"schedule": "constant", "weight": 0.5}, "trained_on": {}}
    compute = {**raw["compute"], "fresh": True}
    gate({**raw, "methods": methods, "rl": rl, "compute": compute}, examples)
    assert len(checked) == count
    examples[1] = with_split(examples[1], "test", digest="other")
    gate(raw, examples)
    monkeypatch.setattr(base_model_nodes, "library_versions", lambda: {"torch": "99"})
    gate(raw, examples)
    monkeypatch.setattr(base_model_nodes, "code_digest", lambda *_: "changed")
    gate(raw, examples)
    assert len(checked) == count + 3
    assert {"model"} == set(checked)
    gate(raw, examples)
    assert len(checked) == count + 3


def test_the_gate_checks_a_model_once_wherever_the_cache_is(
    raw: dict[str, Any],
    examples: list[Examples],
    untracked: None,
    hub: FakeHub,
    mini_model: MiniModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.add_folder("own/mini", mini_model.path)
    raw["base_model"] = {"path": None, "hub": {"id": "own/mini", "revision": "main"}}
    checked: list[str] = []
    monkeypatch.setattr(
        compatibility, "check_model", lambda *given: checked.append(given[0]) or ([], None)
    )
    first = gate(raw, examples)
    assert checked == [first.path]
    assert (first.hub, first.revision, first.commit) == ("own/mini", "main", COMMIT)
    shutil.rmtree(constants.HF_HUB_CACHE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{constants.HF_HUB_CACHE}2")
    again = gate(raw, examples)
    assert again == first.model_copy(update={"path": again.path})
    assert again.path != first.path
    assert len(checked) == 1


def test_the_gate_believes_in_what_ray_sets_aside_on_ray_alone(
    raw: dict[str, Any],
    examples: list[Examples],
    untracked: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else each training would find more GPUs than processes, and fail."""
    raw["cluster"]["train"]["gpus"] = 1
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    with on_machines(1, b"", 1):
        gate(raw, examples)
    with pytest.raises(ConfigurationError, match=r"4 GPUs can be seen, and compute.num_processes"):
        gate(raw, examples)


def test_methods_outside_the_grid_do_not_matter_to_the_gate(
    raw: dict[str, Any],
    examples: list[Examples],
    untracked: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate(raw, examples)
    raw["methods"]["grpo_d"]["max_completion_tokens"] = 10_000
    monkeypatch.setattr(compatibility, "check_model", lambda *_: pytest.fail("checked again"))
    gate(raw, examples)


def test_the_gate_tells_all_faults_and_forgets_none(
    raw: dict[str, Any], examples: list[Examples], untracked: None
) -> None:
    raw["rl"]["max_completion_tokens"] = raw["evaluation"]["max_completion_tokens"] = 500
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="checks that failed: 2") as error:
            gate(raw, examples)
        assert "for grpo: " in error.value.message
        assert "for evaluation: " in error.value.message
    assert not list(Path("data/06_models").rglob(CHECKED))


def test_the_gate_refuses_examples_that_it_cannot_use(
    raw: dict[str, Any], project: Path, untracked: None
) -> None:
    manifests = [prepare(project / "data/03_primary", task) for task in TASKS]
    rows = list(draw_examples("counting", {"test": 3}, seed=0))
    rows[2]["answer"] = "seven"
    write_examples(rows, Path(manifests[0].splits["test"].path))
    with pytest.raises(ConfigurationError, match="the answer 'seven' would never be right"):
        gate(raw, manifests)


def test_a_second_run_imports_no_torch(
    raw: dict[str, Any], examples: list[Examples], untracked: None, project: Path
) -> None:
    gate(raw, examples)
    (project / "raw.json").write_text(json.dumps([raw, [each.to_json() for each in examples]]))
    code = """
import json, sys
from othink_pipeline.tracking import runs
from othink_pipeline.tracking import records as tracking
from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.data.manifests import Examples
from othink_pipeline.pipelines.base_model.nodes import check_base_model
runs.open_run = lambda *_: "run"
runs.finish_run = lambda _: None
tracking.log_checkpoint = lambda *_: "model id"
raw, examples = json.load(open("raw.json"))
p = Parameters.read(raw)
blocks = [raw[name] for name in ("training", "sft", "rl", "methods")]
check_base_model(
    p.base_model, p.experiment, *blocks, p.evaluation, p.folders, p.model, p.compute, p.cluster,
    *(Examples.parse(each, "", "") for each in examples), number=0
)
print({"torch", "transformers", "datasets"} & set(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.endswith("set()\n")
