"""A cell is trained once: killed anywhere it goes on, finished it is reused, failed it says why."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from othink_pipeline.cells.completions import is_due
from othink_pipeline.cells.evaluate import Tested, evaluate, read_predictions
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.job import CellJob, train_job
from othink_pipeline.cells.keys import JOURNAL, Settings
from othink_pipeline.cells.manifests import Checkpoint, FailedCell, FailedTest, Training
from othink_pipeline.cells.train import RUN_VARIABLE, _retire, train_cell
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import MANIFEST, digest_folder
from othink_pipeline.data.manifests import Examples
from othink_pipeline.evaluation import predictions
from othink_pipeline.models import load
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.scoring.kinds import Choice, Text
from othink_pipeline.scoring.strict import score
from othink_pipeline.tracking import recorder, runs
from othink_pipeline.tracking.journal import Journal, Table
from othink_pipeline.tracking.recorder import TrackingUnavailableError
from othink_pipeline.training import loop
from othink_pipeline.training.health import TrainingFault
from othink_pipeline.training.parameters import RL, SFT, Health, Lora
from tests.conftest import TASKS, MiniModel, shipped, shipped_health
from tests.support import commands
from tests.support.manifests import with_split
from tests.support.methods import small_evaluation, small_rl, small_sft
from tests.support.prepared import FOLDERS, STORE, prepare_project

Result = tuple[Any, pd.DataFrame]

UPDATES = 4
BUDGET = {
    "updates": UPDATES,
    "validation_examples": 3,
    "lr_schedule": "cosine",
    "weight_decay": 0.01,
}
ADAPTIVE = {
    "schedule": "adaptive",
    "start": 0.3,
    "target": 0.02,
    "gain": 2.0,
    "low": 0.01,
    "high": 5.0,
}
METHODS: dict[str, SFT | RL] = {
    "sft": small_sft(**BUDGET),
    "grpo_d": small_rl(**BUDGET, max_completion_tokens=6, kl=ADAPTIVE),
}
EVALUATION = small_evaluation()
MODEL = ModelSettings(**shipped("model"))
COMPUTE = shipped("compute", resume_every_updates=1)
HEALTH = Health(**shipped("health", completions_every_updates=2))


class Inputs(NamedTuple):
    """What the training nodes get from those before them."""

    base_model: BaseModelCheckpoint
    examples: tuple[Examples, ...]


@pytest.fixture(scope="module", autouse=True)
def surroundings() -> Iterator[None]:
    """What these tests say of stores holds for them alone."""
    yield
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)


@pytest.fixture(scope="module")
def prepared(
    mini_model: MiniModel, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project with a base model, examples and a store, and nothing trained."""
    project = tmp_path_factory.mktemp("prepared")
    prepare_project(project, mini_model, empty_store)
    return project


@pytest.fixture(scope="module")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project after one uninterrupted training of each method."""
    project = tmp_path_factory.mktemp("trained") / "project"
    shutil.copytree(prepared, project)
    with pytest.MonkeyPatch.context() as patch:
        enter(project, patch)
        for method in METHODS:
            manifest, _ = call(method)
            assert isinstance(manifest, Checkpoint)
    return project


def enter(project: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(project)
    for variable in (runs.PARENT_VARIABLE, RUN_VARIABLE):
        patch.delenv(variable, raising=False)
    mlflow.set_tracking_uri(f"sqlite:///{project / STORE}")


@pytest.fixture
def project(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, with a store of its own, in which nothing is trained."""
    shutil.copytree(prepared, tmp_path / "project")
    enter(tmp_path / "project", monkeypatch)
    return tmp_path / "project"


@pytest.fixture
def finished(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, with a store of its own, in which all is trained."""
    shutil.copytree(trained, tmp_path / "finished")
    enter(tmp_path / "finished", monkeypatch)
    return tmp_path / "finished"


def read_inputs() -> Inputs:
    folders = [Path(FOLDERS.examples, task) for task in TASKS]
    examples = tuple(Examples.read_folder(folder, "") for folder in folders)
    return Inputs(BaseModelCheckpoint.read(Path("base.json"), ""), examples)


def call(method: str = "sft", health: Any = None, **compute: Any) -> Result:
    inputs = read_inputs()
    return train_cell(
        Cell("counting", method, 3),
        METHODS[method],
        inputs.base_model,
        inputs.examples,
        Settings(
            EVALUATION,
            FOLDERS,
            MODEL,
            Compute(**{**COMPUTE, **compute}),
            health or HEALTH,
        ),
    )


def folder_of(method: str = "sft") -> Path:
    """The one folder that a method's trainings are in."""
    (folder,) = (
        place for place in Path("data/models/counting", method, "s3").iterdir() if place.is_dir()
    )
    return folder


def run_of(manifest: Checkpoint) -> Run:
    return MlflowClient().get_run(manifest.run_id)


def last_run() -> Run:
    (run, *_) = MlflowClient().search_runs(["1"], "tags.kind = 'cell'")
    return run


def logged(run: Run) -> list[tuple[str, int, float]]:
    """All values on a run as MLflow has them: metric, step, value."""
    client = MlflowClient()
    return sorted(
        (name, metric.step, metric.value)
        for name in run.data.metrics
        for metric in client.get_metric_history(run.info.run_id, name)
    )


def rows(history: pd.DataFrame) -> list[tuple[str, int, float]]:
    return sorted(zip(history["metric"], history["step"], history["value"], strict=True))


def without_times(values: list[tuple[str, int, float]]) -> list[tuple[str, int, float]]:
    return [value for value in values if value[0] != "cost/seconds"]


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("something is computed again")


@pytest.fixture
def untrainable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither trains nor loads a model."""
    monkeypatch.setattr(loop, "train", never)
    monkeypatch.setattr(loop, "load_model", never)
    monkeypatch.setattr(load, "load_model", never)
    monkeypatch.setattr(predictions, "predict", never)


def kill_when(
    monkeypatch: pytest.MonkeyPatch,
    home: Any,
    name: str,
    due: Callable[..., bool],
    error: BaseException | None = None,
) -> None:
    """Once, a function raises instead of doing its work."""
    function = getattr(home, name)
    left = [error or KeyboardInterrupt()]

    def killed(*args: Any, **kwargs: Any) -> Any:
        if left and due(*args, **kwargs):
            raise left.pop()
        return function(*args, **kwargs)

    monkeypatch.setattr(home, name, killed)


# --- Trained once


@pytest.mark.parametrize("method", METHODS)
def test_a_cell_is_trained_and_everything_of_it_is_kept(finished: Path, method: str) -> None:
    manifest, history = call(method)
    folder = folder_of(method)
    on_disk = Training.read(folder / MANIFEST, "")
    assert dict(manifest) == dict(on_disk) | {
        "path": str(folder / on_disk.checkpoint),
        "run_id": manifest.run_id,
        "model_id": manifest.model_id,
        "base_path": None,
        "base_is_hubs": False,
    }
    checkpoint = folder / f"update-{UPDATES:06d}"
    assert Path(manifest.path) == checkpoint
    assert manifest.digest == digest_folder(checkpoint) != digest_folder(Path("model"))
    inputs = read_inputs()
    expected = {
        "task": "counting",
        "method": method,
        "seed": 3,
        "parameters": METHODS[method],
        "data": inputs.examples[0].splits["train"].digest,
        "base_model": inputs.base_model.digest,
        "updates": UPDATES,
        "prompts": 2 * UPDATES,
        "skipped_batches": 0,
        "faults": {},
    }
    assert {key: getattr(manifest, key) for key in expected} == expected
    assert manifest.seconds > 0
    assert manifest.weights_changed > 0
    assert sorted(path.name for path in folder.iterdir()) == [
        *("journal.jsonl", MANIFEST, "run.json", "update-000002", "update-000004")
    ], "states to resume from are only for trainings that are not finished"

    steps = history.groupby("metric")["step"].apply(list).to_dict()
    assert steps["train/loss"] == [1, 2, 3, 4]
    check_completions(tables_of(folder), history)
    for task in TASKS:
        for metric in ("val", "val/think_rate", "val/format_rate"):
            assert steps[f"{metric}/{task}"] == [0, 2, 4]
    assert steps["cost/updates"] == [UPDATES]
    run = run_of(manifest)
    assert run.info.status == "FINISHED"
    assert logged(run) == rows(history)
    names = {item.dataset.name: item.tags[0].value for item in run.inputs.dataset_inputs}
    assert names == {
        "counting_train": "train",
        "counting_validation": "validation",
        "geometry_validation": "validation",
    }
    outputs = {output.step: output.model_id for output in run.outputs.model_outputs}
    assert outputs.keys() == {2, 4}
    assert outputs[4] == manifest.model_id
    on_base = MlflowClient().get_logged_model(inputs.base_model.model_id).metrics
    assert f"val/{TASKS[1]}" in {metric.key for metric in on_base}, "checkpoint 0 is the base model"
    assert run.data.params["learning_rate"] == "0.005"
    assert run.data.params["key"] == folder.name
    assert run.data.params["seed"] == "3"
    assert {key: run.data.tags[key] for key in ("kind", "task", "method", "seed")} == {
        "kind": "cell",
        "task": "counting",
        "method": method,
        "seed": "3",
    }


@pytest.mark.parametrize("method", METHODS)
def test_what_is_finished_is_neither_trained_nor_loaded_again(
    finished: Path, untrainable: None, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = digest_folder(folder_of(method))
    health = shipped_health()
    manifest, history = call(method, health)
    before = run_of(manifest)
    grid: str = MlflowClient().create_run("1").info.run_id
    monkeypatch.setenv(runs.PARENT_VARIABLE, grid)
    other = health.model_copy(update={"loss_not_finite": "skip_batch"})
    again, same_history = call(method, other, resume_every_updates=7)  # what changes nothing
    assert again == manifest
    assert history.equals(same_history)
    assert digest_folder(folder_of(method)) == content
    run = run_of(manifest)
    assert logged(run) == rows(history)
    assert (run.info.status, run.info.end_time) == ("FINISHED", before.info.end_time)
    assert run.data.tags[runs.grid_tag(grid)] == "reused"
    assert "resumed" not in run.data.tags


def test_other_parameters_are_another_training(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = call()
    longer = METHODS["sft"].model_copy(update={"learning_rate": 1.0e-3})
    with monkeypatch.context() as patch:
        patch.setitem(METHODS, "sft", longer)
        second, _ = call()
    assert Path(second.path).parent != Path(first.path).parent
    assert second.digest != first.digest
    assert second.run_id != first.run_id
    monkeypatch.setattr(loop, "train", never)
    assert call()[0] == first, "an edit that is taken back costs nothing"


def test_each_split_is_asked_with_its_own_prompt_and_judged_by_the_kind_of_its_task(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained on is the cell's task, validated on are all; nothing is asked of the test split."""
    seen: list[Any] = []
    inputs, kinds = read_inputs(), (Text(kind="text"), Choice(kind="choice"))

    def note(examples: Any, prompt: str, answers: Any) -> None:
        seen.append((examples["task"][:], examples["split"][:], prompt, answers))

    def train(_: Any, training: Any, log: Any, checkpoint: Any, *rest: Any) -> None:
        note(training.examples, training.prompt, training.answers)
        checkpoint(0, None, None, None)

    def validate(model: Any, processor: Any, shown: Any, prompt: str, *asked: Any) -> pd.DataFrame:
        note(shown, prompt, asked[-1])
        return pd.DataFrame({"correct": [1.0], "thought": [1.0], "format_ok": [1.0]})

    def prepared_as(each: Examples, kind: Any) -> Examples:
        for split in each.splits:
            each = with_split(each, split, prompt=f"{each.task} {split}: {{question}}")
        return each.model_copy(update={"answers": kind})

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(predictions, "predict_together", validate)
    examples = tuple(map(prepared_as, inputs.examples, kinds))
    settings = Settings(EVALUATION, FOLDERS, MODEL, Compute(**COMPUTE), HEALTH)
    cell, base_model = Cell("counting", "sft", 3), inputs.base_model
    job = CellJob(cell, METHODS["sft"], base_model, examples, settings, "key", "folder")
    train_job(job, None)
    assert seen == [
        ([task] * count, [split] * count, f"{task} {split}: {{question}}", kind)
        for task, split, count, kind in [
            ("counting", "train", 12, kinds[0]),
            ("counting", "validation", 3, kinds[0]),
            ("geometry", "validation", 3, kinds[1]),
        ]
    ]


def test_the_shares_of_a_validation_are_logged_under_their_names(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {"counting": [True, False, False, False, False], "geometry": [False] * 5}

    def train(_: Any, training: Any, log: Any, checkpoint: Any, *rest: Any) -> None:
        checkpoint(0, None, None, None)
        raise TrainingFault("seen enough")

    def validate(model: Any, processor: Any, shown: Any, *asked: Any) -> pd.DataFrame:
        table = {
            "correct": right[shown["task"][0]],
            "correct_any": [True] * 5,
            "thought": [True, True, False, False, False],
            "format_ok": [True, True, True, True, False],
        }
        return pd.DataFrame(table)

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setattr(predictions, "predict_together", validate)
    call()
    assert rows(Journal(folder_of() / JOURNAL).history()) == [
        ("val/counting", 0, 0.2),
        ("val/format_rate/counting", 0, 0.8),
        ("val/format_rate/geometry", 0, 0.8),
        ("val/geometry", 0, 0.0),
        ("val/think_rate/counting", 0, 0.4),
        ("val/think_rate/geometry", 0, 0.4),
    ]


# --- Killed and gone on with

KILLS: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "update 1": (recorder.Recorder, "metrics", lambda _, step, *rest: step == 1),
    "update 3": (recorder.Recorder, "metrics", lambda _, step, *rest: step == 3),
    "save a checkpoint": (
        load,
        "save_model",
        lambda model, processor, folder, *_: folder.name == ".update-000002.new",
    ),
    "record a checkpoint": (recorder.Recorder, "checkpoint", lambda _, step, *rest: step == 4),
    "record a score": (
        recorder.Recorder,
        "metrics",
        lambda _, step, values, *rest: step == 4 and "val/geometry" in values,
    ),
    "write the manifest": (Training, "write", lambda *_: True),
}


@pytest.mark.parametrize(
    ("method", "moment", "resume_every_updates"),
    [
        *(("sft", moment, 1) for moment in KILLS),
        ("grpo_d", "update 3", 2),
        ("grpo_d", "record a score", 2),
    ],
)
def test_a_killed_training_ends_as_one_that_was_not(
    project: Path,
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    moment: str,
    resume_every_updates: int,
) -> None:
    with monkeypatch.context() as patch:
        kill_when(patch, *KILLS[moment])
        with pytest.raises(KeyboardInterrupt):
            call(method, resume_every_updates=resume_every_updates)
    folder = folder_of(method)
    assert not (folder / MANIFEST).exists()
    if moment == "update 3":
        leave_half_written(folder)
    run = last_run()
    assert run.info.status == "KILLED"
    assert "failed" not in run.data.tags

    steps: list[int] = []
    record = recorder.Recorder.metrics

    def watch(self: Any, step: int, *rest: Any) -> None:
        steps.append(step)
        record(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "metrics", watch)
        manifest, history = call(method, resume_every_updates=resume_every_updates)
    if moment == "update 3":
        assert set(steps) == {3, 4}, "it goes on from its last state"
    assert folder_of(method) == folder
    (whole_folder,) = (trained / "data/models/counting" / method / "s3").glob("*/")
    whole = Training.read(whole_folder / MANIFEST, "")
    own = {
        "run_id": run.info.run_id,
        "path": str(folder / whole.checkpoint),
        "base_path": None,
        "base_is_hubs": False,
        **{key: getattr(manifest, key) for key in ("model_id", "seconds")},
    }
    assert dict(manifest) == dict(whole) | own
    for checkpoint in ("update-000002", "update-000004"):
        assert digest_folder(folder / checkpoint) == digest_folder(whole_folder / checkpoint)
    with monkeypatch.context() as patch:
        enter(trained, patch)
        uninterrupted = logged(MlflowClient().get_run(_run_id(whole_folder)))
    enter(project, monkeypatch)
    assert without_times(rows(history)) == without_times(uninterrupted)
    run = run_of(manifest)
    assert logged(run) == rows(history), "each value once"
    assert tables_of(folder) == tables_of(whole_folder)
    assert (run.info.status, run.data.tags["resumed"]) == ("FINISHED", "1")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("journal.jsonl", MANIFEST, "run.json", "update-000002", "update-000004")
    ]


def leave_half_written(folder: Path) -> None:
    """What a process can leave that has no time to tidy up."""
    states = folder / "resume"
    for leftover in (
        folder / ".update-000004.new",
        folder / ".update-000004.old",
        folder / "update-000004",  # published, and the process killed before it was recorded
        states / ".checkpoint-3.new",
        states / "checkpoint-3",  # half a state: without its manifest
    ):
        leftover.mkdir(parents=True)
        (leftover / "config.json").write_text("stale")
    (folder / f".{MANIFEST}.new").write_text("{")


def tables_of(folder: Path) -> list[Table]:
    return [entry for entry in Journal(folder / JOURNAL).entries if isinstance(entry, Table)]


def check_completions(tables: list[Table], history: pd.DataFrame) -> None:
    """All of both prompts, each beside the question that it answers."""
    rewards = history[history["metric"] == "train/accuracy_reward"].set_index("step")["value"]
    assert len(tables) == (2 if len(rewards) else 0), "of RL alone"
    for update, table in zip((1, 3), tables, strict=False):
        assert table.file == f"completions/update-{update:06d}.json"
        assert table.columns == [
            *("question", "completion", "accuracy_reward", "format_reward", "advantage")
        ]
        shown = pd.DataFrame(table.rows, columns=table.columns)
        assert shown["accuracy_reward"].mean() == pytest.approx(rewards[update], abs=1e-4)
        golds = shown["question"].str.rpartition("right: ")[2]
        judged = [score(text, gold) for text, gold in zip(shown["completion"], golds, strict=True)]
        assert [verdict.correct for verdict in judged] == shown["accuracy_reward"].tolist()
        groups = shown.groupby("question", sort=False)
        assert groups["advantage"].mean().tolist() == pytest.approx([0, 0], abs=1e-4)


def test_completions_are_shown_where_new_ones_are_sampled() -> None:
    assert [update for update in range(1, 13) if is_due(update, 4, 1)] == [1, 5, 9]
    assert [update for update in range(1, 13) if is_due(update, 4, 3)] == [1, 7, 10]


def test_adapters_go_on_as_well_and_are_scored_merged_or_not(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, completions, kept = read_inputs(), [], {}

    def score(manifest: Checkpoint, fresh: bool = True) -> Any:
        tested = Tested("counting", "sft", 3, 0)
        compute = Compute(**{**COMPUTE, "fresh": fresh})
        return evaluate(
            manifest, inputs.examples[1], EVALUATION, FOLDERS, MODEL, compute, tested=tested
        )

    for merge in (False, True):
        lora = Lora(rank=2, alpha=8.0, dropout=0.0, modules="all-linear", merge=merge)
        monkeypatch.setitem(METHODS, "sft", METHODS["sft"].model_copy(update={"lora": lora}))
        with monkeypatch.context() as patch:
            kill_when(patch, *KILLS["update 3"])
            with pytest.raises(KeyboardInterrupt):
                call()
        resumed, _ = call()
        kept[merge], _ = call(fresh=True)
        assert resumed.digest == kept[merge].digest, "as one that was not killed"
        reused, _ = call()
        assert reused == kept[merge]
        files = {file.name for file in Path(reused.path).iterdir()}
        assert ("model.safetensors" in files, "adapter_model.safetensors" in files) == (
            merge,
            not merge,
        )
        completions.append(read_predictions(score(reused))["completion"].tolist())
    assert completions[0] == completions[1]
    base, _ = load.load_model("model")
    for name, weight in load.load_model(kept[True].path)[0].named_parameters():
        linear = "_proj." in name or ".attn." in name or ".mlp." in name
        assert torch.equal(weight, base.get_parameter(name)) == (not linear or "bias" in name), name

    config = Path("model/config.json")
    config.write_text(config.read_text() + " ")
    assert "model: missing, or changed since its manifest" in score(kept[False]).failed
    shutil.rmtree("model")
    assert "model: missing, or changed since its manifest" in score(kept[False]).failed
    assert not isinstance(score(kept[True]), FailedTest)
    for merge in (False, True):
        assert not isinstance(score(kept[merge], fresh=False), FailedTest)


def _run_id(folder: Path) -> str:
    return str(json.loads((folder / "run.json").read_text())["run_id"])


def test_a_checkpoint_that_was_damaged_before_the_end_is_saved_again(
    project: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_when(patch, *KILLS["record a score"])
        with pytest.raises(KeyboardInterrupt):
            call()
    checkpoint = folder_of() / "update-000004"
    (checkpoint / "config.json").write_text("{}")
    manifest, _ = call()
    assert manifest.digest == digest_folder(checkpoint)
    (whole,) = (trained / "data/models/counting/sft/s3").glob("*/")
    assert manifest.digest == Training.read(whole / MANIFEST, "").digest


# --- Finished, but something around it is not


@pytest.mark.parametrize("moment", ["not told", "not tidied up"])
def test_a_training_killed_after_its_manifest_is_not_trained_again(
    project: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        if moment == "not told":
            kill_when(patch, recorder.Recorder, "_flush", lambda *_: True)
        else:
            kill_when(patch, shutil, "rmtree", lambda path, **_: Path(path).name == "resume")
        with pytest.raises(KeyboardInterrupt):
            call()
    folder = folder_of()
    assert (folder / MANIFEST).exists()
    run = last_run()
    assert run.info.status == ("KILLED" if moment == "not told" else "FINISHED")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train", never)
        manifest, history = call()
    assert manifest.run_id == run.info.run_id
    run = run_of(manifest)
    assert run.info.status == "FINISHED"
    assert ("resumed" in run.data.tags) == (moment == "not told")
    assert logged(run) == rows(history)
    assert not (folder / "resume").exists()


def test_records_that_a_server_did_not_take_are_delivered_without_training(
    finished: Path, untrainable: None
) -> None:
    """The marks of what was delivered are gone: nothing is certain, and nothing comes twice."""
    manifest, history = call()
    file = folder_of() / "journal.jsonl"
    lines = [line for line in file.read_text().splitlines() if '"delivered"' not in line]
    file.write_text("\n".join(lines) + "\n")
    assert call()[0] == manifest
    assert logged(run_of(manifest)) == rows(history)
    assert len(run_of(manifest).outputs.model_outputs) == 2


def test_a_server_that_stays_away_stops_the_run_and_loses_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        away = TrackingUnavailableError("away")
        kill_when(patch, recorder.Recorder, "_flush", lambda *_: True, away)
        with pytest.raises(TrackingUnavailableError):
            call()
    assert last_run().info.status == "FAILED"
    monkeypatch.setattr(loop, "train", never)
    manifest, history = call()
    run = run_of(manifest)
    assert run.info.status == "FINISHED"
    assert logged(run) == rows(history)


@pytest.mark.parametrize("gone", ["run", "store"])
def test_a_store_that_lost_the_run_gets_the_whole_curve_again(
    finished: Path, prepared: Path, untrainable: None, gone: str
) -> None:
    manifest, history = call()
    if gone == "run":
        MlflowClient().delete_run(manifest.run_id)
    else:
        shutil.copy(prepared / STORE, finished / "another.db")
        mlflow.set_tracking_uri(f"sqlite:///{finished / 'another.db'}")
    again, same_history = call()
    assert again.run_id != manifest.run_id
    ids = {"run_id": "", "model_id": ""}
    assert again.model_copy(update=ids) == manifest.model_copy(update=ids)
    assert history.equals(same_history)
    run = run_of(again)
    assert logged(run) == rows(history)
    assert (run.info.status, run.data.tags["replaces"]) == ("FINISHED", manifest.run_id)
    outputs = {output.step: output.model_id for output in run.outputs.model_outputs}
    assert outputs[UPDATES] == again.model_id
    assert MlflowClient().get_logged_model(again.model_id).source_run_id == again.run_id
    assert call()[0] == again


def test_fresh_trains_again_under_a_new_run(finished: Path) -> None:
    manifest, history = call()
    again, new_history = call(fresh=True)
    assert again.run_id != manifest.run_id
    assert again.digest == manifest.digest, "the same parameters, the same bits"
    assert again.seconds != manifest.seconds, "nothing was trained"
    assert without_times(rows(new_history)) == without_times(rows(history))
    for result, values in ((manifest, history), (again, new_history)):
        assert logged(run_of(result)) == rows(values)
    assert call()[0] == again


def test_a_finished_training_that_was_damaged_is_trained_anew(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest, _ = call()
    folder = folder_of()
    weights = Path(manifest.path) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    again, history = call()
    assert str(folder) in caplog.text
    assert again.run_id != manifest.run_id
    assert again.digest == manifest.digest == digest_folder(Path(again.path))
    assert logged(run_of(again)) == rows(history)
    assert run_of(manifest).info.status == "FINISHED", "the former run stays as it was"
    assert [place for place in folder.parent.iterdir() if place.is_dir()] == [folder]


def test_the_former_training_is_kept_until_another_takes_its_place(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call()
    folder = folder_of()
    content = digest_folder(folder)
    monkeypatch.setenv(RUN_VARIABLE, "this one")
    with monkeypatch.context() as patch:
        kill_when(patch, *KILLS["update 3"])
        with pytest.raises(KeyboardInterrupt):
            call(fresh=True)
    aside = folder.with_name(f".{folder.name}.old")
    assert digest_folder(aside) == content
    again, _ = call(fresh=True)  # given again by the same run it goes on with the new one
    assert run_of(again).data.tags["resumed"]
    assert not aside.exists()
    monkeypatch.setattr(loop, "train", never)
    assert call(fresh=True)[0] == again


def test_policies_that_are_set_back_bring_back_what_was_finished(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, _ = call()
    folder = folder_of()
    training = Training.read(folder / MANIFEST, "")
    training.model_copy(update={"faults": {"loss_not_finite": 1}}).write(folder / MANIFEST)
    content = digest_folder(folder)
    for changes in ({"health": HEALTH.model_copy(update={"loss_not_finite": "skip_batch"})}, {}):
        with monkeypatch.context() as patch:
            kill_when(patch, loop, "train", lambda *_: True)
            with pytest.raises(KeyboardInterrupt):
                call(fresh=not changes, **changes)
        assert not (folder / MANIFEST).exists()
        with monkeypatch.context() as patch:
            patch.setattr(loop, "train", never)
            again, _ = call()
        if changes:
            assert (again.run_id, digest_folder(folder)) == (manifest.run_id, content)
            assert [place for place in folder.parent.iterdir() if place.is_dir()] == [folder]
        else:  # it was another that was asked for
            assert "computed again" in again.failed


def test_what_is_finished_stays_aside_however_often_it_is_begun_anew(tmp_path: Path) -> None:
    folder, aside = tmp_path / "key", tmp_path / ".key.old"
    for place, file in ((folder, "journal.jsonl"), (aside, MANIFEST)):
        place.mkdir()
        (place / file).touch()
    _retire(folder, aside)
    assert [path.name for path in tmp_path.rglob("*")] == [".key.old", MANIFEST]


# --- Failures


def test_a_training_that_fails_says_why(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reason = "TrainingFault: loss is NaN at update 3"
    with monkeypatch.context() as patch:
        kill_when(patch, *KILLS["update 3"], TrainingFault("loss is NaN\nat update 3"))
        manifest, history = call()
    assert manifest == FailedCell(task="counting", method="sft", seed=3, failed=reason)
    assert history.empty
    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "counting.sft.s3" in told.getMessage()
    run = last_run()
    assert (run.info.status, run.data.tags["failed"]) == ("FAILED", reason)
    assert {step for _, step, _ in logged(run)} == {0, 1, 2}


@pytest.mark.parametrize("kind", [ConfigurationError, MemoryError])
def test_bad_input_that_one_cell_finds_stops_that_cell_without_a_traceback(
    project: Path,
    kind: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Any other error has one."""
    kill_when(monkeypatch, loop, "train", lambda *_: True, kind("no such thing"))
    manifest, _ = call()
    assert manifest.failed == f"{kind.__name__}: no such thing"
    (told,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert bool(told.exc_info) == (kind is MemoryError)
    assert last_run().info.status == "FAILED"


def test_a_journal_that_cannot_be_read_fails_its_cell_alone(finished: Path) -> None:
    journal = folder_of() / JOURNAL
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([lines[0], "no record", *lines[1:]]) + "\n")
    manifest, history = call()
    assert "line 2: no record of a training" in manifest.failed
    assert history.empty


@pytest.mark.parametrize("damage", ["base model", "examples"])
def test_what_is_not_what_its_manifest_says_is_never_trained_on(
    project: Path, untrainable: None, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = read_inputs()
    monkeypatch.setitem(globals(), "read_inputs", lambda: inputs)
    if damage == "base model":
        (Path("model") / "config.json").write_text("{}")
    else:
        (Path(FOLDERS.examples) / "geometry" / MANIFEST).write_text("{}")
    with pytest.raises(ConfigurationError, match="kedro run --pipelines=data_preparation"):
        call()
    assert not MlflowClient().search_runs(["1"], "tags.kind = 'cell'")


# --- Two at a time

OTHER_PROCESS = """
import json, logging, sys
from othink_pipeline.cells import job as cell_job
from othink_pipeline.core import locks
from tests.cells import test_train as test

class Told(logging.Handler):
    def emit(self, record):
        if "waiting until it is done" in record.getMessage():
            print("waits", flush=True)

locks.logger.setLevel("INFO")
locks.logger.addHandler(Told())
cell_job.train_job = test.never
manifest, history = test.call()
print(json.dumps([manifest.to_json(), len(history)]))
"""


def test_of_two_processes_one_trains_and_the_other_waits(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "other_process.py").write_text(OTHER_PROCESS)
    os.mkfifo(project / "said")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    place: dict[str, Any] = {"cwd": project, "output": project / "said", "env": environment}
    others = []
    train = loop.train

    def contended(*args: Any) -> Any:
        other = commands.start("other_process", **place)
        output = (project / "said").open()
        others.append((other, output))
        assert "waits\n" in iter(output.readline, ""), "it ended before it had to wait"
        return train(*args)

    monkeypatch.setattr(loop, "train", contended)
    try:
        manifest, history = call()
        ((other, said),) = others
        with said:
            output = said.read()
    finally:
        for other, _ in others:
            other.wait(60)
    assert isinstance(manifest, Checkpoint)
    assert json.loads(output.splitlines()[-1]) == [manifest.to_json(), len(history)]
    assert len(MlflowClient().search_runs(["1"], "tags.kind = 'cell'")) == 1
    assert logged(run_of(manifest)) == rows(history)
