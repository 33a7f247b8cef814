"""The smallest grid, run as `kedro run` runs it: Kedro, TRL, MLflow, all real."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import mlflow
import pandas as pd
import pytest
import yaml
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from matplotlib import pyplot as plt
from mlflow import MlflowClient
from mlflow.entities import Run
from torch.optim.optimizer import register_optimizer_step_post_hook

from othink_pipeline.__main__ import main
from othink_pipeline.config_loader import GridConfigLoader
from othink_pipeline.core.files import digest_folder
from othink_pipeline.evaluation.predictions import predict
from othink_pipeline.hooks import CellsFailedError
from othink_pipeline.models.load import load_model
from othink_pipeline.models.manifests import MadeModel
from othink_pipeline.tracking import runs
from othink_pipeline.training.rewards import ACCURACY_REWARDS
from tests.conftest import PROMPT, TASKS, MiniModel, shipped, tiny_rebuild
from tests.support.browser import CHROMIUM
from tests.support.clone import make_clone
from tests.support.manifests import make_model

ROOT = Path(__file__).parents[2]
METHODS = ("sft", "grpo", "grpo_d")
CELLS = [(task, method) for task in TASKS for method in METHODS]
TEST_EXAMPLES = 20
PARAMETERS: dict[str, Any] = {
    "experiment": {"tasks": list(TASKS), "methods": list(METHODS), "seeds": [0]},
    "data_preparation": {
        "seed": 0,
        "splits": {"base": 16, "train": 6, "validation": 5, "test": TEST_EXAMPLES},
        "prompt": PROMPT,
        "max_rejected": 0,
        "train_examples": {},
        "sources": {},
    },
    "base_model": shipped("base_model", path="data/01_raw/tiny"),
    "training": {
        **shipped("training"),
        "updates": 2,
        "prompts_per_update": 3,
        "checkpoint_every_updates": 1,
        "validation_examples": 4,
    },
    "evaluation": {
        "batch_size": 8,
        "max_completion_tokens": 10,
        "samples": 0,
        "sample_temperature": 1.0,
        "shuffle_images": False,
        "seed": 0,
    },
    "rl": {
        **shipped("rl"),
        "learning_rate": 1.0e-3,
        "lr_schedule": "constant",
        "warmup_ratio": 0.0,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "completions_per_prompt": 4,
        "unbiased_kl": True,
        "max_completion_tokens": 10,
        "temperature": 1.0,
        "rewards": {"accuracy": 1.0, "format": 1.0, "answer": "tagged"},
    },
}


class Outcome(NamedTuple):
    """The project after `kedro run --pipelines=cross_task --env=test`, and its MLflow runs."""

    project: Path
    parent: Run
    children: Mapping[str, Run]
    client: MlflowClient


@pytest.fixture(scope="module", autouse=True)
def others_unharmed() -> Iterator[None]:
    """Kedro and MLflow keep the last project in globals: other tests get their own back."""
    loader, uri = GridConfigLoader.current, mlflow.get_tracking_uri()
    bootstrap_project(ROOT)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_EXPERIMENT_ID", runs.PARENT_VARIABLE):
            patch.delenv(name, raising=False)
        yield
    GridConfigLoader.current = loader
    pipelines.configure("othink_pipeline.pipeline_registry")
    mlflow.set_tracking_uri(uri)


def write_environment(project: Path, name: str, **blocks: Any) -> None:
    folder = project / "conf" / name
    folder.mkdir(exist_ok=True)
    (folder / "parameters.yml").write_text(yaml.safe_dump({**PARAMETERS, **blocks}))


def kedro_run(
    project: Path, pipeline: str, env: str, params: dict[str, Any] | None = None, **options: Any
) -> None:
    with (
        contextlib.chdir(project),
        KedroSession.create(project, env=env, runtime_params=params) as session,
    ):
        session.run(pipeline_names=[pipeline], **options)


def parents(client: MlflowClient) -> list[Run]:
    """Runs of whole `kedro run`s, the latest first."""
    experiment = client.get_experiment_by_name("othink-pipeline")
    found = client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
    return [run for run in found if "mlflow.parentRunId" not in run.data.tags]


def children_of(client: MlflowClient, parent: Run) -> dict[str, Run]:
    found = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def compared_by(client: MlflowClient, parent: Run) -> dict[str, Run]:
    """What the comparison of a `kedro run` shows: runs that it made and those that it reused."""
    found = client.search_runs(
        [parent.info.experiment_id], f"tags.`{runs.grid_tag(parent.info.run_id)}` != ''"
    )
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


@pytest.fixture(scope="module")
def outcome(
    tmp_path_factory: pytest.TempPathFactory, mini_model: MiniModel, empty_store: Path
) -> Outcome:
    project = tmp_path_factory.mktemp("project")
    shutil.copy(empty_store, project)
    make_clone(project)
    shutil.copytree(mini_model.path, project / "data/01_raw/tiny")
    PARAMETERS["rebuild"] = tiny_rebuild(updates=2, batch_size=4).model_dump()
    write_environment(project, "test")
    kedro_run(project, "cross_task", "test")
    client = MlflowClient(f"sqlite:///{project}/mlflow.db")
    (parent,) = parents(client)
    return Outcome(project, parent, children_of(client, parent), client)


@pytest.fixture
def copied(outcome: Outcome, tmp_path: Path) -> Path:
    """The finished project once more, records included, for a test to go on from."""
    project = tmp_path / "project"
    shutil.copytree(outcome.project, project)
    return project


@pytest.fixture
def steps() -> Iterator[list[Any]]:
    """Grows by one with every optimizer step that this process takes, whoever takes it."""
    taken: list[Any] = []
    handle = register_optimizer_step_post_hook(lambda *arguments: taken.append(arguments[0]))
    yield taken
    handle.remove()


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of examples of every prediction, of validations too."""
    counts: list[int] = []

    def count(model: Any, processor: Any, examples: Any, *asked: Any, **how: Any) -> Any:
        counts.append(len(examples))
        return predict(model, processor, examples, *asked, **how)

    monkeypatch.setattr("othink_pipeline.evaluation.predictions.predict", count)
    return counts


def run_ids(project: Path) -> dict[tuple[str, str], str]:
    return {cell: read_checkpoint(project, *cell)["run_id"] for cell in CELLS}


def read_checkpoint(project: Path, task: str, method: str, seed: int = 0) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(
        (project / f"data/06_models/{task}/{method}/s{seed}.json").read_text()
    )
    return manifest


def test_the_matrix_holds_every_cell_on_every_task_and_the_base_model(outcome: Outcome) -> None:
    matrix = pd.read_csv(outcome.project / "data/08_reporting/transfer_matrix.csv")
    assert list(matrix.columns[:14]) == [
        "train_task",
        "method",
        "seed",
        "base_model",
        "eval_task",
        "n",
        "correct",
        "accuracy",
        "ci_low",
        "ci_high",
        "accuracy_any",
        "format_rate",
        "think_rate",
        "unparseable_rate",
    ]
    rows = matrix[["train_task", "method", "eval_task"]].apply(tuple, axis=1).tolist()
    expected = [(*cell, task) for cell in [("none", "base"), *CELLS] for task in TASKS]
    assert sorted(rows) == sorted(expected)
    assert matrix["seed"].isna().tolist() == (matrix["method"] == "base").tolist()
    assert (matrix["n"] == TEST_EXAMPLES).all()
    assert (matrix["accuracy"] == matrix["correct"] / TEST_EXAMPLES).all()
    assert (matrix["ci_low"] <= matrix["accuracy"]).all()
    assert (matrix["accuracy"] <= matrix["ci_high"]).all()


def test_seeds_stay_whole_numbers_where_the_base_model_has_none(outcome: Outcome) -> None:
    with (
        contextlib.chdir(outcome.project),
        KedroSession.create(project_path=outcome.project, env="test") as session,
    ):
        seeds = session.load_context().catalog.load("transfer_matrix")["seed"]
    assert seeds.dtype == "Int64"
    assert seeds.dropna().unique().tolist() == [0]


def test_every_prediction_is_kept_and_adds_up_to_the_matrix(outcome: Outcome) -> None:
    folder = outcome.project / "data/08_reporting"
    predictions = pd.read_parquet(folder / "predictions.parquet")
    matrix = pd.read_csv(folder / "transfer_matrix.csv")
    assert len(predictions) == 7 * 2 * TEST_EXAMPLES
    assert predictions["correct"].any()  # else the sums below could not fail
    keys = ["train_task", "method", "eval_task"]
    for rate, column in {
        "accuracy": "correct",
        "accuracy_any": "correct_any",
        "format_rate": "format_ok",
        "think_rate": "thought",
        "unparseable_rate": "unparseable",
    }.items():
        means = predictions.groupby(keys)[column].mean()
        assert matrix.set_index(keys)[rate].to_dict() == pytest.approx(means.to_dict())
    for _, cell in predictions.groupby(keys):
        assert cell["example_id"].is_unique
        assert cell["example_id"].str.startswith(f"{cell['eval_task'].iloc[0]}-test-").all()
    assert predictions["seed"].isna().sum() == 2 * TEST_EXAMPLES


def test_the_report_and_the_figures_are_there(outcome: Outcome) -> None:
    folder = outcome.project / "data/08_reporting"
    report = (folder / "report.md").read_text()
    assert outcome.parent.info.run_id in report
    assert all(method in report for method in METHODS)
    assert "## Beside published figures" in report
    assert "+368.99" in report
    for name in ("heat_map", "training_curves", "samples"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_history_holds_every_update_of_every_cell(outcome: Outcome) -> None:
    history = pd.read_csv(outcome.project / "data/08_reporting/history.csv")
    weights = history[history["metric"] == "train/kl_weight"]
    assert sorted(weights[["task", "method", "step"]].apply(tuple, axis=1)) == sorted(
        (task, method, step) for task in TASKS for method in ("grpo", "grpo_d") for step in (1, 2)
    )
    validation = history[history["metric"] == "val/geometry"]
    assert len(validation) == len(CELLS) * 3
    training = pd.read_csv(outcome.project / "data/08_reporting/training.csv")
    assert sorted(training[["task", "method"]].apply(tuple, axis=1)) == sorted(CELLS)
    assert (training["updates"] == 2).all()
    assert (training["prompts"] == 6).all()
    assert (training[["completion_tokens", "seconds", "weights_changed"]] > 0).all().all()


def test_the_notebook_shows_what_is_there(
    outcome: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = json.loads((ROOT / "notebooks" / "results.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    before = mlflow.get_tracking_uri()
    monkeypatch.chdir(outcome.project)
    shown: dict[str, Any] = {}
    exec("\n".join(code).replace("env = None", 'env = "test"'), shown)
    mlflow.set_tracking_uri(before)
    plt.close("all")
    assert len(shown["matrix"]) == (len(CELLS) + 1) * len(TASKS)
    assert set(shown["cells"]["tags.mlflow.runName"]) == set(outcome.children)
    assert shown["cells"][shown["columns"]].notna().all().all()
    shown["methods"] = ["grpo"]
    exec(next(cell for cell in code if cell.startswith("trained_on, ")), shown)
    base, items = shown["a"], shown["pictures"](shown["tested_on"])
    assert (shown["method_a"], shown["method_b"], len(base)) == ("base", "grpo", TEST_EXAMPLES)
    first, second = base.index[:2]
    pictures = [
        shown["show"](items, {"base": table}, [name]).data.split("</td>")[0]
        for table, name in ((base, first), (base, second), (base.assign(image_of=second), first))
    ]
    assert pictures[0] != pictures[1] == pictures[2], "shuffled: what was asked with is shown"


def test_one_parent_run_holds_the_cells_and_the_base_model(outcome: Outcome) -> None:
    assert outcome.parent.info.status == "FINISHED"
    assert outcome.parent.data.tags["pipeline"] == "cross_task"
    assert outcome.parent.data.tags["env"] == "test"
    names = {f"{task}/{method}/s0" for task, method in CELLS}
    assert set(outcome.children) == names | {"base/b0"}
    for run in outcome.children.values():
        assert run.info.status == "FINISHED"
    assert outcome.children["counting/sft/s0"].data.tags["kind"] == "cell"
    assert outcome.children["base/b0"].data.tags["kind"] == "base_model"
    assert runs.parent_run_id() is None
    assert mlflow.active_run() is None  # the next run of this process must not join it


def test_a_cells_run_says_what_it_was_made_with(outcome: Outcome) -> None:
    run = outcome.children["counting/grpo_d/s0"]
    tags = {key: run.data.tags[key] for key in ("task", "method", "seed")}
    assert tags == {"task": "counting", "method": "grpo_d", "seed": "0"}
    parameters = run.data.params
    weights = {key: value for key, value in parameters.items() if key.startswith("kl.")}
    assert weights == {
        "kl.schedule": "explore_exploit",
        "kl.low": "0.04",
        "kl.high": "0.1",
        "kl.explore_share": "0.3",
    }
    on_geometry = outcome.children["geometry/grpo/s0"].data.params
    assert (on_geometry["kl.schedule"], on_geometry["kl.weight"]) == ("constant", "0.01")
    assert float(parameters["learning_rate"]) == 0.001
    assert parameters["seed"] == "0"
    assert parameters["updates"] == "2"
    assert parameters["completions_per_prompt"] == "4"
    assert float(parameters["rewards.format"]) == 1.0
    assert {parameters[f"prompts.{task}"] for task in TASKS} == {PROMPT}
    assert (outcome.project / f"data/06_models/counting/grpo_d/s0/{parameters['key']}").is_dir()
    assert parameters["health.loss_not_finite"] == "stop"
    assert len(parameters["base_model.digest"]) == 64
    assert outcome.children["geometry/sft/s0"].data.params["target"] == "answer"


def test_grpo_and_grpo_d_differ_in_their_kl_block_alone(outcome: Outcome) -> None:
    plain = outcome.children["counting/grpo/s0"].data.params
    dynamic = outcome.children["counting/grpo_d/s0"].data.params
    differing = {key for key in {*plain, *dynamic} if plain.get(key) != dynamic.get(key)}
    # The key follows from all of the others.
    assert differing == {
        *("kl.schedule", "kl.weight", "kl.low", "kl.high", "kl.explore_share"),
        "key",
    }


def test_a_cells_curves_and_scores_stand_on_its_run(outcome: Outcome) -> None:
    def steps(name: str, metric: str) -> list[tuple[int, float]]:
        history = outcome.client.get_metric_history(outcome.children[name].info.run_id, metric)
        return sorted((point.step, point.value) for point in history)

    assert steps("counting/grpo_d/s0", "train/kl_weight") == [(1, pytest.approx(0.07)), (2, 0.1)]
    assert steps("counting/grpo/s0", "train/kl_weight") == [(1, 0.04), (2, 0.04)]
    assert steps("geometry/grpo/s0", "train/kl_weight") == [(1, 0.01), (2, 0.01)]
    for name in outcome.children:
        if name != "base/b0":
            for task in TASKS:
                assert [step for step, _ in steps(name, f"val/{task}")] == [0, 1, 2]
            assert [step for step, _ in steps(name, "train/loss")] == [1, 2]
    matrix = pd.read_csv(outcome.project / "data/08_reporting/transfer_matrix.csv")
    for row in matrix.itertuples():
        name = "base/b0" if row.method == "base" else f"{row.train_task}/{row.method}/s0"
        metrics = outcome.children[name].data.metrics
        assert metrics[f"eval/{row.eval_task}"] == round(row.accuracy, 4)
        assert metrics[f"eval/accuracy_any/{row.eval_task}"] == round(row.accuracy_any, 4)
    for (task, method), rows in matrix.groupby(["train_task", "method"]):
        if method != "base":
            metrics = outcome.children[f"{task}/{method}/s0"].data.metrics
            accuracy = rows.set_index("eval_task")["accuracy"]
            assert metrics["own/accuracy"] == pytest.approx(accuracy[task], abs=5e-5)
            (other,) = accuracy.drop(task)
            assert metrics["other/accuracy"] == pytest.approx(other, abs=5e-5)


def test_every_checkpoint_is_a_logged_model_linked_to_its_scores(outcome: Outcome) -> None:
    models = outcome.client.search_logged_models([outcome.parent.info.experiment_id])
    assert len(models) == 2 * len(CELLS) + 1
    manifest = read_checkpoint(outcome.project, "counting", "grpo_d")
    last = outcome.client.get_logged_model(manifest["model_id"])
    assert last.name == "counting-grpo_d-s0-step2"
    assert last.source_run_id == manifest["run_id"]
    assert last.tags["digest"] == manifest["digest"]
    assert last.tags["checkpoint"] == (outcome.project / manifest["path"]).as_uri()
    scores = {metric.key: metric.value for metric in last.metrics or []}
    values = outcome.children["counting/grpo_d/s0"].data.metrics
    for task in TASKS:  # its last validation, and its test
        assert scores[f"val/{task}"] == values[f"val/{task}"]
        assert scores[f"eval/{task}"] == values[f"eval/{task}"]
    first = next(model for model in models if model.name == "counting-grpo_d-s0-step1")
    names = {metric.key for metric in first.metrics or []}
    assert {"val/counting", "val/geometry"} <= names
    assert not any(name.startswith("eval/") for name in names)  # never chosen on the test split


def test_the_runs_name_the_examples_by_our_digest(outcome: Outcome) -> None:
    manifests = {
        task: json.loads((outcome.project / f"data/03_primary/{task}.json").read_text())
        for task in TASKS
    }
    run = outcome.children["geometry/sft/s0"]
    used = {
        (entry.tags[0].value, entry.dataset.name, json.loads(entry.dataset.profile)["digest"])
        for entry in run.inputs.dataset_inputs
    }
    assert used == {
        (split, f"{task}_{split}", manifests[task]["splits"][split]["digest"])
        for task, split in [
            ("geometry", "train"),
            *((task, split) for task in TASKS for split in ("validation", "test")),
        ]
    }


def test_the_parent_run_keeps_the_report(outcome: Outcome) -> None:
    artifacts = {file.path for file in outcome.client.list_artifacts(outcome.parent.info.run_id)}
    assert artifacts >= {
        "report.md",
        "report.html",
        "differences.csv",
        "transfer_matrix.csv",
        "training.csv",
        "heat_map.png",
        "training_curves.png",
        "samples.png",
        "verdict.csv",
    }
    means = outcome.parent.data.metrics
    matrix = pd.read_csv(outcome.project / "data/08_reporting/transfer_matrix.csv")
    cross = matrix[(matrix["method"] == "grpo") & (matrix["train_task"] != matrix["eval_task"])]
    assert means["other/grpo"] == pytest.approx(cross["accuracy"].mean(), abs=5e-5)
    base = matrix[matrix["method"] == "base"]
    assert means["base/accuracy"] == pytest.approx(base["accuracy"].mean(), abs=5e-5)


def test_a_report_made_again_leads_to_the_run_that_recorded_it(
    outcome: Outcome, copied: Path
) -> None:
    kedro_run(copied, "report", "test")
    made = [project / "data/08_reporting/report.md" for project in (outcome.project, copied)]
    first, again = (file.read_text() for file in made)
    assert f"- MLflow run: {outcome.parent.info.run_id}" in first
    assert again == first


def test_checkpoints_name_their_run_and_are_changed_models(outcome: Outcome) -> None:
    base = digest_folder(outcome.project / "data/01_raw/tiny")
    digests = {base}
    for task, method in CELLS:
        manifest = read_checkpoint(outcome.project, task, method)
        assert manifest["run_id"] == outcome.children[f"{task}/{method}/s0"].info.run_id
        assert manifest["base_model"] == base
        assert manifest["weights_changed"] > 0
        folder = outcome.project / manifest["path"]
        assert folder.name == "update-000002"
        assert digest_folder(folder) == manifest["digest"]
        digests.add(manifest["digest"])
        assert not list(folder.parent.glob(".*"))  # nothing half-written
    assert len(digests) == 1 + len(CELLS)  # all differ


@pytest.fixture
def kedro_viz(copied: Path) -> Iterator[str]:
    """`kedro viz run` on the finished project; its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = copied / "viz.log"
    command = [sys.executable, "-m", "kedro", "viz", "run", "--pipeline=cross_task", "--env=test"]
    with log.open("w") as said:
        server = subprocess.Popen(
            [*command, "--no-browser", f"--port={port}"],
            cwd=copied,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # to be killed with the process that it starts
        )
    deadline_s = time.monotonic() + 300
    try:
        while "is running at" not in log.read_text():
            assert server.poll() is None and time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on the PATH")
def test_kedro_viz_shows_every_nodes_code_and_what_it_made(
    outcome: Outcome, kedro_viz: str
) -> None:
    from playwright.sync_api import sync_playwright

    def ask(path: str) -> Any:
        with urlopen(f"{kedro_viz}/api/{path}") as answer:
            return json.load(answer)

    nodes = [node for node in ask("main")["nodes"] if node["type"] in ("task", "data")]
    for node in nodes:
        about = ask(f"nodes/{node['id']}")
        if node["type"] == "task":
            assert about["code"].startswith("def "), node
        elif node["name"] not in ("report", "report_page"):  # it draws no Markdown and no HTML
            assert about["preview"], node
    ids = {node["name"]: node["id"] for node in nodes}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(300_000)
        panel = page.locator(".pipeline-metadata")

        def click(name: str) -> None:
            page.goto(f"{kedro_viz}/?pid=cross_task&sid={ids[name]}")
            panel.locator(".pipeline-metadata__title", has_text=name).wait_for()

        click("transfer_matrix")
        graph = page.locator(".pipeline-node").all_text_contents()
        assert {*TASKS, "report", "report_page", "heat_map", "samples", "verdict"} <= {*graph}
        assert not any("s0" in name for name in graph)  # a cell is folded up in its task
        matrix = pd.read_csv(outcome.project / "data/08_reporting/transfer_matrix.csv")
        panel.locator(".preview-table").wait_for()
        assert panel.locator(".preview-table__row").count() == len(matrix)
        for name in ("heat_map", "samples"):
            click(name)
            picture = panel.locator("img")
            picture.wait_for()
            assert picture.evaluate(
                "async picture => (await picture.decode(), picture.naturalWidth)"
            )
        click("train_rl")
        panel.get_by_text("base.b0.checkpoint").first.wait_for()
        panel.get_by_text("Show Code").click()
        page.locator(".pipeline-metadata-code", has_text="def train(").wait_for()
        browser.close()


def test_the_next_session_of_a_process_has_its_own_grid(copied: Path) -> None:
    write_environment(
        copied, "other", experiment={"tasks": ["geometry"], "methods": ["sft_cot"], "seeds": [3]}
    )
    kedro_run(copied, "same_task_eval", "other")
    scores = pd.read_csv(copied / "data/08_reporting/same_task_scores.csv")
    columns = ["train_task", "method", "seed", "eval_task"]
    assert scores[columns].to_numpy().tolist() == [["geometry", "sft_cot", 3, "geometry"]]
    client = MlflowClient(f"sqlite:///{copied}/mlflow.db")
    parent = parents(client)[0]
    assert parent.data.tags["pipeline"] == "same_task_eval"
    assert set(compared_by(client, parent)) == {"base/b0", "geometry/sft_cot/s3"}
    children = children_of(client, parent)
    assert set(children) == {"geometry/sft_cot/s3"}  # the base model is that of the run before
    assert children["geometry/sft_cot/s3"].data.params["target"] == "steps"


def test_checkpoints_are_tested_again_on_shuffled_pictures(copied: Path) -> None:
    """What was trained and scored before stays as it is, in files and in MLflow."""
    write_environment(
        copied,
        "looks",
        experiment={"tasks": list(TASKS), "methods": ["grpo"], "seeds": [0]},
        evaluation={**PARAMETERS["evaluation"], "shuffle_images": True, "samples": 2},
    )
    (copied / "conf/looks/globals.yml").write_text("{data: data/looks, trained: data}")
    before = {
        file: file.read_bytes()
        for file in (copied / "data").rglob("*")
        if file.is_file() and "01_raw" not in file.parts
    }
    client = MlflowClient(f"sqlite:///{copied}/mlflow.db")
    scores = children_of(client, parents(client)[0])["counting/grpo/s0"].data.metrics
    kedro_run(copied, "__default__", "looks")
    assert all(file.read_bytes() == content for file, content in before.items())
    predictions = pd.read_parquet(copied / "data/looks/08_reporting/predictions.parquet")
    assert len(predictions) == 3 * 2 * TEST_EXAMPLES
    assert (predictions["image_of"] != predictions["example_id"]).all()
    assert {len(answers) for answers in predictions["sampled_correct"]} == {2}
    report = (copied / "data/looks/08_reporting/report.md").read_text()
    assert "pass@2" in report
    after = client.get_run(read_checkpoint(copied, "counting", "grpo")["run_id"]).data.metrics
    assert {name: after[name] for name in scores} == scores
    assert {name for name in after if name.startswith("eval_shuffled/")} == {
        name.replace("eval/", "eval_shuffled/") for name in scores if name.startswith("eval/")
    }


def points(client: MlflowClient, runs: Mapping[str, Run]) -> dict[tuple[str, str], list[Any]]:
    """Every point of every metric of some runs."""
    return {
        (name, metric): [
            (point.step, point.value)
            for point in client.get_metric_history(run.info.run_id, metric)
        ]
        for name, run in runs.items()
        for metric in run.data.metrics
    }


def test_an_edited_method_trains_its_own_cells_and_an_edit_taken_back_nothing_at_all(
    outcome: Outcome, copied: Path, steps: list[Any], scored: list[int]
) -> None:
    base = yaml.safe_load((copied / "conf/base/parameters_experiment.yml").read_text())
    dynamic = base["methods"]["grpo_d"]
    line = {"kl": {"schedule": "linear", "start": 0.001, "end": 0.5}}
    edited_method = {**dynamic, "trained_on": {"geometry": line}}
    write_environment(copied, "test", methods={**base["methods"], "grpo_d": edited_method})
    kedro_run(copied, "cross_task", "test")
    assert len(steps) == 2  # updates of one cell: geometry's weight trains no counting cell
    assert scored.count(TEST_EXAMPLES) == 2  # tasks
    before, after = run_ids(outcome.project), run_ids(copied)
    edited = {("geometry", "grpo_d")}
    assert {cell for cell in CELLS if after[cell] != before[cell]} == edited
    client = MlflowClient(f"sqlite:///{copied}/mlflow.db")
    parent = parents(client)[0]
    new = children_of(client, parent)
    assert set(new) == {"geometry/grpo_d/s0"}
    assert {run.data.params["kl.end"] for run in new.values()} == {"0.5"}
    assert set(compared_by(client, parent)) == set(outcome.children)
    digest = read_checkpoint(copied, "geometry", "grpo_d")["digest"]
    assert digest != read_checkpoint(outcome.project, "geometry", "grpo_d")["digest"]

    steps.clear(), scored.clear()
    write_environment(copied, "test")
    kedro_run(copied, "cross_task", "test")
    assert (steps, scored) == ([], [])
    assert run_ids(copied) == before
    matrices = [
        (project / "data/08_reporting/transfer_matrix.csv").read_bytes()
        for project in (copied, outcome.project)
    ]
    assert matrices[0] == matrices[1]
    parent = parents(client)[0]
    assert parent.info.status == "FINISHED"
    assert children_of(client, parent) == {}
    compared = compared_by(client, parent)
    assert {name: run.info.run_id for name, run in compared.items()} == {
        name: run.info.run_id for name, run in outcome.children.items()
    }
    for run in compared.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags[runs.grid_tag(outcome.parent.info.run_id)] == "trained"
        assert run.data.tags[runs.grid_tag(parent.info.run_id)] == "reused"
    recorded = points(outcome.client, outcome.children)
    assert points(client, compared) == recorded
    assert max(map(len, recorded.values())) == 3  # validations of updates 0, 1 and 2
    means = outcome.parent.data.metrics
    assert parent.data.metrics == means
    assert means


def test_a_cell_that_fails_leaves_a_hole_and_goes_on_when_its_cause_is_gone(
    outcome: Outcome,
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    steps: list[Any],
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("no memory | at all")

    methods = ["sft", "grpo_d"]
    write_environment(copied, "test", experiment={**PARAMETERS["experiment"], "methods": methods})
    for cell in ("counting/grpo_d", "geometry/sft"):  # what comes after the failure is trained
        shutil.rmtree(copied / "data/06_models" / cell)
    with monkeypatch.context() as broken:
        broken.setitem(ACCURACY_REWARDS, "tagged", fail)
        broken.chdir(copied)
        with pytest.raises(SystemExit) as stopped:
            main(["--env=test", "--pipelines=cross_task"])
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert "1 of the cells failed" in message
    assert "  counting.grpo_d.s0: " in message
    assert "no memory | at all" in message
    assert "Traceback" not in message[message.index("Error: 1 of the cells") :]
    client = MlflowClient(f"sqlite:///{copied}/mlflow.db")
    parent = parents(client)[0]
    assert parent.info.status == "FAILED"
    assert runs.parent_run_id() is None
    children = children_of(client, parent)
    assert {name: run.info.status for name, run in children.items()} == {
        "counting/grpo_d/s0": "FAILED",
        "geometry/sft/s0": "FINISHED",
    }
    failed = children["counting/grpo_d/s0"]
    assert "no memory | at all" in failed.data.tags["failed"]
    report = (copied / "data/08_reporting/report.md").read_text()
    section = report[report.index("## What failed") :].partition("\n## ")[0]
    assert "| counting | grpo_d | 0 | → counting, → geometry |" in section
    assert r"no memory \| at all" in section
    matrix = pd.read_csv(copied / "data/08_reporting/transfer_matrix.csv")
    whole = pd.read_csv(outcome.project / "data/08_reporting/transfer_matrix.csv")
    whole = whole[whole["method"] != "grpo"].reset_index(drop=True)
    hole = (matrix["train_task"] == "counting") & (matrix["method"] == "grpo_d")
    assert matrix.loc[hole, "n"].tolist() == [0, 0]
    assert matrix.loc[hole, "accuracy"].isna().all()
    pd.testing.assert_frame_equal(matrix[~hole], whole[~hole])
    # What an earlier run said of this cell is no longer true; it has no score, nor can it get one.
    with pytest.raises(CellsFailedError, match=r"counting\.grpo_d\.s0: .*no memory"):
        kedro_run(
            copied, "cross_task", "test", node_names=["counting.grpo_d.s0.evaluate_on_counting"]
        )

    steps.clear()
    kedro_run(copied, "cross_task", "test", namespaces=["counting.grpo_d"])
    assert len(steps) == 2
    kedro_run(copied, "cross_task", "test")
    assert len(steps) == 2, "what is finished is not trained again"
    for cell in (("counting", "grpo_d"), ("geometry", "sft")):  # alone or not: the same weights
        again, whole_cell = (read_checkpoint(each, *cell) for each in (copied, outcome.project))
        assert again["digest"] == whole_cell["digest"]
    assert run_ids(copied)["counting", "grpo_d"] == failed.info.run_id
    run = client.get_run(failed.info.run_id)
    assert run.info.status == "FINISHED"
    assert "What failed" not in (copied / "data/08_reporting/report.md").read_text()
    mended = pd.read_csv(copied / "data/08_reporting/transfer_matrix.csv")
    pd.testing.assert_frame_equal(mended, whole)


def test_a_corrupt_base_model_stops_the_run_before_any_training(
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(copied / "data/06_models")
    weights = copied / "data/01_raw/tiny/model.safetensors"
    make_model(weights.parent)
    weights.write_bytes(weights.read_bytes()[:-1])
    monkeypatch.chdir(copied)
    with pytest.raises(SystemExit) as stopped:
        main(["--env=test", "--pipelines=cross_task"])
    assert stopped.value.code == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert errors.count("Error: ") == 1
    assert "data/01_raw/tiny" in errors
    assert ": its files differ from the digest in manifest.json" in errors
    for remedy in ("Set base_model.path", "git checkout", "kedro run --pipelines=base_model"):
        assert remedy in errors
    assert not (copied / "data/06_models/counting").exists()
    client = MlflowClient(f"sqlite:///{copied}/mlflow.db")
    latest = parents(client)[0]
    assert latest.info.status == "FAILED"
    assert children_of(client, latest) == {}


def test_the_checks_alone_leave_nothing_behind(
    outcome: Outcome, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in copied.glob("data/**/*") if file.is_file()}
    kedro_run(copied, "preflight", "test")
    table = capsys.readouterr().out
    assert "MLflow store" in table
    assert "FAILED" not in table
    after = {file: file.read_bytes() for file in copied.glob("data/**/*") if file.is_file()}
    assert after == before
    client = MlflowClient(f"sqlite:///{copied}/mlflow.db")
    (parent,) = parents(client)
    assert (parent.info.run_id, parent.info.status) == (outcome.parent.info.run_id, "FINISHED")
    assert mlflow.active_run() is None


def test_an_unknown_method_stops_the_run_and_leaves_no_record(
    outcome: Outcome,
    copied: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_environment(
        copied, "wrong", experiment={"tasks": list(TASKS), "methods": ["gpro"], "seeds": [0]}
    )
    monkeypatch.chdir(copied)
    with pytest.raises(SystemExit) as stopped:
        main(["--env=wrong"])
    assert stopped.value.code == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert errors.count("Error: ") == 1
    assert "'gpro'" in errors
    client = MlflowClient(f"sqlite:///{copied}/mlflow.db")
    assert parents(client)[0].info.run_id == outcome.parent.info.run_id


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("on purpose")


def test_the_base_model_can_be_rebuilt_and_taken(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("othink_pipeline.pipelines.base_model.nodes._measure", fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            kedro_run(copied, "base_model", "test")
    kedro_run(copied, "base_model", "test")  # goes on
    client = MlflowClient(f"sqlite:///{copied}/mlflow.db")
    (made,) = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.kind = 'base_model' and attributes.run_name = 'base'",
        output_format="list",
    )
    assert (made.info.status, made.data.tags["resumed"]) == ("FINISHED", "1")
    steps = [each.step for each in client.get_metric_history(made.info.run_id, "train/loss")]
    assert steps == [1, 2]
    folder = copied / "data/06_models/rebuilt"
    assert not folder.with_name(".rebuilt.begun").exists()
    with monkeypatch.context() as patch:
        patch.setattr("othink_pipeline.models.pretraining.pretrain", fail)
        kedro_run(copied, "base_model", "test")  # made before
    manifest = MadeModel.read_folder(folder, "").to_json()
    assert manifest == json.loads((copied / "data/06_models/rebuilt_base_model.json").read_text())
    assert manifest["rebuild"]["updates"] == manifest["facts"]["updates"] == 2
    assert set(manifest["measured"]) == set(manifest["data"]) == set(TASKS)
    for measured in manifest["measured"].values():
        assert measured["examples"] == 5
        assert {"accuracy_greedy", "accuracy_empty", "accuracy_worked"} <= set(measured)
    model, _ = load_model(str(folder))
    assert model.num_parameters() == manifest["facts"]["parameters"]
    write_environment(
        copied,
        "rebuilt",
        base_model=shipped("base_model", path=["data/01_raw/tiny", "data/06_models/rebuilt"]),
        experiment={**PARAMETERS["experiment"], "seeds": [1]},
    )
    kedro_run(copied, "data_preparation", "rebuilt")
    taken = json.loads((copied / "data/06_models/base/b1.json").read_text())
    assert (taken["path"], taken["digest"]) == ("data/06_models/rebuilt", manifest["digest"])
