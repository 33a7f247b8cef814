"""The report in Markdown, from the transfer matrix and the predictions behind it.

Differences in points come first; relative figures, which grow large over a weak baseline, second.
What is not in the run is left out or shown as a hole (—); what cannot be known as a question mark.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import pandas as pd

from othink_pipeline.report.comparison import Difference, read_differences
from othink_pipeline.report.differences import (
    controls_section,
    directions_section,
    gains_section,
    pairs_with_base,
    relative_section,
    tests_section,
    thinking_section,
)
from othink_pipeline.report.matrix import sort_rows, tested
from othink_pipeline.report.parameters import KnownMethods, Published
from othink_pipeline.report.published import published_section
from othink_pipeline.report.scores import (
    forms_section,
    matrix_section,
    means_section,
    rates_section,
    samples_section,
)
from othink_pipeline.report.training import (
    costs_section,
    failures_section,
    reward_section,
    settings_section,
)
from othink_pipeline.report.verdict import Finding, verdict_section

TITLE = "Transfer matrix report"
VERDICT, FORMS, THINKING = "Verdict", "By question form", "Does thinking help?"
"""Titles of sections that the page has a place of its own for."""


class Results(NamedTuple):
    """What a run came to."""

    matrix: pd.DataFrame
    """As from :func:`transfer_matrix`."""
    predictions: pd.DataFrame
    """What the matrix was made from."""
    training: pd.DataFrame
    """One row for each cell: task, method, seed and what it cost."""
    failures: pd.DataFrame
    """What the matrix has holes for, and why: as ``transfer_matrix``, with ``reason``."""
    differences: pd.DataFrame
    """As from :func:`comparison.differences_table`."""
    verdict: Sequence[Finding]
    """As from :func:`verdict.verdict`."""
    near_duplicates: Mapping[str, int] = MappingProxyType({})
    """Of each task how many test items show almost a picture of training or validation."""


def report_markdown(
    results: Results,
    methods: Sequence[str],
    known: KnownMethods,
    published: Published,
    lineage: Mapping[str, str],
) -> str:
    """The whole report.

    Args:
        methods: the order of the grid's methods.
        lineage: what to print in the header, such as the parent run, commit and command.
    """
    matrix = results.matrix
    predictions = sort_rows(results.predictions, methods)
    differences = read_differences(results.differences)
    training = sort_rows(results.training.rename(columns={"task": "train_task"}), methods)
    against_base = pairs_with_base(predictions)
    sections = {
        VERDICT: verdict_section(results.verdict),
        "What failed": failures_section(results.failures),
        "Accuracy": matrix_section(matrix, predictions),
        "Means": means_section(matrix),
        FORMS: forms_section(predictions),
        "Paired tests: differences in points": tests_section(differences),
        "Each direction apart": directions_section(predictions, differences),
        "Relative improvement": relative_section(differences),
        "Beside published figures": published_section(matrix, predictions, published),
        "Gain over the base model, and forgetting": gains_section(against_base),
        "Controls": controls_section(predictions, known),
        "Format": rates_section(matrix),
        THINKING: thinking_section(predictions, against_base),
        "Several samples": samples_section(predictions),
        "Is the reward gamed?": reward_section(training, against_base),
        "Costs": costs_section(training),
        "Settings that differ": settings_section(training),
        "What this does and does not say": _limits(
            differences, tested(matrix), results.near_duplicates
        ),
    }
    header = "\n".join(f"- {key}: {value}" for key, value in lineage.items())
    body = [f"## {title}\n\n{text}" for title, text in sections.items() if text]
    return "\n\n".join([f"# {TITLE}", *filter(None, [header]), *body]) + "\n"


def split_sections(report: str) -> tuple[str, dict[str, str]]:
    """The header of a report, and its sections by title."""
    header, *sections = report.removeprefix(f"# {TITLE}\n").split("\n## ")
    titled = (section.split("\n", 1) for section in sections)
    return header.strip(), {title: text.strip() for title, text in titled}


def _limits(
    differences: Sequence[Difference], matrix: pd.DataFrame, near_duplicates: Mapping[str, int]
) -> str:
    several = [told for told in differences if told.unit != "items"]
    bases = max((told.base_models for told in several), default=1)
    if several:
        bodies = "; ".join(dict.fromkeys(told.basis for told in several))
        spread = (
            f"Differences are told {bodies}: their intervals rest on no more than these, and are"
            " stretched for being so few"
        )
    else:
        spread = (
            "**The variation between seeds is unknown**: no difference here rests on more than one"
            " training seed, and the intervals cover the choice of test items only"
        )
    if bases == 1:
        reach = (
            "Every difference is of one base model: **what another base model would do is"
            " unknown**, and no interval here covers it"
        )
    else:
        reach = (
            "Where there are several base models, the intervals draw them, then the seeds that"
            f" started from them: they speak for base models made like these {bases}, with other"
            " seeds"
        )
    items = matrix.groupby("eval_task")["n"].max()
    seen = "".join(
        f" **{count} of {items[task]} test items of {task} show almost the same picture as an item"
        f" of training or validation**: {task}_near_duplicates.csv, beside its examples, has them."
        for task, count in near_duplicates.items()
        if count and task in items
    )
    return (
        f"{spread}. {reach}.{seen} An interval that includes zero says that this run cannot tell,"
        " not that the methods are equal; that takes the test of equivalence. One model size, one"
        " budget and one learning rate for each method stand behind each row. The paper's figures"
        " are for Qwen2-VL-2B-Instruct on real data sets. The model that this project ships is a"
        " mini Qwen2-VL of about a million parameters on drawn tasks: with it, nothing here"
        " confirms or refutes the paper's figures."
    )
