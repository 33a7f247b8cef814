"""What is collected belongs together, or the run stops; what failed is a hole, not a stop."""

import base64
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from kedro.io import DataCatalog

from othink_pipeline.cells.evaluate import write_predictions
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.manifests import CollectedTests, FailedCell, FailedTest, Predictions
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.pipelines.cross_task import nodes
from othink_pipeline.pipelines.cross_task.nodes import (
    build_transfer_matrix,
    collect_tests,
    collect_training,
    concatenate,
    draw_figures,
    merge_tests,
    summarize_history,
    write_page,
    write_report,
)
from othink_pipeline.pipelines.same_task_eval.nodes import tabulate_same_task
from othink_pipeline.report.comparison import compare_all, differences_table
from othink_pipeline.report.matrix import matrix_text
from othink_pipeline.report.parameters import Report
from tests.support.examples import decode, transparent, write_examples
from tests.support.handmade import KNOWN, NOTHING_PUBLISHED
from tests.support.manifests import checkpoint_of, examples_of, with_split
from tests.support.page import picture

ROOT = Path(__file__).parents[2]
CELL = Cell("counting", "grpo", 0)
NOTHING_COMPARED = Report(comparisons=(), equivalence_margin=3.0)
BASE = BaseModelCheckpoint(path="p", digest="new", run_id="base", model_id="m")
GONE = FailedCell(task="counting", method="grpo", seed=0, failed="RuntimeError: a | b")
CHECKPOINT = checkpoint_of(CELL, updates=2)
CURVES = {"train/kl": [0.1, 0.3], "train/kl_weight": [1.0, 2.0], "train/loss": [5.0, 7.0]}
HISTORY = pd.DataFrame(
    [
        {"step": step, "metric": metric, "value": value}
        for metric, values in CURVES.items()
        for step, value in enumerate(values, start=1)
    ]
)


def predictions(eval_task: str = "counting", **columns: Any) -> pd.DataFrame:
    row = {
        "train_task": "counting",
        "method": "grpo",
        "seed": 0,
        "base_model": 0,
        "eval_task": eval_task,
        "form": "",
        "completion": "<think></think><answer>7</answer>",
        "correct": True,
        "correct_any": True,
        "format_ok": True,
        "thought": False,
        "unparseable": False,
        "completion_tokens": 5,
        "checkpoint": "new",
        "test_data": "d",
        "base_digest": "b",
    }
    table = pd.DataFrame([{**row, **columns}, {**row, "correct": False, **columns}])
    return table.assign(example_id=["first", "second"]).astype({"seed": "Int64"})


ABOUT = ["train_task", "method", "seed", "base_model", "eval_task"]
METHODS = ("sft", "grpo")

Publish = Callable[..., Predictions]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """A table of predictions as a file, and its manifest as an evaluation returns it."""

    def write(eval_task: str = "counting", **columns: Any) -> Predictions:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        table = predictions(eval_task, **columns)
        write_predictions(table, file)
        about = {name: table[name].tolist()[0] for name in [*ABOUT, "checkpoint"]}
        about["seed"] = None if pd.isna(about["seed"]) else about["seed"]
        return Predictions(**about, key="k", path=str(file))

    return write


Models = dict[str, tuple[Any, list[Any]]]
"""By namespace: a checkpoint, and its predictions on each task in turn."""


@pytest.fixture
def base(publish: Publish) -> Models:
    """The base model, right on half of the items."""
    manifest = publish(train_task="none", method="base", seed=None)
    return {"base.b0": (BASE, [manifest])}


def build(
    models: Models, tasks: tuple[str, ...] = ("counting",)
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Predictions, matrix and failures of ``models``."""
    manifests = {f"{name}.checkpoint": tested for name, (tested, _) in models.items()}
    for name, (_, made) in models.items():
        for task, manifest in zip(tasks, made, strict=True):
            manifests[f"{name}.{task}.predictions"] = manifest
            manifests[f"{task}.examples"] = examples_of(task)
    shuffled = dict(sorted(manifests.items(), reverse=True))  # names alone say what is what
    collected = collect_tests(models=tuple(models), tasks=tasks, **shuffled)
    first, *rest = (CollectedTests(tests=(test,)) for test in collected.tests)
    return build_transfer_matrix(first, merge_tests(*rest), methods=METHODS)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is logged as samples: the run, the tasks, the file, the digest."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "othink_pipeline.tracking.records.log_samples", lambda *arguments: calls.append(arguments)
    )
    monkeypatch.setattr("othink_pipeline.tracking.runs.is_there", lambda run_id: run_id != "gone")
    monkeypatch.setattr(nodes, "sample_answers", lambda tables, examples: list(tables))
    return calls


def test_predictions_become_one_table_and_their_scores(
    logged: list[tuple[Any, ...]], publish: Publish, base: Models
) -> None:
    tasks = ("counting", "geometry")
    base["base.b0"][1].append(publish("geometry", train_task="none", method="base", seed=None))
    grpo = [publish(), publish("geometry", correct=True)]
    together, matrix, failures = build({**base, CELL.name: (CHECKPOINT, grpo)}, tasks)
    assert together["method"].tolist() == ["base"] * 4 + ["grpo"] * 4
    assert together["eval_task"].tolist() == (["counting"] * 2 + ["geometry"] * 2) * 2
    assert together["seed"].dtype == "Int64"
    assert matrix[["method", "eval_task", "accuracy"]].to_numpy().tolist() == [
        *(["base", "counting", 0.5], ["base", "geometry", 0.5]),
        *(["grpo", "counting", 0.5], ["grpo", "geometry", 1.0]),
    ]
    assert list(failures.columns) == [*ABOUT, "reason"]
    assert failures.empty
    assert [call[:3] for call in logged] == [
        (run_id, ["counting", "geometry"], "samples.json") for run_id in ("base", "r")
    ]


def test_what_mlflow_has_no_run_of_is_collected_too(
    logged: list[tuple[Any, ...]], publish: Publish, base: Models
) -> None:
    gone = CHECKPOINT.model_copy(update={"run_id": "gone"})
    together, *_ = build({**base, CELL.name: (gone, [publish()])})
    assert together["method"].tolist() == ["base"] * 2 + ["grpo"] * 2
    assert [call[0] for call in logged] == ["base"]


def test_trainings_are_collected_by_name() -> None:
    cells = (CELL, Cell("counting", "sft", 1), Cell("geometry", "sft", 0))
    longer = pd.concat([HISTORY, HISTORY.assign(step=HISTORY["step"] + 2)])
    history, training = collect_training(
        cells=cells,
        **{
            "geometry.sft.s0.history": HISTORY[:0],
            "geometry.sft.s0.checkpoint": GONE,
            "counting.sft.s1.history": HISTORY[HISTORY["metric"] == "train/loss"],
            "counting.grpo.s0.history": longer,
            "counting.sft.s1.checkpoint": CHECKPOINT.model_copy(update={"run_id": "of sft"}),
            "counting.grpo.s0.checkpoint": CHECKPOINT,
        },
    )
    assert training[["task", "method", "seed", "run_id"]].to_numpy().tolist() == [
        ["counting", "grpo", 0, "r"],
        ["counting", "sft", 1, "of sft"],
    ]
    assert training["kl_pull"].tolist()[0] == pytest.approx((0.2**0.5 + 2 * 0.6**0.5) / 2)
    assert math.isnan(training["kl_pull"].tolist()[1])
    assert training["learning_rate"].tolist() == [CHECKPOINT.parameters.learning_rate] * 2
    assert history.groupby("method").size().to_dict() == {"grpo": len(longer), "sft": 2}


def test_predictions_of_another_checkpoint_are_refused(
    logged: list[tuple[Any, ...]], publish: Publish
) -> None:
    for other in (CHECKPOINT.model_copy(update={"digest": "newer"}), GONE):
        with pytest.raises(ConfigurationError, match=r"counting\.grpo\.s0: its.*--namespaces="):
            build({CELL.name: (other, [publish()])})
    assert not logged


def test_predictions_that_are_gone_or_damaged_are_named(
    logged: list[tuple[Any, ...]], publish: Publish
) -> None:
    manifest = publish()
    file = Path(manifest.path)
    file.write_bytes(file.read_bytes()[:-20])
    for _ in range(2):
        with pytest.raises(
            ConfigurationError, match=r"0\.parquet: missing or damaged.*=evaluation"
        ):
            build({CELL.name: (CHECKPOINT, [manifest])})
        file.unlink(missing_ok=True)
    assert not logged


def failed(eval_task: str, reason: str = "RuntimeError: a | b", **about: Any) -> FailedTest:
    cell = {"train_task": "counting", "method": "grpo", "seed": 0, "base_model": 0}
    return FailedTest(**{**cell, "eval_task": eval_task, **about, "failed": reason})


def test_same_task_scores_of_cells_that_all_failed_are_holes() -> None:
    scores = tabulate_same_task(failed("counting"), methods=("grpo",))
    assert scores.drop(columns="base_model").to_dict("records") == [
        {
            **{"train_task": "counting", "method": "grpo", "seed": 0, "eval_task": "counting"},
            **{"n": 0, "correct": 0},
        }
    ]


def test_a_cell_that_failed_is_a_hole_beside_those_that_did_not(
    logged: list[tuple[Any, ...]], publish: Publish, base: Models
) -> None:
    """One seed's training failed, of another one evaluation: what there is is collected."""
    tasks = ("counting", "geometry")
    base["base.b0"][1].append(publish("geometry", train_task="none", method="base", seed=None))
    half = [publish(seed=2), failed("geometry", "OSError: gone", seed=2)]
    together, matrix, failures = build(
        {
            **base,
            "counting.grpo.s0": (GONE, [failed(task) for task in tasks]),
            "counting.grpo.s1": (CHECKPOINT, [publish(task, seed=1) for task in tasks]),
            "counting.grpo.s2": (CHECKPOINT.model_copy(update={"run_id": "of s2"}), half),
        },
        tasks,
    )
    assert set(zip(together["seed"].dropna(), together["eval_task"][4:], strict=True)) == {
        *((1, "counting"), (1, "geometry"), (2, "counting"))
    }
    assert failures[["seed", "eval_task", "reason"]].to_numpy().tolist() == [
        [0, "counting", "RuntimeError: a | b"],
        [0, "geometry", "RuntimeError: a | b"],
        [2, "geometry", "OSError: gone"],
    ]
    assert [call[0] for call in logged] == ["base", "r"]  # none of half the tasks
    holes = matrix[matrix["n"] == 0]
    assert holes[["method", "seed", "eval_task"]].to_numpy().tolist() == [
        ["grpo", 0, "counting"],
        ["grpo", 0, "geometry"],
        ["grpo", 2, "geometry"],
    ]
    assert holes["accuracy"].isna().all()
    assert matrix["seed"].dtype == "Int64"
    assert len(matrix) == 2 + 2 * 3
    lines = {line.split()[2]: line for line in matrix_text(matrix).splitlines() if "grpo" in line}
    assert [lines[seed].count("—") for seed in ("0", "1", "2")] == [2, 0, 1]


@pytest.mark.parametrize("left", [True, False])
def test_a_method_of_which_nothing_is_left_does_not_stop_the_others(
    logged: list[tuple[Any, ...]],
    publish: Publish,
    base: Models,
    monkeypatch: pytest.MonkeyPatch,
    left: bool,
) -> None:
    lost = Cell("counting", "sft", 0)
    models = {**base, lost.name: (GONE, [failed("counting", method="sft")])}
    named: dict[str, Any] = {f"{lost.name}.checkpoint": GONE, f"{lost.name}.history": HISTORY[:0]}
    cells = (lost,)
    if left:
        models[CELL.name] = (CHECKPOINT, [publish()])
        named |= {f"{CELL.name}.checkpoint": CHECKPOINT, f"{CELL.name}.history": HISTORY}
        cells = (lost, CELL)
    together, matrix, failures = build(models)
    by_method = [collect_training(cells=(cell,), **named) for cell in cells]
    history, training = (concatenate(*tables) for tables in zip(*by_method, strict=True))
    assert (len(training), len(failures)) == (left, 1)
    assert len(history) == left * len(HISTORY)
    assert len(together) == 2 + 2 * left
    order = ["base", "sft", "grpo"] if left else ["base", "sft"]  # the hole in its place
    assert matrix["method"].tolist() == order
    assert matrix["n"].tolist() == ([2, 0, 2] if left else [2, 0])
    monkeypatch.delenv("OTHINK_PARENT_RUN_ID", raising=False)
    monkeypatch.setattr(nodes.views, "latest_grid", lambda *_: None)
    report, differences, verdict = write_report(
        *(matrix, together, training, failures),
        *(Report(comparisons=(("grpo", "sft"),), equivalence_margin=3.0), KNOWN, NOTHING_PUBLISHED),
        *(examples_of("counting", near_duplicates=1), examples_of("geometry")),
        methods=METHODS,
    )
    assert "**1 of 2 test items of counting show almost the same picture" in report
    assert "1 scores are missing" in report
    assert differences["method"].tolist() == ["grpo"] * left
    assert list(verdict.columns) == ["about", "finding"]
    assert f"- **{verdict['about'][0]}**: {verdict['finding'][0]}." in report
    assert "## What failed" in report
    assert r"| counting | sft | 0 | → counting | RuntimeError: a \| b |" in report
    heat_map, curves = draw_figures(matrix, history, KNOWN, methods=METHODS)
    assert len(heat_map.axes[0].get_yticklabels()) == len(matrix)
    assert len(curves.legends[0].get_texts()) == left


def test_predictions_on_other_test_data_are_refused(
    logged: list[tuple[Any, ...]], publish: Publish, base: Models
) -> None:
    grpo = {CELL.name: (CHECKPOINT, [publish()])}
    for test_data in ("d", "other"):
        made = [publish(method="sft", test_data=test_data)]
        models = {**base, **grpo, "counting.sft.s0": (CHECKPOINT, made)}
        if test_data == "d":
            together, matrix, _ = build(models)
            assert (len(together), len(matrix)) == (6, 3)
        else:
            with pytest.raises(
                ConfigurationError, match=r"counting as the others: counting\.sft\. "
            ):
                build(models)


def test_cells_trained_from_another_base_model_are_refused(
    logged: list[tuple[Any, ...]], publish: Publish, base: Models
) -> None:
    second = publish(train_task="none", method="base", seed=None, base_model=1, base_digest="c")
    both = {**base, "base.b1": (BASE, [second])}
    grpo = {CELL.name: (CHECKPOINT, [publish()])}

    def ours(base_digest: str) -> Models:
        made = publish(seed=1, base_model=1, base_digest=base_digest)
        return {"counting.grpo.s1": (CHECKPOINT, [made])}

    _, matrix, _ = build({**both, **grpo, **ours("c")})
    assert len(matrix) == 4
    with pytest.raises(ConfigurationError, match=r"base_model\.path.*=counting\.grpo\.s1 "):
        build({**both, **grpo, **ours("b")})
    with pytest.raises(ConfigurationError, match=r"=counting\.grpo\.s1 "):
        build({**base, **grpo, **ours("c")})  # its base model is not there


def test_predictions_made_with_other_settings_are_refused(
    logged: list[tuple[Any, ...]], publish: Publish, base: Models
) -> None:
    grpo = {CELL.name: (CHECKPOINT, [publish()])}
    for other in ({"image_of": "x"}, {"sampled_correct": [True, False]}):
        made = [publish(method="sft", **other)]
        with pytest.raises(ConfigurationError, match=r"--pipelines=evaluation"):
            build({**base, **grpo, "counting.sft.s0": (CHECKPOINT, made)})


def test_a_history_is_summed_up_by_its_ends_and_its_means() -> None:
    curves = {
        "train/kl": {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5},
        "train/kl_weight": {1: 1.0, 2: 1.0, 3: 2.0, 4: 2.0, 5: 4.0},
        "train/reward": {5: 1.8, 1: 0.2, 2: 0.6, 3: 1.0, 4: 1.4},  # in any order
        "val/counting": {0: 0.25, 3: 0.9, 5: 0.75},
        "val/geometry": {0: 0.5, 3: 0.5, 5: 0.5},
    }
    history = pd.DataFrame(
        [
            {"step": step, "metric": metric, "value": value}
            for metric, points in curves.items()
            for step, value in points.items()
        ]
    )
    assert summarize_history(history, "counting") == pytest.approx(
        {
            "kl_pull": (0.2**0.5 + 0.4**0.5 + 2 * 0.6**0.5 + 2 * 0.8**0.5 + 4) / 5,
            "kl_weight_mean": 2.0,
            "kl_weight_end": 4.0,
            "kl_last": 0.45,
            "reward_first": 0.4,  # a quarter of 5 updates, rounded up: 2
            "reward_last": 1.6,
            "accuracy_first": 0.25,
            "accuracy_last": 0.75,
        }
    )


def test_what_a_method_has_not_is_unknown() -> None:
    only_loss = HISTORY[HISTORY["metric"] == "train/loss"]
    summary = summarize_history(only_loss, "counting")
    assert all(math.isnan(value) for value in summary.values())
    assert len(summary) == 8


def test_answers_to_shuffled_pictures_are_logged_under_a_name_of_their_own(
    logged: list[tuple[Any, ...]], publish: Publish
) -> None:
    about = {"train_task": "none", "method": "base", "seed": None, "image_of": "another"}
    build({"base.b0": (BASE, [publish(**about)])})
    assert [call[2] for call in logged] == ["samples_shuffled.json"]


def test_curves_need_not_be_as_long() -> None:
    """Of a reward for two updates each, as with several iterations a rollout."""
    points = [("train/kl", step, float(step)) for step in range(1, 9)]
    points += [("train/reward", step, float(step)) for step in (1, 3, 5, 7)]
    history = pd.DataFrame(points, columns=["metric", "step", "value"])
    summary = summarize_history(history, "counting")
    assert summary["kl_last"] == (7 + 8) / 2
    assert (summary["reward_first"], summary["reward_last"]) == (1, 7)


def test_every_task_has_pictures_as_models_see_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "MAX_PICTURE_BYTES", 2)
    monkeypatch.setattr(nodes, "render_page", lambda content, *_: content.items)
    tasks, row = ("counting", "geometry"), dict.fromkeys(("split", "key", "form", "steps"), "")
    examples = []
    for task in tasks:
        row |= {"task": task, "question": "?", "answer": "7", "image": transparent()}
        file = tmp_path / f"{task}.arrow"
        write_examples([{**row, "id": f"{task} {name}"} for name in ("first", "second")], file)
        examples.append(with_split(examples_of(task), "test", path=str(file), digest="d"))
    items, _ = write_page(
        *("", HISTORY, pd.concat([predictions(task) for task in tasks]), HISTORY, HISTORY),
        *(NOTHING_COMPARED, KNOWN, *examples),
        methods=METHODS,
    )
    assert [bool(item.picture) for item in items.values()] == [True, False, True, False]
    encoded = base64.b64decode(items["counting first"].picture.partition(",")[2])
    assert decode(encoded).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("shuffled", [False, True])
def test_the_samples_show_what_was_asked_seen_and_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool
) -> None:
    """Whatever room there is for other pictures."""
    monkeypatch.setattr(nodes, "MAX_PICTURE_BYTES", 0)
    monkeypatch.setattr(nodes, "render_page", lambda *_: "")
    file, row = tmp_path / "test.arrow", dict.fromkeys(("split", "key", "form", "steps"), "")
    rows = [
        {**row, "id": name, "task": "counting", "question": f"the {name} one?", "answer": "7"}
        for name in ("first", "second")
    ]
    write_examples([{**row, "image": picture(n)} for n, row in enumerate(rows)], file)
    seen = {"image_of": ["second", "first"]} if shuffled else {}
    base = predictions(train_task="none", method="base", seed=pd.NA, correct=False)
    together = pd.concat([base.assign(**seen), predictions(completion="so: 7").assign(**seen)])
    examples = with_split(examples_of("counting"), "test", path=str(file), digest="d")

    def drawn(predictions: pd.DataFrame) -> Any:
        tables = HISTORY, predictions, HISTORY, HISTORY
        asked = NOTHING_COMPARED, KNOWN, examples
        return write_page("", *tables, *asked, methods=METHODS)[1]

    figure = drawn(together)
    written = [text.get_text() for text in figure.texts]
    assert written == [
        "Learnt, counting",
        *("grpo on counting right, base model wrong (1 of 2", "items)"),
        *("the first one?", "Right answer: 7"),
        *("✗ base model", "<think></think><answer>7</answer>"),
        *("✓ grpo on counting", "so: 7"),
    ]
    shown = figure.axes[0].images[0].get_array()
    assert shown[0, 0, 0] == (20 if shuffled else 0)  # the red of the picture that was shown
    assert not drawn(base).axes


def test_the_page_shows_the_examples_that_were_tested(
    logged: list[tuple[Any, ...]],
    publish: Publish,
    base: Models,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together, matrix, _ = build({**base, CELL.name: (CHECKPOINT, [publish()])})
    differences = differences_table(compare_all(together, [], 3.0))
    file = tmp_path / "test.arrow"
    text = dict.fromkeys(("split", "key", "form", "steps"), "")
    rows = [
        {**text, "id": name, "task": "counting", "question": f"the {name} one?", "answer": "7"}
        for name in ("first", "second")
    ]
    write_examples([{**row, "image": picture(n)} for n, row in enumerate(rows)], file)

    def page(**changes: Any) -> str:
        split = {"path": str(file), "digest": "d", **changes}
        html, _ = write_page(
            *(
                "# Transfer matrix report\n",
                matrix,
                together,
                differences,
                HISTORY.assign(**CELL._asdict()),
            ),
            *(NOTHING_COMPARED, KNOWN, with_split(examples_of("counting"), "test", **split)),
            methods=METHODS,
        )
        return html

    assert "2 models, 1 seed, 1 task, 2 test items, 4 answers" in page()
    assert "pictures of" not in page()
    monkeypatch.setattr(nodes, "MAX_PICTURE_BYTES", 1)
    assert "the pictures of 1 test item." in page()
    with pytest.raises(ConfigurationError, match="counting: its predictions are of other examples"):
        page(digest="other")
    with pytest.raises(ConfigurationError, match=r"gone\.arrow: missing"):
        page(path=str(tmp_path / "gone.arrow"))


@pytest.mark.parametrize(
    "name", ["verdict", "transfer_matrix", "differences", "report.training", "report.failures"]
)
def test_kedro_viz_shows_whole_tables(name: str, tmp_path: Path) -> None:
    """Of conf/kl_ablation the matrix has 226 rows, its verdict a row for each comparison."""
    entry = yaml.safe_load((ROOT / "conf/base/catalog.yml").read_text())[name]
    file = tmp_path / "table.csv"
    pd.DataFrame({"row": range(226)}).to_csv(file, index=False)
    entry.get("dataset", entry)["filepath"] = str(file)
    dataset = DataCatalog.from_config({name: entry})[name]
    preview = dataset.preview(**dataset.metadata["kedro-viz"].get("preview_args", {}))
    assert len(preview["data"]) == 226
