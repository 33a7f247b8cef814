"""A model is scored once on a test split, and nothing that is damaged is taken for its score."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from othink_pipeline.cells import evaluate as cell_evaluation
from othink_pipeline.cells.evaluate import Tested, read_predictions, write_predictions
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.manifests import Checkpoint, FailedCell, FailedTest, Predictions
from othink_pipeline.cells.parameters import Folders
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.code import reached
from othink_pipeline.core.files import digest_folder
from othink_pipeline.data.manifests import Examples
from othink_pipeline.data.parameters import DataPreparation
from othink_pipeline.data.preparation import CELL_SPLITS, prepare_splits
from othink_pipeline.evaluation import predictions
from othink_pipeline.models import load
from othink_pipeline.models.generation import Decoding
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.scoring.kinds import EXACT, Text
from othink_pipeline.tracking import records, runs
from tests.conftest import PROMPT, MiniModel, shipped
from tests.support.manifests import checkpoint_of, examples_of, with_split
from tests.support.methods import small_evaluation
from tests.support.store import open_store

TEST_ITEMS = 6
FOLDERS = Folders(examples="examples", checkpoints="models", predictions="predictions")
CELL = Tested("counting", "grpo", 3, 0)
BASE = Tested("none", "base", None, 0)


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A store with one experiment."""
    with open_store(empty_store, tmp_path_factory.mktemp("store")):
        yield


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examples:
    """The manifest of a task's examples, in a project of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(runs.PARENT_VARIABLE, raising=False)
    sizes = {"base": 1, "train": 4, "validation": 4, "test": TEST_ITEMS}
    preparation = DataPreparation.model_validate(
        shipped("data_preparation", splits=sizes, prompt=PROMPT)
    )
    return prepare_splits(preparation, "geometry", CELL_SPLITS, Path("examples/geometry"))


@pytest.fixture
def checkpoint(mini_model: MiniModel, examples: Examples, store: None) -> Checkpoint:
    """The manifest of a cell's last checkpoint."""
    shutil.copytree(mini_model.path, "checkpoint")
    run_id = runs.start_run("counting/grpo/s3", "cell", {})
    model_id = records.log_checkpoint(run_id, "counting/grpo/s3", 4, Path("checkpoint"), {})
    runs.finish_run(run_id)
    return checkpoint_of(
        Cell("counting", "grpo", 3),
        path="checkpoint",
        digest=digest_folder(Path("checkpoint")),
        run_id=run_id,
        model_id=model_id,
    )


def evaluate(
    checkpoint: Checkpoint | BaseModelCheckpoint | FailedCell,
    examples: Examples,
    tested: Tested = CELL,
    fresh: bool = False,
    **settings: Any,
) -> Any:
    return cell_evaluation.evaluate(
        checkpoint,
        examples,
        small_evaluation(**settings),
        FOLDERS,
        ModelSettings(**shipped("model")),
        Compute(**shipped("compute", fresh=fresh)),
        tested=tested,
    )


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("something is computed again")


def no_room(*_: Any, **__: Any) -> Any:
    raise MemoryError("no\nroom")


def histories(run_id: str) -> dict[str, list[tuple[int, float]]]:
    client = MlflowClient()
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run_id, name)]
        for name in client.get_run(run_id).data.metrics
    }


def files() -> list[Path]:
    """All that is below the folder of predictions but locks."""
    found = Path("predictions").rglob("*")
    return sorted(path for path in found if path.is_file() and path.suffix != ".lock")


def test_a_checkpoint_is_scored_and_its_predictions_kept(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    manifest = evaluate(checkpoint, examples)
    file = Path(manifest.path)
    assert file.parent == Path("predictions/counting/grpo/s3/geometry")
    about = {**CELL._asdict(), "eval_task": "geometry"}
    assert manifest == Predictions(
        **about, key=file.stem, path=str(file), checkpoint=checkpoint.digest
    )
    table = read_predictions(manifest)
    direct = predictions.predict(
        *load.load_model("checkpoint"),
        cell_evaluation.read_examples(examples.splits["test"].path),
        PROMPT,
        Decoding(8, 6),
        EXACT,
    )
    assert len(table) == TEST_ITEMS
    for column in direct:
        assert table[column].tolist() == direct[column].tolist()
    expected = {
        **about,
        "checkpoint": checkpoint.digest,
        "test_data": examples.splits["test"].digest,
        "base_digest": "digest of the base model",
    }
    for column, value in expected.items():
        assert set(table[column]) == {value}
    run = MlflowClient().get_run(checkpoint.run_id)
    shares = {
        "eval/geometry": table["correct"].mean(),
        "eval/accuracy_any/geometry": table["correct_any"].mean(),
        "eval/format_rate/geometry": table["format_ok"].mean(),
        "eval/think_rate/geometry": table["thought"].mean(),
        "eval/unparseable_rate/geometry": table["unparseable"].mean(),
    }
    rates = {name: round(float(share), 4) for name, share in shares.items()}
    assert histories(checkpoint.run_id) == {name: [(4, rate)] for name, rate in rates.items()}
    model = MlflowClient().get_logged_model(checkpoint.model_id)
    assert {metric.key: metric.value for metric in model.metrics} == rates
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.tags[0].value) == ("geometry_test", "test")


def test_a_base_model_is_scored_under_its_number(
    checkpoint: Checkpoint, examples: Examples
) -> None:
    base = BaseModelCheckpoint(
        **{key: getattr(checkpoint, key) for key in ("path", "digest", "run_id", "model_id")}
    )
    manifest = evaluate(base, examples, BASE._replace(base_model=2))
    assert Path(manifest.path).parent == Path("predictions/base/b2/geometry")
    table = read_predictions(manifest)
    assert table["seed"].isna().all()
    assert str(table["seed"].dtype) == "Int64"
    assert set(table["base_digest"]) == {base.digest}
    assert {step for values in histories(base.run_id).values() for step, _ in values} == {0}


def test_what_is_scored_is_not_scored_again(
    checkpoint: Checkpoint, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = evaluate(checkpoint, examples)
    logged, content = histories(checkpoint.run_id), Path(manifest.path).read_bytes()
    monkeypatch.setattr(predictions, "predict", never)
    monkeypatch.setattr(load, "load_model", never)
    shutil.rmtree("checkpoint")  # not needed any more
    for same in ({}, {"batch_size": 2}, {"seed": 1}, {"sample_temperature": 0.5}):
        assert evaluate(checkpoint, examples, **same) == manifest
    assert histories(checkpoint.run_id) == logged
    assert Path(manifest.path).read_bytes() == content
    assert files() == [Path(manifest.path)]


@pytest.mark.parametrize(
    "settings",
    [
        {"max_completion_tokens": 5},
        {"samples": 2},
        {"shuffle_images": True},
    ],
    ids=str,
)
def test_other_settings_are_other_predictions_beside_the_former(
    checkpoint: Checkpoint,
    examples: Examples,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = evaluate(checkpoint, examples)
    content = Path(first.path).read_bytes()
    second = evaluate(checkpoint, examples, **settings)
    assert second.path != first.path
    assert Path(first.path).read_bytes() == content
    if "max_completion_tokens" not in settings:
        with monkeypatch.context() as patch, pytest.raises(AssertionError, match="computed again"):
            patch.setattr(cell_evaluation, "_predict", never)
            evaluate(checkpoint, examples, BASE, seed=1, **settings)
        third = evaluate(checkpoint, examples, **settings, seed=1)
        assert third.path not in (first.path, second.path), "what is random has a seed"
    monkeypatch.setattr(predictions, "predict", never)
    assert evaluate(checkpoint, examples) == first
    assert evaluate(checkpoint, examples, **settings) == second
    names = histories(checkpoint.run_id).keys()
    assert ("eval_shuffled/geometry" in names) == ("shuffle_images" in settings)


def test_whatever_the_predictions_depend_on_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, examples = checkpoint_of(Cell("counting", "grpo", 3)), examples_of("geometry")

    def key(
        checkpoint: Checkpoint = whole,
        examples: Examples = examples,
        tested: Tested = CELL,
        batch_size: int = 8,
        **model: Any,
    ) -> str:
        return cell_evaluation._content_key(
            checkpoint,
            examples,
            small_evaluation(batch_size=batch_size),
            ModelSettings(**shipped("model", **model)),
            tested._asdict(),
        )

    adapters = whole.model_copy(update={"base_path": "base"})
    keys = [
        key(),
        key(whole.model_copy(update={"digest": "other"})),
        key(adapters),
        key(adapters.model_copy(update={"base_model": "other"})),
        key(examples=with_split(examples, "test", digest="other")),
        key(examples=with_split(examples, "test", prompt="{question}?")),
        key(examples=examples.model_copy(update={"answers": Text(kind="text")})),
        key(tested=CELL._replace(seed=4)),
        key(tested=CELL._replace(base_model=1)),
        key(max_pixels=9),
        key(dtype="bfloat16"),
        key(dtype="bfloat16", batch_size=2),
    ]
    with monkeypatch.context() as patch:
        patch.setattr(cell_evaluation, "code_digest", lambda *_: "edited")
        keys.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(cell_evaluation, "library_versions", lambda _: {"torch": "0.1"})
        keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key(examples=with_split(examples, "train", digest="other")) == keys[0]
    assert key(whole.model_copy(update={"base_model": "other"})) == keys[0], "all weights are there"


def test_the_test_split_is_asked_with_its_own_prompt_and_judged_by_the_kind_of_its_task(
    examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def predict(model: Any, processor: Any, rows: Any, prompt: str, *asked: Any) -> pd.DataFrame:
        seen.append((rows["split"][:], prompt, asked[-2]))
        return pd.DataFrame({"correct": [True]})

    monkeypatch.setattr(predictions, "predict", predict)
    monkeypatch.setattr(load, "load_model", lambda *_: (None, None))
    texts = examples.model_copy(update={"answers": Text(kind="text")})
    cell_evaluation._predict(
        checkpoint_of(Cell("counting", "grpo", 3)),
        with_split(texts, "test", prompt="Look: {question}"),
        small_evaluation(),
        ModelSettings(**shipped("model")),
        CELL._asdict(),
    )
    assert seen == [(["test"] * TEST_ITEMS, "Look: {question}", Text(kind="text"))]


def test_the_key_covers_how_a_model_is_loaded_and_asked() -> None:
    covered = {f"othink_pipeline.{name}" for name in ("models.load", "models.pixels")}
    covered |= {f"othink_pipeline.{name}" for name in ("models.sampling", "scoring.strict")}
    assert covered <= set(reached(*cell_evaluation.EVALUATION))


def test_fresh_scores_again_in_the_same_place(
    checkpoint: Checkpoint, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = evaluate(checkpoint, examples)
    logged = histories(checkpoint.run_id)
    scored: list[int] = []
    predict = cell_evaluation._predict

    def counted(*args: Any) -> pd.DataFrame:
        scored.append(1)
        return predict(*args)

    monkeypatch.setattr(cell_evaluation, "_predict", counted)
    assert evaluate(checkpoint, examples, fresh=True) == manifest
    assert len(scored) == 1
    assert histories(checkpoint.run_id) == logged


def test_scores_of_a_run_that_is_gone_are_kept_and_told(
    checkpoint: Checkpoint, examples: Examples, caplog: pytest.LogCaptureFixture
) -> None:
    MlflowClient().delete_run(checkpoint.run_id)
    manifest = evaluate(checkpoint, examples)
    assert len(read_predictions(manifest)) == TEST_ITEMS
    assert f"MLflow has no run {checkpoint.run_id}" in caplog.text
    assert not histories(checkpoint.run_id)


# --- Damage


@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_damaged_predictions_are_told_and_made_again(
    checkpoint: Checkpoint,
    examples: Examples,
    damage: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manifest = evaluate(checkpoint, examples)
    file = Path(manifest.path)
    whole = read_predictions(manifest)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(ConfigurationError, match="kedro run --pipelines=evaluation") as error:
        read_predictions(manifest)
    assert str(file) in error.value.message
    caplog.clear()
    assert evaluate(checkpoint, examples) == manifest
    assert f"{file} is damaged" in caplog.text
    assert read_predictions(manifest).equals(whole)
    assert all(len(values) == 1 for values in histories(checkpoint.run_id).values())


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    """Most are found; what is not, stands where nobody reads, or in the name of a column."""
    rng = np.random.default_rng(0)
    items = 40
    table = pd.DataFrame(
        {
            "method": "grpo",
            "seed": pd.array([3] * items, dtype="Int64"),
            "example_id": [f"counting-test-{item:06d}" for item in range(items)],
            "completion": [f"<answer>{value}</answer>" for value in rng.integers(0, 99, items)],
            "correct": rng.random(items) < 0.5,
            "completion_tokens": rng.integers(1, 40, items),
            "sampled_correct": [[True, False], [False, False]] * (items // 2),
        }
    )
    file = tmp_path / "predictions.parquet"
    write_predictions(table, file)
    content = file.read_bytes()
    manifest = predictions_in(file)
    assert _same(read_predictions(manifest), table)
    for place in range(0, len(content), 11):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        try:
            read = read_predictions(manifest)
        except ConfigurationError:
            continue
        assert list(read.columns) != list(table.columns) or _same(read, table)


def predictions_in(file: Path) -> Predictions:
    return Predictions(
        **CELL._asdict(), eval_task="geometry", key="k", path=str(file), checkpoint="d"
    )


def _same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether all values are the same, whatever holds them."""
    return one.to_json() == other.to_json()


def test_predictions_that_are_missing_are_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="kedro run --pipelines=evaluation") as error:
        read_predictions(predictions_in(tmp_path / "nowhere.parquet"))
    assert "nowhere.parquet" in error.value.message


# --- Failures


def test_a_cell_that_failed_has_no_predictions_but_the_reason(examples: Examples) -> None:
    reason = "TrainingFault: loss is NaN"
    failed = FailedCell(task="counting", method="grpo", seed=3, failed=reason)
    expected = FailedTest(**CELL._asdict(), eval_task="geometry", failed=reason)
    assert evaluate(failed, examples) == expected
    assert not Path("predictions").exists()


def test_an_error_fails_a_cell_and_stops_the_run_for_a_base_model(
    checkpoint: Checkpoint,
    examples: Examples,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(predictions, "predict", no_room)
        manifest = evaluate(checkpoint, examples)
        with pytest.raises(MemoryError):
            evaluate(checkpoint, examples, BASE)
    assert manifest.failed == "MemoryError: no room"
    assert "counting.grpo.s3 -> geometry" in caplog.text
    assert not files()
    assert not histories(checkpoint.run_id)
    assert not isinstance(evaluate(checkpoint, examples), FailedTest), "the next run tries again"


@pytest.mark.parametrize(("tested", "name"), [(CELL, "counting.grpo.s3"), (BASE, "base.b0")])
def test_a_checkpoint_that_changed_is_not_scored(
    checkpoint: Checkpoint,
    examples: Examples,
    tested: Tested,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (Path("checkpoint") / "config.json").write_text("{}")
    monkeypatch.setattr(predictions, "predict", never)
    remedy = f"kedro run --namespaces={name} "
    if tested is CELL:
        assert remedy in evaluate(checkpoint, examples).failed
    else:
        with pytest.raises(ConfigurationError, match=remedy):
            evaluate(checkpoint, examples, tested)


def test_adapters_on_a_model_of_the_hub_are_scored_whatever_else_lies_in_its_cache(
    checkpoint: Checkpoint, examples: Examples, mini_model: MiniModel
) -> None:
    shutil.copytree(mini_model.path, "snapshot")
    Path("snapshot/README.md").write_text("another program's")
    base = {"base_path": "snapshot", "base_model": mini_model.digest}
    for is_hubs in (True, False):
        adapters = checkpoint.model_copy(update={**base, "base_is_hubs": is_hubs})
        if is_hubs:
            cell_evaluation._check_checkpoint(adapters, CELL)
        else:
            with pytest.raises(ConfigurationError, match="snapshot: missing, or changed"):
                cell_evaluation._check_checkpoint(adapters, CELL)


def test_examples_that_were_made_anew_are_not_scored_on(
    checkpoint: Checkpoint, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "predict", never)
    with pytest.raises(ConfigurationError, match="kedro run --pipelines=data_preparation"):
        evaluate(checkpoint, with_split(examples, "test", digest="other"))
