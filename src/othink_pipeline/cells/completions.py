"""What RL samples on its way, to be read beside the curves: completions, rewards, advantages.

TRL keeps them of the latest update; what it would do with them (``log_completions``) is print them
and hand them to Weights & Biases or Trackio. It imports transformers: import it inside functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import Any

from transformers import TrainerCallback

from othink_pipeline.training.loop import Job
from othink_pipeline.training.rows import prompt_order

PROMPTS = 4
"""Of an update whose completions are shown: its first ones."""

Row = list[str | float | None]
Record = Callable[[int, list[str], list[Row]], None]


def is_due(update: int, every: int, iterations: int) -> bool:
    """Whether an update's completions are shown; several iterations learn from the same ones."""
    before = update - 1
    return before % iterations == 0 and before // every != (before - iterations) // every


class CompletionTables(TrainerCallback):
    """Hands on some of the completions that ``rl`` learns from.

    Args:
        every: updates from one table to the next. The first is of update 1: what the base model
            says; each is of the first update with new completions after so many.
        record: called with an update, the names of columns, and a row for each completion.
    """

    def __init__(self, job: Job, every: int, record: Record) -> None:
        self._job, self._every, self._record = job, every, record
        self.trainer: Any = None

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Hand on a table when one is due."""
        if is_due(state.global_step, self._every, args.num_iterations):
            self._record(state.global_step, *self._table(args, state.global_step))

    def _table(self, args: Any, update: int) -> tuple[list[str], list[Row]]:
        job, logs, group = self._job, self.trainer._logs, args.num_generations
        size = job.parameters.prompts_per_update
        order = prompt_order(len(job.examples), job.parameters.prompts, job.seed)
        start = (update - 1) // args.num_iterations * size
        asked = job.examples.select_columns(["id", "question", "answer"])
        asked = asked.select(order[start : start + size][:PROMPTS])
        questions = [
            f"{row['id']}\n{row['question']}\nright: {row['answer']}"
            for row in asked
            for _ in range(group)
        ]
        # By their prompts, of all processes in turn: in the order of the rows.
        completions = [turns[0]["content"] for turns in islice(logs["completion"], len(questions))]
        figures = {**logs["rewards"], "advantage": logs["advantages"]}
        columns = [map(_known, islice(values, len(questions))) for values in figures.values()]
        rows = zip(questions, completions, *columns, strict=True)
        return ["question", "completion", *figures], [list(row) for row in rows]


def _known(value: float) -> float | None:
    """Four digits; None for a reward that failed."""
    return round(value, 4) if math.isfinite(value) else None
