"""Fills the page's template. What models and data sets say is escaped wherever it stands."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

import pandas as pd
from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from othink_pipeline.report.figures import colors_of, entry_texts
from othink_pipeline.report.markdown import FORMS, THINKING, TITLE, VERDICT, split_sections
from othink_pipeline.report.matrix import (
    HOLE,
    by_base_model,
    sort_methods,
    sort_rows,
    tested,
)
from othink_pipeline.report.page.archive import model_names, pack_predictions, split_thinking
from othink_pipeline.report.page.charts import curve_panels, dashes, forest
from othink_pipeline.report.page.items import Item
from othink_pipeline.report.page.samples import Sample
from othink_pipeline.report.parameters import KnownMethods
from othink_pipeline.report.scores import form_accuracy
from othink_pipeline.report.tables import number


class Content(NamedTuple):
    """What the page shows."""

    report: str
    """In Markdown, as from :func:`report_markdown`."""
    matrix: pd.DataFrame
    """As from :func:`transfer_matrix`."""
    predictions: pd.DataFrame
    """What the matrix was made from."""
    differences: pd.DataFrame
    """As from :func:`comparison.differences_table`."""
    history: pd.DataFrame
    """Columns task, method, seed, step, metric, value."""
    items: Mapping[str, Item]
    """The test examples by id, task by task."""
    samples: Sequence[Sample]
    """As from :func:`choose_samples`."""


class Entry(NamedTuple):
    """A shaded entry of a table."""

    text: str
    below: str
    percent: float
    """How deeply it is shaded."""
    is_own: bool = False
    """Tested on the task that was trained on."""


def render_page(content: Content, methods: Sequence[str], known: KnownMethods) -> str:
    """One HTML file: styles, script, pictures and predictions are in it.

    Args:
        methods: the order of the grid's methods.
    """
    predictions = sort_rows(content.predictions, methods)
    header, sections = split_sections(content.report)
    tasks = sorted(content.matrix["eval_task"].unique())
    drawn = sort_methods(content.history["method"], methods)
    style, script, template = (
        files(__package__).joinpath(f"page.{kind}").read_text() for kind in ("css", "js", "html")
    )
    return _template(template).render(
        title=TITLE,
        about=_about(content.matrix, predictions),
        tasks=tasks,
        header=_html(header),
        verdict=_html(sections.pop(VERDICT, "")),
        heat_map=_heat_map(content.matrix, tasks, known),
        is_shuffled="image_of" in predictions,
        forest=forest(content.differences, known),
        without_picture=sum(not item.picture for item in content.items.values()),
        samples=content.samples,
        items=content.items,
        known=known,
        told=_told,
        forms=_forms(predictions, tasks, known),
        panels=curve_panels(content.history, methods, known),
        legend={method: known.label(method) for method in drawn},
        colors=colors_of(drawn, methods),
        patterns=dashes(drawn),
        thinking=_html(sections.pop(THINKING, "")),
        scores=_scores(content.matrix),
        sections={title: _html(text) for title, text in sections.items() if title != FORMS},
        archive=pack_predictions(predictions, list(content.items.values()), known),
        style=style,
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _template(text: str) -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


def _html(markdown: str) -> Markup:
    """Markdown as HTML; HTML and pictures in it stay text."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("js-default").disable(["image", "link", "autolink", "reference"])
    return Markup(reader.render(markdown))


def _about(matrix: pd.DataFrame, predictions: pd.DataFrame) -> str:
    """How much stands behind the page."""
    there = tested(matrix)
    models = len(there[["train_task", "method", "seed", "base_model"]].drop_duplicates())
    seeds, items = there["seed"].nunique(), predictions["example_id"].nunique()
    counts = {"model": models, "seed": seeds, "task": there["eval_task"].nunique()}
    counts |= {"test item": items, "answer": len(predictions)}
    return ", ".join(f"{n:,} {noun}{'s' * (n != 1)}" for noun, n in counts.items())


def _heat_map(
    matrix: pd.DataFrame, tasks: Sequence[str], known: KnownMethods
) -> list[tuple[str, list[Entry]]]:
    """A row for each method on each train task: its name and an entry a task."""
    rows = []
    for (train_task, method), group in matrix.groupby(["train_task", "method"], sort=False):
        entries = []
        for task in tasks:
            cells = tested(group[group["eval_task"] == task])
            percent = 100 * by_base_model(cells).mean()
            entries.append(Entry(*entry_texts(cells), percent, task == train_task))
        rows.append((known.name(str(train_task), str(method)), entries))
    return rows


def _forms(
    predictions: pd.DataFrame, tasks: Sequence[str], known: KnownMethods
) -> dict[str, tuple[list[str], list[tuple[str, list[Entry]]]]]:
    """By task that has forms: their names, and a row for each method on each train task."""
    tables = {}
    for task in tasks:
        accuracy = form_accuracy(predictions, task)
        rows = [
            (
                known.name(*key),
                [
                    Entry(HOLE if share != share else f"{100 * share:.1f}", "", 100 * share)
                    for share in shares
                ],
            )
            for key, shares in zip(accuracy.index, accuracy.to_numpy(), strict=True)
        ]
        if rows:
            tables[task] = (list(accuracy.columns), rows)
    return tables


def _told(
    answers: pd.DataFrame, known: KnownMethods
) -> Iterator[tuple[str, bool, tuple[str, str]]]:
    """Of each answer the model's name, whether it is right, its thinking, and the rest."""
    parts = map(split_thinking, map(str, answers["completion"]))
    return zip(model_names(answers, known), answers["correct"], parts, strict=True)


def _scores(matrix: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """The whole matrix as its CSV has it, to four digits."""
    rows = [
        [
            f"{value:.4f}" if isinstance(value, float) and value == value else number(value)
            for value in row
        ]
        for row in matrix.astype(object).to_numpy()
    ]
    return list(matrix.columns), rows
