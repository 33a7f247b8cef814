"""Put on MLflow what all cells come to, so that its pages answer the question at a glance."""

from __future__ import annotations

import pandas as pd

from othink_pipeline.cells.evaluate import eval_stage
from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.figures import colors_of
from othink_pipeline.report.metrics import cell_metrics, grid_metrics, model_metrics
from othink_pipeline.report.parameters import KnownMethods
from othink_pipeline.report.scores import matrix_section
from othink_pipeline.report.verdict import Finding, verdict_section
from othink_pipeline.tracking import records, runs, views
from othink_pipeline.tracking.recorder import told_if_away

QUESTION = (
    "Does reinforcement learning with a dynamic KL weight make a multimodal language model reason "
    "better, on the task that it was trained on and on one that it never saw?"
)
BASE_COLOR = "#777777"


def record_results(
    transfer_matrix: pd.DataFrame,
    predictions: pd.DataFrame,
    differences: pd.DataFrame,
    verdict: pd.DataFrame,
    known_methods: KnownMethods,
    *,
    methods: tuple[str, ...],
) -> None:
    """Scores, colours and descriptions for the MLflow runs of this `kedro run` and of its cells.

    Args:
        verdict: columns about, finding.

    Raises:
        TrackingUnavailableError: the MLflow server does not answer.
    """
    parent = runs.parent_run_id()
    if parent is None:
        return
    shown = eval_stage(predictions).removeprefix("eval")  # "" or "_shuffled"
    with told_if_away():
        _describe_models(parent, shown, transfer_matrix, predictions, known_methods, methods)
        metrics = grid_metrics(transfer_matrix, differences)
        records.log_scores(parent, _of_pictures(metrics, shown), 0)
        findings = [Finding(*row) for row in verdict.itertuples(index=False, name=None)]
        text = _describe_grid(
            parent, verdict_section(findings), matrix_section(transfer_matrix, predictions)
        )
        records.describe(parent, text)
        records.describe_experiment(parent, text)


def _describe_models(
    parent: str,
    shown: str,
    matrix: pd.DataFrame,
    predictions: pd.DataFrame,
    known: KnownMethods,
    methods: tuple[str, ...],
) -> None:
    colors = {**colors_of(methods, methods), BASE: BASE_COLOR}
    base, links = predictions[predictions["method"] == BASE], _links(parent)
    for run in runs.grid_runs(parent):
        tags = run.data.tags
        if tags["method"] == BASE and "base_model" not in tags:
            continue  # one that was made in this `kedro run`, and none of the grid's yet
        rows, answers = _of_model(matrix, tags), _of_model(predictions, tags)
        if answers.empty:  # it failed
            continue
        metrics = model_metrics(rows, answers)
        what = "The base model"
        if tags["method"] != BASE:
            metrics |= cell_metrics(rows, answers, base)
            what = f"{known.label(tags['method'])} on {tags['task']}, seed {tags['seed']}"
        # Scores of the last update, at step 0: MLflow draws what has another step as a line.
        records.log_scores(run.info.run_id, _of_pictures(metrics, shown), 0)
        if not shown:  # a cell is what it is on the right pictures
            text = "\n\n".join([f"{what}.", matrix_section(rows, answers), links])
            records.describe(run.info.run_id, text, colors.get(tags["method"]))


def _of_model(table: pd.DataFrame, tags: dict[str, str]) -> pd.DataFrame:
    """The rows of the cell, or of the base model, that a run is about."""
    if tags["method"] == BASE:
        number = int(tags["base_model"])
        return table[(table["method"] == BASE) & (table["base_model"] == number)]
    is_cell = (table["train_task"] == tags["task"]) & (table["method"] == tags["method"])
    return table[is_cell & (table["seed"] == int(tags["seed"])).fillna(False)]


def _of_pictures(metrics: dict[str, float], shown: str) -> dict[str, float]:
    """Under names of their own where other pictures were shown."""
    return {name.replace("/", f"{shown}/", 1): value for name, value in metrics.items()}


def _links(parent: str) -> str:
    return " · ".join(f"[{title}]({link})" for title, link in views.view_links(parent).items())


def _describe_grid(parent: str, findings: str, matrix: str) -> str:
    title = f"As of {runs.grid_title(parent)}:"
    text = "\n\n".join([f"**{QUESTION}**", title, findings, _links(parent), matrix, "Its models: "])
    return text + _model_links(parent, records.NOTE_CHARACTERS - len(text))


def _model_links(parent: str, room: int) -> str:
    """As many as there is room for, in characters."""
    of_grid = runs.grid_runs(parent)
    text = ""
    for number, run in enumerate(of_grid):
        more = f"and {len(of_grid) - number} more: see the view {views.VIEWS[0].title}"
        link = f"[{run.info.run_name}]({views.run_link(run)}) · "
        if len(text) + len(link) + len(more) > room:
            return text + more
        text += link
    return text.removesuffix(" · ")
