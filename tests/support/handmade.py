"""Predictions tables by hand: what each cell answered; and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from othink_pipeline.report.comparison import compare_all, differences_table
from othink_pipeline.report.markdown import Results, report_markdown
from othink_pipeline.report.matrix import KEYS, sort_rows, transfer_matrix
from othink_pipeline.report.parameters import KnownMethods, Published
from othink_pipeline.report.verdict import verdict

METHODS = ("sft", "sft_cot", "grpo", "grpo_d", "grpo_format")
KNOWN = KnownMethods(
    labels={"sft": "SFT", "sft_cot": "SFT-CoT", "grpo_d": "GRPO-D"},
    positive_controls=("sft_cot", "grpo"),
    format_control="grpo_format",
)
MARGIN = 3.0
NO_FAILURES = pd.DataFrame(columns=[*KEYS, "reason"])
NOTHING_PUBLISHED = Published(source="nobody", accuracy={}, improvements=())


def matrix_of(predictions: pd.DataFrame, failures: pd.DataFrame = NO_FAILURES) -> pd.DataFrame:
    return transfer_matrix(predictions, failures, METHODS)


def report_on(
    predictions: pd.DataFrame,
    training: pd.DataFrame,
    *,
    failures: pd.DataFrame = NO_FAILURES,
    comparisons: Sequence[tuple[str, str]] = (),
    known: KnownMethods = KNOWN,
    published: Published = NOTHING_PUBLISHED,
) -> str:
    compared = compare_all(sort_rows(predictions, METHODS), comparisons, MARGIN)
    differences = differences_table(compared)
    findings = verdict(differences, training, failures, known)
    matrix = matrix_of(predictions, failures)
    results = Results(matrix, predictions, training, failures, differences, findings)
    lineage = {"parent run": "abc123", "commit": "f00"}
    return report_markdown(results, METHODS, known, published, lineage)


def cell(
    train_task: str,
    method: str,
    seed: int | None,
    eval_task: str,
    correct: Sequence[int],
    base_model: int = 0,
) -> pd.DataFrame:
    """Predictions of one cell on one task; the first two items have no thought, the first no tag
    and, unless it is right, no answer that parses."""
    thinking = ["" if place < 2 else f"step {place}" for place in range(len(correct))]
    answers = ["7" if right else "8" for right in correct]
    first = [True] + [False] * (len(correct) - 1)
    return pd.DataFrame(
        {
            "train_task": train_task,
            "method": method,
            "seed": pd.array([seed] * len(correct), dtype="Int64"),
            "base_model": base_model,
            "eval_task": eval_task,
            "example_id": [f"{eval_task}-{place}" for place in range(len(correct))],
            "form": "",
            "completion": [
                f"<think>{steps}</think><answer>{answer}</answer>"
                for steps, answer in zip(thinking, answers, strict=True)
            ],
            "correct": [bool(right) for right in correct],
            "correct_any": [
                bool(right) or here for right, here in zip(correct, first, strict=True)
            ],
            "format_ok": [not here for here in first],
            "unparseable": [here and not right for right, here in zip(correct, first, strict=True)],
            "thought": [place > 1 for place in range(len(correct))],
            "completion_tokens": range(10, 10 + len(correct)),
        }
    )


def grid(*cells: pd.DataFrame) -> pd.DataFrame:
    return pd.concat(cells, ignore_index=True)


SFT_ON_COUNTING = [0, 1, 1, 1, 0, 0, 0, 0]
GRPO_D_ON_COUNTING = [0, 1, 1, 1, 1, 1, 0, 0]


def two_tasks() -> pd.DataFrame:
    """Two tasks of unequal size, two methods, one seed, the base model."""
    return grid(
        cell("geometry", "grpo_d", 0, "geometry", [0, 1, 1, 1]),
        cell("geometry", "grpo_d", 0, "counting", [0, 1, 1, 0, 0, 0, 0, 0]),
        cell("geometry", "sft", 0, "geometry", [0, 1, 1, 0]),
        cell("geometry", "sft", 0, "counting", [0, 1, 0, 0, 0, 0, 0, 0]),
        cell("counting", "grpo_d", 0, "counting", GRPO_D_ON_COUNTING),
        cell("counting", "grpo_d", 0, "geometry", [0, 1, 1, 0]),
        cell("counting", "sft", 0, "counting", SFT_ON_COUNTING),
        cell("counting", "sft", 0, "geometry", [0, 0, 1, 0]),
        cell("none", "base", None, "counting", [0, 1, 0, 0, 0, 0, 0, 1]),
        cell("none", "base", None, "geometry", [0, 1, 0, 0]),
    )
