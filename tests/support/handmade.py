"""Predictions tables by hand: what each cell answered."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


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
    first = [True] + [False] * (len(correct) - 1)
    return pd.DataFrame(
        {
            "train_task": train_task,
            "method": method,
            "seed": pd.array([seed] * len(correct), dtype="Int64"),
            "base_model": base_model,
            "eval_task": eval_task,
            "example_id": [f"{eval_task}-{place}" for place in range(len(correct))],
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
