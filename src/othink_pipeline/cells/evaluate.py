"""Score a checkpoint, or a base model, on a test split, or find that it is scored.

torch is imported inside the functions: the registry imports this module.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from othink_pipeline.cells.failures import explain
from othink_pipeline.cells.keys import (
    check_code,
    check_examples,
    check_model,
    dataset_ref,
)
from othink_pipeline.cells.manifests import Checkpoint, FailedCell, FailedTest, Predictions
from othink_pipeline.cells.parameters import Evaluation, Folders
from othink_pipeline.core.blocks import BASE, SAME_ENV, ConfigurationError
from othink_pipeline.core.code import code_digest, library_versions
from othink_pipeline.core.files import content_key, publish_file
from othink_pipeline.core.locks import lock, say_busy
from othink_pipeline.data.examples import read_examples
from othink_pipeline.data.manifests import Examples
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.tracking import records, runs
from othink_pipeline.tracking.recorder import told_if_away

logger = logging.getLogger(__name__)

EVALUATION = ("othink_pipeline.evaluation.predictions", "othink_pipeline.models.load")
"""The modules whose code, and all that they import, makes predictions."""


class Tested(NamedTuple):
    """What is tested: a cell's checkpoint, or a base model (``none``, ``base``, None)."""

    train_task: str
    method: str
    seed: int | None
    base_model: int
    """The number of the base model that it started from, or is."""

    @property
    def name(self) -> str:
        """The namespace of its nodes."""
        return ".".join(self._parts)

    @property
    def place(self) -> str:
        """The folder of its predictions, within that of all."""
        return "/".join(self._parts)

    @property
    def _parts(self) -> tuple[str, ...]:
        if self.seed is None:
            return BASE, f"b{self.base_model}"
        return self.train_task, self.method, f"s{self.seed}"


def evaluate(
    checkpoint: Checkpoint | BaseModelCheckpoint | FailedCell,
    examples: Examples,
    evaluation: Evaluation,
    folders: Folders,
    model: ModelSettings,
    compute: Compute,
    *,
    tested: Tested,
) -> Predictions | FailedTest:
    """Score a checkpoint, or a base model, on a test split, unless that was done before.

    Each block comes by itself: for Kedro it is an edge of the lineage.

    Args:
        examples: of the task to test on.

    Returns:
        Where the predictions are, a table with a row for each test example; or, where a cell failed
        here or before, why it did.

    Raises:
        ConfigurationError: the examples, or a base model, are not what their manifest speaks of.
        TrackingUnavailableError: the MLflow server does not answer.
    """
    about = {**tested._asdict(), "eval_task": examples.task}
    if isinstance(checkpoint, FailedCell):
        return FailedTest(**about, failed=checkpoint.failed)
    key = _content_key(checkpoint, examples, evaluation, model, about)
    file = Path(folders.predictions) / tested.place / examples.task / f"{key}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    what = f"{tested.name} -> {examples.task}"
    with lock(file.with_suffix(".lock"), say_busy(f"{what}: another run is at it")):
        predictions = None if compute.fresh else _read(file)
        said = "" if predictions is None else ", scored before"
        if predictions is None:
            check_examples(examples)
            try:
                _check_checkpoint(checkpoint, tested)
                predictions = _predict(checkpoint, examples, evaluation, model, about)
            except Exception as error:
                if tested.seed is None:
                    raise  # without the base model's score there is nothing to compare with
                reason = explain(error, f"{what} failed, the rest goes on")
                return FailedTest(**about, failed=reason)
            with publish_file(file) as scratch:
                write_predictions(predictions, scratch)
        with told_if_away():
            _log(checkpoint, examples, predictions)
    right, items = 100 * predictions["correct"].mean(), len(predictions)
    logger.info("%s: %.1f %% right (%d items)%s", what, right, items, said)
    return Predictions(**about, key=key, path=str(file), checkpoint=checkpoint.digest)


def read_predictions(predictions: Predictions) -> pd.DataFrame:
    """The table of a finished test.

    Raises:
        ConfigurationError: the file is missing or damaged.
    """
    table = _read(Path(predictions.path))
    if table is None:
        raise ConfigurationError(
            f"{predictions.path}: missing or damaged. Make it again: "
            f"kedro run --pipelines=evaluation {SAME_ENV}"
        )
    return table


def write_predictions(table: pd.DataFrame, file: Path) -> None:
    """Write a table so that reading it finds every damaged value."""
    table.to_parquet(file, write_page_checksum=True)


def eval_stage(predictions: pd.DataFrame) -> str:
    """What the metrics of an evaluation begin with in MLflow: what was shown tells them apart."""
    return "eval_shuffled" if "image_of" in predictions else "eval"


def _content_key(
    checkpoint: Checkpoint | BaseModelCheckpoint,
    examples: Examples,
    evaluation: Evaluation,
    model: ModelSettings,
    about: dict[str, Any],
) -> str:
    """The same key, the same predictions."""
    test = examples.splits["test"]
    adapters = checkpoint.base_path is not None
    return content_key(
        {
            "checkpoint": checkpoint.digest,
            **({"base_model": checkpoint.base_digest} if adapters else {}),
            "test": test.digest,
            "prompt": test.prompt,
            "answers": examples.answers.model_dump(),
            "evaluation": _settings(evaluation, model),
            "model": model.model_dump(),
            "about": about,
            "code": code_digest(*EVALUATION),
            "libraries": library_versions({"flash_attn"} if model.uses_flash_attention else ()),
        }
    )


def _settings(evaluation: Evaluation, model: ModelSettings) -> dict[str, Any]:
    """What the predictions depend on: greedy ones on no seed, and on no batch size in float32."""
    settings = evaluation.model_dump()
    if not evaluation.samples:
        del settings["sample_temperature"]
        if model.dtype == "float32":
            del settings["batch_size"]
        if not evaluation.shuffle_images:
            del settings["seed"]
    return settings


def _check_checkpoint(checkpoint: Checkpoint | BaseModelCheckpoint, tested: Tested) -> None:
    """Refuse files that are not those of the manifest."""
    remedy = f"Make it again: kedro run --namespaces={tested.name} {SAME_ENV}"
    if isinstance(checkpoint, BaseModelCheckpoint):
        check_model(checkpoint.path, checkpoint.digest, remedy, is_hubs=checkpoint.is_hubs)
        return
    check_model(checkpoint.path, checkpoint.digest, remedy)
    if checkpoint.base_path is not None:
        remedy = f"Check it: kedro run --pipelines=data_preparation {SAME_ENV}"
        check_model(
            checkpoint.base_path, checkpoint.base_model, remedy, is_hubs=checkpoint.base_is_hubs
        )


def _read(file: Path) -> pd.DataFrame | None:
    """The table in a file; None where there is none, or a damaged one."""
    try:
        return pd.read_parquet(file, page_checksum_verification=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged metadata: whatever its many readers raise
        logger.warning("%s is damaged (%s)", file, error)
        return None


def _predict(
    checkpoint: Checkpoint | BaseModelCheckpoint,
    examples: Examples,
    evaluation: Evaluation,
    settings: ModelSettings,
    about: dict[str, Any],
) -> pd.DataFrame:
    from othink_pipeline.evaluation.predictions import Extras, predict
    from othink_pipeline.models.generation import Decoding
    from othink_pipeline.models.load import load_model

    check_code(*EVALUATION)
    model, processor = load_model(checkpoint.path, settings, checkpoint.base_path)
    test = examples.splits["test"]
    predictions = predict(
        model,
        processor,
        read_examples(test.path),
        test.prompt,
        Decoding(**evaluation.generation),
        examples.answers,
        Extras(**evaluation.model_dump(exclude=set(evaluation.generation))),
    )
    for position, (column, value) in enumerate(about.items()):
        predictions.insert(position, column, value)
    predictions["seed"] = predictions["seed"].astype("Int64")
    predictions["checkpoint"] = checkpoint.digest
    predictions["test_data"] = test.digest
    predictions["base_digest"] = checkpoint.base_digest
    return predictions


def _log(
    checkpoint: Checkpoint | BaseModelCheckpoint, examples: Examples, predictions: pd.DataFrame
) -> None:
    """Put the scores on the run that made the checkpoint, once."""
    if not runs.is_there(checkpoint.run_id):
        logger.warning(
            "MLflow has no run %s (deleted, or of another store): its scores stand in the "
            "predictions only. `kedro run` in the environment that trains records it anew",
            checkpoint.run_id,
        )
        return
    stage, eval_task = eval_stage(predictions), examples.task
    shares = {
        f"{stage}/{eval_task}": predictions["correct"].mean(),
        f"{stage}/accuracy_any/{eval_task}": predictions["correct_any"].mean(),
        f"{stage}/format_rate/{eval_task}": predictions["format_ok"].mean(),
        f"{stage}/think_rate/{eval_task}": predictions["thought"].mean(),
        f"{stage}/unparseable_rate/{eval_task}": predictions["unparseable"].mean(),
    }
    metrics = {name: round(float(share), 4) for name, share in shares.items()}
    dataset = dataset_ref(examples, "test")
    runs.join_grid(checkpoint.run_id, "tested")
    records.log_dataset(checkpoint.run_id, dataset, "test")
    records.log_scores(
        checkpoint.run_id,
        metrics,
        checkpoint.updates,
        model_id=checkpoint.model_id,
        dataset=dataset,
    )
