"""Gather what all models scored and what all trainings cost; then report."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from othink_pipeline.cells.evaluate import eval_stage, read_predictions
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.manifests import CollectedTests, FailedCell, FailedTest, Predictions
from othink_pipeline.cells.samples import sample_answers
from othink_pipeline.config_loader import GridConfigLoader
from othink_pipeline.core.blocks import BASE, SAME_ENV, ConfigurationError
from othink_pipeline.core.code import code_tags, library_versions
from othink_pipeline.core.files import content_key
from othink_pipeline.data.examples import read_examples
from othink_pipeline.data.manifests import Examples
from othink_pipeline.data.pictures import decode
from othink_pipeline.report.comparison import compare_all, differences_table
from othink_pipeline.report.figures import heat_map, training_curves
from othink_pipeline.report.markdown import Results, report_markdown
from othink_pipeline.report.matrix import KEYS, matrix_text, sort_rows, transfer_matrix
from othink_pipeline.report.page.items import MAX_PICTURE_BYTES, Item, make_items
from othink_pipeline.report.page.render import Content, render_page
from othink_pipeline.report.page.samples import choose_samples
from othink_pipeline.report.parameters import KnownMethods, Published, Report
from othink_pipeline.report.sample_figure import samples_figure
from othink_pipeline.report.training import kl_pull
from othink_pipeline.report.verdict import verdict
from othink_pipeline.tracking import records, runs, views
from othink_pipeline.tracking.lifecycle import BASE_ENVIRONMENT
from othink_pipeline.tracking.recorder import told_if_away

logger = logging.getLogger(__name__)

COST_COLUMNS = (
    *("updates", "prompts", "completion_tokens", "seconds", "weights_changed"),
    *("run_id", "path", "digest"),
)


def collect_tests(
    *, models: tuple[str, ...], tasks: tuple[str, ...], **manifests: Any
) -> CollectedTests:
    """All tests of one method, or of the base models.

    Puts some answers on the MLflow run of each model that was tested on all tasks, where it is.

    Args:
        models: namespaces of the cells, or of the base models.
        tasks: what each of them was tested on.
        manifests: by the name of the dataset, of each task's examples, and of each model's
            checkpoint and predictions.

    Raises:
        ConfigurationError: predictions that are not those of the checkpoint.
    """
    found: list[Predictions | FailedTest] = []
    for model in models:
        checkpoint = manifests[f"{model}.checkpoint"]
        tests = [manifests[f"{model}.{task}.predictions"] for task in tasks]
        found += tests
        done = [test for test in tests if isinstance(test, Predictions)]
        digest = None if isinstance(checkpoint, FailedCell) else checkpoint.digest
        if any(test.checkpoint != digest for test in done):
            raise ConfigurationError(
                f"{model}: its predictions are not those of its last checkpoint. "
                f"Run it again: kedro run --namespaces={model} {SAME_ENV}"
            )
        if len(done) == len(tasks):  # samples of some tasks would be taken for all
            with told_if_away():
                if runs.is_there(checkpoint.run_id):  # else the evaluation has said so
                    _log_samples(checkpoint.run_id, done, manifests)
    return CollectedTests(tests=tuple(found))


def _log_samples(run_id: str, tests: list[Predictions], manifests: dict[str, Any]) -> None:
    tables = {test.eval_task: read_predictions(test) for test in tests}
    examples = {task: manifests[f"{task}.examples"] for task in tables}
    shown = eval_stage(tables[tests[0].eval_task]).removeprefix("eval")  # "" or "_shuffled"
    file = views.SAMPLES.replace(".", f"{shown}.")
    digest = content_key({test.eval_task: test.key for test in tests})
    records.log_samples(run_id, sample_answers(tables, examples), file, digest)


def merge_tests(*collected: CollectedTests) -> CollectedTests:
    """All tests of a task's methods, in the methods' order."""
    return CollectedTests(tests=tuple(test for each in collected for test in each.tests))


def build_transfer_matrix(
    *collected: CollectedTests, methods: tuple[str, ...]
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """All predictions in one table, their scores, and what has none.

    Args:
        collected: the tests of the base models, and of each task.
        methods: their order.

    Returns:
        predictions; the matrix, rows trained on, columns tested on; failures, a row for each score
        that is missing, and why.

    Raises:
        ConfigurationError: the predictions do not belong together.
    """
    tests = [test for each in collected for test in each.tests]
    tables = [read_predictions(test) for test in tests if isinstance(test, Predictions)]
    failed = [test.model_dump() for test in tests if isinstance(test, FailedTest)]
    failures = pd.DataFrame(failed, columns=[*KEYS, "failed"]).rename(columns={"failed": "reason"})
    _check_settings(tables)
    predictions = pd.concat(tables, ignore_index=True)
    _check_origins(predictions)
    return predictions, transfer_matrix(predictions, failures, methods), failures


def _check_settings(tables: list[pd.DataFrame]) -> None:
    """Refuse what was not asked in one way."""
    sampled = [table.get("sampled_correct") for table in tables]
    samples = [0 if column is None else len(column.iloc[0]) for column in sampled]
    if len(set(zip(map(eval_stage, tables), samples, strict=True))) > 1:
        raise ConfigurationError(
            "not all predictions were made with the same evaluation.shuffle_images and .samples. "
            f"Test all checkpoints again: kedro run --pipelines=evaluation {SAME_ENV}"
        )


def _check_origins(predictions: pd.DataFrame) -> None:
    """Refuse other test examples, and cells that started from another base model."""
    for task, table in predictions.groupby("eval_task"):
        others = table[table["test_data"] != table["test_data"].mode()[0]]
        if not others.empty:
            names = sorted(set(others["train_task"] + "." + others["method"]))
            raise ConfigurationError(
                f"not tested on the same examples of {task} as the others: {', '.join(names)}. "
                f"Run the whole grid again: kedro run {SAME_ENV}"
            )
    of_base = predictions[predictions["method"] == BASE]
    origin = of_base.groupby("base_model")["base_digest"].first()
    strange = predictions[predictions["base_digest"] != predictions["base_model"].map(origin)]
    if not strange.empty:
        rows = strange[["train_task", "method", "seed"]].drop_duplicates().itertuples(index=False)
        cells = ",".join(Cell(*row).name for row in rows)
        raise ConfigurationError(
            "base_model.path: these cells were trained from other base models than it names. Set "
            f"it back, or train them again: kedro run --namespaces={cells} {SAME_ENV}"
        )


def collect_training(
    *, cells: tuple[Cell, ...], **datasets: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves and costs of one method on one task, with columns task, method and seed.

    Args:
        cells: all seeds; those that failed are left out.
        datasets: by name, each cell's history and the manifest of its checkpoint.

    Returns:
        history, all curves below one another; training, a row for each cell: what it cost.
    """
    histories, training = [], []
    for cell in cells:
        checkpoint, history = (
            datasets[f"{cell.name}.{kind}"] for kind in ("checkpoint", "history")
        )
        if isinstance(checkpoint, FailedCell):
            continue
        histories.append(history.assign(**cell._asdict()))
        costs = {column: getattr(checkpoint, column) for column in COST_COLUMNS}
        rate = checkpoint.parameters.learning_rate
        summary = summarize_history(history, cell.task)
        settings = checkpoint.parameters.model_dump_json()
        training.append(
            {
                **cell._asdict(),
                **costs,
                "learning_rate": rate,
                **summary,
                "settings": settings,
            }
        )
    if not training:
        nothing = pd.DataFrame(columns=["step", "metric", "value", *Cell._fields])
        return nothing, nothing[[*Cell._fields]]
    return pd.concat(histories, ignore_index=True), pd.DataFrame(training)


def concatenate(*tables: pd.DataFrame) -> pd.DataFrame:
    """Tables below one another; what is empty does not decide a column's type."""
    filled = [table for table in tables if len(table)]
    return pd.concat(filled or tables[:1], ignore_index=True)


def summarize_history(history: pd.DataFrame, task: str) -> dict[str, float]:
    """What the report needs of a cell's curves; NaN for what its method has not.

    Args:
        history: columns step, metric, value.
        task: the one that was trained on.

    Returns:
        kl_pull (as of the report) and kl_weight_mean, averaged over the updates; kl_weight_end, of
        the last; kl_last, the mean KL in the last quarter of the updates; reward_first and
        reward_last, the mean reward in the first and the last quarter; accuracy_first and
        accuracy_last, on the own task's validation split before and after training.
    """
    curves = history.pivot(index="step", columns="metric", values="value").sort_index()
    metrics = ["train/kl_weight", "train/kl", "train/reward", f"val/{task}"]
    weight, kl, reward, accuracy = (
        curves[name].dropna() if name in curves else pd.Series([float("nan")]) for name in metrics
    )
    quarter, kl_quarter = (math.ceil(len(curve) / 4) for curve in (reward, kl))
    return {
        "kl_pull": float(kl_pull(weight, kl).mean()),
        "kl_weight_mean": float(weight.mean()),
        "kl_weight_end": float(weight.iloc[-1]),
        "kl_last": float(kl.iloc[-kl_quarter:].mean()),
        "reward_first": float(reward.iloc[:quarter].mean()),
        "reward_last": float(reward.iloc[-quarter:].mean()),
        "accuracy_first": float(accuracy.iloc[0]),
        "accuracy_last": float(accuracy.iloc[-1]),
    }


def draw_figures(
    transfer_matrix: pd.DataFrame,
    history: pd.DataFrame,
    known_methods: KnownMethods,
    *,
    methods: tuple[str, ...],
) -> tuple[Any, Any]:
    """Heat map and training curves, as Matplotlib's figures."""
    return (
        heat_map(transfer_matrix, known_methods),
        training_curves(history, methods, known_methods),
    )


def write_report(
    transfer_matrix: pd.DataFrame,
    predictions: pd.DataFrame,
    training: pd.DataFrame,
    failures: pd.DataFrame,
    report: Report,
    known_methods: KnownMethods,
    published: Published,
    *examples: Examples,
    methods: tuple[str, ...],
) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """The report, the tested differences and the verdict; prints the verdict and the matrix.

    As many parameters as datasets: it is what all of them come to.

    Args:
        examples: of each task that was tested.
    """
    lineage = {**_records(training), **_makers()}
    logger.info("transfer matrix: accuracy in %%\n%s", matrix_text(transfer_matrix))
    asked = report.comparisons, report.equivalence_margin
    differences = differences_table(compare_all(sort_rows(predictions, methods), *asked))
    findings = verdict(differences, training, failures, known_methods)
    logger.info("verdict\n%s", "\n".join(f"  {about}: {says}." for about, says in findings))
    tables = transfer_matrix, predictions, training, failures
    near = {each.task: each.near_duplicates or 0 for each in examples}
    results = Results(*tables, differences, findings, near)
    text = report_markdown(results, methods, known_methods, published, lineage)
    return text, differences, pd.DataFrame(findings, columns=["about", "finding"])


def write_page(
    report: str,
    transfer_matrix: pd.DataFrame,
    predictions: pd.DataFrame,
    differences: pd.DataFrame,
    history: pd.DataFrame,
    settings: Report,
    known_methods: KnownMethods,
    *examples: Examples,
    methods: tuple[str, ...],
) -> tuple[str, Any]:
    """The report as one HTML file, with figures and all predictions; its samples as a figure, too.

    As many parameters as datasets: it is what all of them come to.

    Args:
        settings: the block ``report``.
        examples: of each task that was tested.

    Raises:
        ConfigurationError: the examples are not those that were tested.
    """
    samples = choose_samples(sort_rows(predictions, methods), methods, settings.comparisons)
    wanted, room_bytes = {each.example_id for each in samples}, MAX_PICTURE_BYTES // len(examples)
    items = {
        item.example_id: item
        for each in examples
        for item in _test_items(each, predictions, wanted, room_bytes)
    }
    tables = transfer_matrix, predictions, differences, history
    page = render_page(Content(report, *tables, items, samples), methods, known_methods)
    return page, samples_figure(samples, items, known_methods)


def _test_items(
    examples: Examples, predictions: pd.DataFrame, wanted: Collection[str], room_bytes: int
) -> list[Item]:
    """The test examples of a task, with the pictures that the models saw."""
    test = examples.splits["test"]
    tested = predictions[predictions["eval_task"] == examples.task]
    remedy = f"Run the whole grid again: kedro run {SAME_ENV}"
    if (tested["test_data"] != test.digest).any():
        raise ConfigurationError(
            f"{examples.task}: its predictions are of other examples than {test.path}. {remedy}"
        )
    if not Path(test.path).is_file():
        raise ConfigurationError(f"{test.path}: missing. {remedy}")
    return make_items(_read_rows(test.path), decode, _pictures_shown(tested), wanted, room_bytes)


def _pictures_shown(tested: pd.DataFrame) -> dict[str, str] | None:
    """By example, the one whose picture the models saw instead of its own; None: its own."""
    if "image_of" not in tested:
        return None
    return dict(zip(tested["example_id"], tested["image_of"], strict=True))


def _read_rows(path: str) -> Iterator[dict[str, Any]]:
    """Each example, with its picture as it was encoded."""
    for batch in read_examples(path).with_format("arrow").iter(batch_size=100):
        for row in batch.to_pylist():
            yield {**row, "image": row["image"]["bytes"]}


def _records(training: pd.DataFrame) -> dict[str, str]:
    """Where MLflow has what the report tells: the `kedro run` that makes it.

    Of a report that is made again, the latest one that recorded all of its cells.
    """
    with told_if_away():
        parent = runs.parent_run_id()
        if parent is None and "run_id" in training:
            env = GridConfigLoader.current and GridConfigLoader.current.env
            parent = views.latest_grid(training["run_id"], env or BASE_ENVIRONMENT)
        return {"MLflow run": parent, **views.view_links(parent)} if parent else {}


def _makers() -> dict[str, str]:
    """What makes the report: it may be made again by other code than has trained."""
    code = ", ".join(
        f"{key.rpartition('.')[2]} {tag}" for key, tag in code_tags(Path.cwd()).items()
    )
    versions = {"Python": platform.python_version(), **library_versions()}
    libraries = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {"report made by": code, "beside": libraries}
