"""Train and evaluate one cell: files, MLflow run and tables around the trainer.

Everything a cell needs comes in as data, everything it makes goes out as files and one MLflow run,
so a cell runs the same in any process. torch is imported inside the functions: the registry
imports this module.
"""

from __future__ import annotations

import logging
import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from othink_pipeline import tracking
from othink_pipeline.examples import read_examples
from othink_pipeline.grid import Cell
from othink_pipeline.matrix import BASE
from othink_pipeline.parameters import RL, SFT, Compute, Evaluation, Folders
from othink_pipeline.reuse import digest_folder, publish
from othink_pipeline.tracking import DatasetRef
from othink_pipeline.validation import ConfigurationError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

SAME_ENV = "(with the --env of this run)"
"""Without it a command would change the results of conf/base."""


def train_cell(
    cell: Cell,
    parameters: SFT | RL,
    base_model: dict[str, Any],
    examples: tuple[dict[str, Any], ...],
    evaluation: Evaluation,
    folders: Folders,
    compute: Compute,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Train a cell; score every checkpoint on the validation split of every task.

    Args:
        base_model: its manifest.
        examples: the manifests of all tasks, the cell's own among them.

    Returns:
        The manifest of the last checkpoint, which is the one that counts, and the history table:
        step, metric, value.

    Raises:
        ConfigurationError: the base model is not the one that its manifest speaks of.
    """
    import pandas as pd

    from othink_pipeline.evaluation import predict
    from othink_pipeline.models import save_model
    from othink_pipeline.training import train

    check_files(base_model, f"Check it again: kedro run --pipelines=data_preparation {SAME_ENV}")
    folder = Path(folders.checkpoints) / cell.task / cell.method / f"s{cell.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    own = next(manifest for manifest in examples if manifest["task"] == cell.task)
    validation = {
        manifest["task"]: read_examples(manifest["splits"]["validation"]["path"]).take(
            parameters.validation_examples
        )
        for manifest in examples
    }
    history: list[dict[str, Any]] = []
    last: dict[str, Any] = {}
    name = f"{cell.task}/{cell.method}/s{cell.seed}"
    tags = {"task": cell.task, "method": cell.method, "seed": str(cell.seed)}
    settings = {
        **parameters.model_dump(),
        "seed": cell.seed,
        "task": cell.task,
        "prompt": own["prompt"],
        "base_model": {"path": base_model["path"], "digest": base_model["digest"]},
        "compute": compute.model_dump(),
    }
    with tracking.child_run(name, "cell", tags, settings) as run_id:
        tracking.log_dataset(run_id, dataset_ref(own, "train"), "train")
        for manifest in examples:
            tracking.log_dataset(run_id, dataset_ref(manifest, "validation"), "validation")

        def log(step: int, metrics: dict[str, float]) -> None:
            tracking.log_metrics(run_id, metrics, step)
            history.extend({"step": step, "metric": m, "value": v} for m, v in metrics.items())

        def checkpoint(step: int, model: Any, processor: Any) -> dict[str, float]:
            if step == 0:  # the base model itself: where every curve starts
                model_id = base_model["model_id"]
            else:
                path = folder / f"update-{step:06d}"
                with publish(path) as scratch:
                    save_model(model, processor, scratch)
                digest = digest_folder(path)
                model_id = tracking.log_checkpoint(run_id, name, step, path, {"digest": digest})
                last.update(path=str(path), digest=digest, model_id=model_id)
            scores = {}
            for manifest in examples:
                task = manifest["task"]
                predictions = predict(
                    model,
                    processor,
                    validation[task],
                    prompt=manifest["prompt"],
                    **evaluation.generation,
                )
                metrics = {
                    f"val/{task}": float(predictions["correct"].mean()),
                    f"val/think_rate/{task}": float(predictions["thought"].mean()),
                    f"val/format_rate/{task}": float(predictions["format_ok"].mean()),
                }
                tracking.log_metrics(
                    run_id,
                    metrics,
                    step,
                    model_id=model_id,
                    dataset=dataset_ref(manifest, "validation"),
                )
                history.extend({"step": step, "metric": m, "value": v} for m, v in metrics.items())
                scores[task] = metrics[f"val/{task}"]
            return scores

        trained = train(
            import_module(f"othink_pipeline.{parameters.algorithm}_training"),
            cell.name,
            base_model["path"],
            read_examples(own["splits"]["train"]["path"]),
            own["prompt"],
            parameters,
            compute,
            cell.seed,
            folder / "trainer",
            log,
            checkpoint,
        )
        costs = trained._asdict()
        tracking.log_metrics(run_id, {f"cost/{k}": v for k, v in costs.items()}, trained.updates)
    manifest = {
        **cell._asdict(),
        **last,
        "run_id": run_id,
        "parameters": parameters.model_dump(),
        "data": own["splits"]["train"]["digest"],
        "base_model": base_model["digest"],
        **costs,
    }
    return manifest, pd.DataFrame(history, columns=["step", "metric", "value"])


def evaluate_model(
    checkpoint: dict[str, Any],
    examples: dict[str, Any],
    evaluation: Evaluation,
    *,
    task: str,
    method: str,
    seed: int | None,
    base_model: int,
) -> pd.DataFrame:
    """Score a checkpoint, or a base model, on a test split.

    Args:
        checkpoint: manifest with path, digest, run_id, model_id.
        examples: manifest of the task to test on.
        task, method, seed: what the checkpoint is: ``none``, ``base``, None for a base model.
        base_model: the number of the base model that it started from, or is.

    Returns:
        The predictions table, a row for each test example.

    Raises:
        ConfigurationError: the checkpoint is not the one that its manifest speaks of.
    """
    from othink_pipeline.evaluation import predict
    from othink_pipeline.models import load_model

    namespace = f"{BASE}.b{base_model}" if seed is None else f"{task}.{method}.s{seed}"
    check_files(checkpoint, f"Make it again: kedro run --namespaces={namespace} {SAME_ENV}")
    eval_task = examples["task"]
    model, processor = load_model(checkpoint["path"])
    test = read_examples(examples["splits"]["test"]["path"])
    predictions = predict(
        model, processor, test, prompt=examples["prompt"], **evaluation.model_dump()
    )
    identity = {
        "train_task": task,
        "method": method,
        "seed": seed,
        "base_model": base_model,
        "eval_task": eval_task,
    }
    for position, (column, value) in enumerate(identity.items()):
        predictions.insert(position, column, value)
    predictions["seed"] = predictions["seed"].astype("Int64")
    predictions["checkpoint"] = checkpoint["digest"]
    predictions["test_data"] = examples["splits"]["test"]["digest"]
    # A base model's manifest speaks of none but itself.
    predictions["base_digest"] = checkpoint.get("base_model", checkpoint["digest"])
    stage = eval_stage(predictions)
    metrics = {
        f"{stage}/{eval_task}": predictions["correct"].mean(),
        f"{stage}/accuracy_any/{eval_task}": predictions["correct_any"].mean(),
        f"{stage}/format_rate/{eval_task}": predictions["format_ok"].mean(),
        f"{stage}/think_rate/{eval_task}": predictions["thought"].mean(),
        f"{stage}/unparseable_rate/{eval_task}": predictions["unparseable"].mean(),
    }
    dataset = dataset_ref(examples, "test")
    tracking.log_dataset(checkpoint["run_id"], dataset, "test")
    tracking.log_metrics(
        checkpoint["run_id"],
        metrics,
        int(checkpoint.get("updates", 0)),
        model_id=checkpoint["model_id"],
        dataset=dataset,
    )
    logger.info(
        "%s -> %s: %.1f %% right (%d items)",
        namespace,
        eval_task,
        100 * metrics[f"{stage}/{eval_task}"],
        len(predictions),
    )
    return predictions


def eval_stage(predictions: pd.DataFrame) -> str:
    """What the metrics of an evaluation begin with in MLflow: what was shown tells them apart."""
    return "eval_shuffled" if "image_of" in predictions else "eval"


def check_files(model: dict[str, Any], remedy: str) -> None:
    """Refuse a model folder whose files are not those of its manifest.

    Raises:
        ConfigurationError: missing or changed files.
    """
    folder = Path(model["path"])
    if not folder.is_dir() or digest_folder(folder) != model["digest"]:
        raise ConfigurationError(
            f"{folder}: missing, or changed since its manifest was written. {remedy}"
        )


def dataset_ref(manifest: dict[str, Any], split: str) -> DatasetRef:
    """A split of a task's examples, as tracking names it."""
    part = manifest["splits"][split]
    return DatasetRef(f"{manifest['task']}_{split}", part["digest"], part["path"], part["examples"])
