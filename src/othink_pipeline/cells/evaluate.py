"""Score a checkpoint, or a base model, on a test split, or find that it is scored.

torch is imported inside the functions: the registry imports this module.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from othink_pipeline.cells.keys import (
    FAILED,
    SAME_ENV,
    check_code,
    check_examples,
    check_files,
    dataset_ref,
)
from othink_pipeline.cells.parameters import Evaluation, Folders
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.code import code_digest, library_versions
from othink_pipeline.core.files import content_key, publish_file
from othink_pipeline.core.locks import lock
from othink_pipeline.core.redaction import failure
from othink_pipeline.data.examples import read_examples
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.report.matrix import BASE
from othink_pipeline.tracking import records
from othink_pipeline.tracking.recorder import raise_if_away

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

EVALUATION = "othink_pipeline.evaluation.predictions"
"""The module whose code, and all that it imports, makes predictions."""


def evaluate_model(
    checkpoint: dict[str, Any],
    examples: dict[str, Any],
    evaluation: Evaluation,
    folders: Folders,
    model: ModelSettings,
    compute: Compute,
    *,
    task: str,
    method: str,
    seed: int | None,
    base_model: int,
) -> dict[str, Any]:
    """Score a checkpoint, or a base model, on a test split, unless that was done before.

    Args:
        checkpoint: manifest with path, digest, run_id; or of a cell that failed.
        examples: manifest of the task to test on.
        task, method, seed: what the checkpoint is: ``none``, ``base``, None for a base model.
        base_model: the number of the base model that it started from, or is.

    Returns:
        The manifest of the predictions, a table with a row for each test example: its path, and
        what it is about. Where a cell failed here or before, why it did (``failed``).

    Raises:
        ConfigurationError: the checkpoint is not the one that its manifest speaks of.
    """
    eval_task = examples["task"]
    about = {
        "train_task": task,
        "method": method,
        "seed": seed,
        "base_model": base_model,
        "eval_task": eval_task,
    }
    if FAILED in checkpoint:
        return {**about, FAILED: checkpoint[FAILED]}
    origin = f"b{base_model}" if seed is None else f"{task}/{method}/s{seed}"
    name = f"{BASE}.{origin}" if seed is None else origin.replace("/", ".")
    place = f"{BASE}/{origin}" if seed is None else origin
    adapters = "base_path" in checkpoint
    key = content_key(
        {
            "checkpoint": checkpoint["digest"],
            **({"base_model": checkpoint["base_model"]} if adapters else {}),
            "test": examples["splits"]["test"]["digest"],
            "prompt": examples["splits"]["test"]["prompt"],
            "evaluation": _settings(evaluation, model),
            "model": model.model_dump(),
            "about": about,
            "code": code_digest(EVALUATION),
            "libraries": library_versions(),
        }
    )
    file = Path(folders.predictions) / place / eval_task / f"{key}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)

    def busy(holder: str) -> None:
        logger.info("%s -> %s: another run is at it (%s): waiting", name, eval_task, holder)

    with lock(file.with_suffix(".lock"), busy):
        predictions = None if compute.fresh else _read(file)
        reused = predictions is not None
        if predictions is None:
            remedy = f"Make it again: kedro run --namespaces={name} {SAME_ENV}"
            check_examples(examples)
            try:
                check_files(checkpoint, remedy)
                predictions = _predict(checkpoint, examples, evaluation, model, about)
            except Exception as error:
                if seed is None:
                    raise  # without the base model's score there is nothing to compare with
                known = isinstance(error, click.ClickException)  # its message says it all
                logger.error(
                    "%s -> %s failed, the rest goes on: %s",
                    name,
                    eval_task,
                    failure(error),
                    exc_info=None if known else error,
                )
                return {**about, FAILED: failure(error)}
            with publish_file(file) as scratch:
                write_predictions(predictions, scratch)
        try:
            _log(checkpoint, examples, predictions)
        except Exception as error:
            raise_if_away(error)
            raise
    logger.info(
        "%s -> %s: %.1f %% right (%d items)%s",
        name,
        eval_task,
        100 * predictions["correct"].mean(),
        len(predictions),
        ", scored before" if reused else "",
    )
    return {**about, "key": key, "path": str(file), "checkpoint": checkpoint["digest"]}


def read_predictions(manifest: dict[str, Any]) -> pd.DataFrame:
    """The table of a manifest.

    Raises:
        ConfigurationError: the file is missing or damaged.
    """
    table = _read(Path(manifest["path"]))
    if table is None:
        raise ConfigurationError(
            f"{manifest['path']}: missing or damaged. Make it again: "
            f"kedro run --pipelines=evaluation {SAME_ENV}"
        )
    return table


def write_predictions(table: pd.DataFrame, file: Path) -> None:
    """Write a table so that reading it finds every damaged value."""
    table.to_parquet(file, write_page_checksum=True)


def eval_stage(predictions: pd.DataFrame) -> str:
    """What the metrics of an evaluation begin with in MLflow: what was shown tells them apart."""
    return "eval_shuffled" if "image_of" in predictions else "eval"


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


def _read(file: Path) -> pd.DataFrame | None:
    """The table in a file; None where there is none, or a damaged one."""
    import pandas as pd

    try:
        return pd.read_parquet(file, page_checksum_verification=True)
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged metadata: whatever its many readers raise
        logger.warning("%s is damaged (%s)", file, error)
        return None


def _predict(
    checkpoint: dict[str, Any],
    examples: dict[str, Any],
    evaluation: Evaluation,
    settings: ModelSettings,
    about: dict[str, Any],
) -> pd.DataFrame:
    from othink_pipeline.evaluation.predictions import Extras, predict
    from othink_pipeline.models.generation import Decoding
    from othink_pipeline.models.load import load_model

    check_code(EVALUATION)
    base_path = checkpoint.get("base_path")
    if base_path is not None:  # adapters alone
        base = {"path": base_path, "digest": checkpoint["base_model"]}
        check_files(base, f"Check it: kedro run --pipelines=data_preparation {SAME_ENV}")
    model, processor = load_model(checkpoint["path"], settings, base_path)
    test = examples["splits"]["test"]
    predictions = predict(
        model,
        processor,
        read_examples(test["path"]),
        test["prompt"],
        Decoding(**evaluation.generation),
        Extras(**evaluation.model_dump(exclude=set(evaluation.generation))),
    )
    for position, (column, value) in enumerate(about.items()):
        predictions.insert(position, column, value)
    predictions["seed"] = predictions["seed"].astype("Int64")
    predictions["checkpoint"] = checkpoint["digest"]
    predictions["test_data"] = test["digest"]
    # A base model's manifest speaks of none but itself.
    predictions["base_digest"] = checkpoint.get("base_model", checkpoint["digest"])
    return predictions


def _log(checkpoint: dict[str, Any], examples: dict[str, Any], predictions: pd.DataFrame) -> None:
    """Put the scores on the run that made the checkpoint, once."""
    stage, eval_task = eval_stage(predictions), examples["task"]
    metrics = {
        f"{stage}/{eval_task}": predictions["correct"].mean(),
        f"{stage}/accuracy_any/{eval_task}": predictions["correct_any"].mean(),
        f"{stage}/format_rate/{eval_task}": predictions["format_ok"].mean(),
        f"{stage}/think_rate/{eval_task}": predictions["thought"].mean(),
        f"{stage}/unparseable_rate/{eval_task}": predictions["unparseable"].mean(),
    }
    run_id, updates = checkpoint["run_id"], int(checkpoint.get("updates", 0))
    dataset = dataset_ref(examples, "test")
    records.log_dataset(run_id, dataset, "test")
    records.log_scores(run_id, metrics, updates, model_id=checkpoint["model_id"], dataset=dataset)
