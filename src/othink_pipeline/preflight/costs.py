"""The hours that a grid still takes: what is left to do, times what one of it was measured to take.

Nothing heavy is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.core.units import describe_seconds
from othink_pipeline.preflight.plan import Planned
from othink_pipeline.preflight.rows import Row


class Speed(NamedTuple):
    """Seconds that were measured; what was not is missing, or NaN."""

    update: Mapping[str, float]
    """Of an update, by algorithm."""
    answer: float
    """Of a batch of answers, divided by their number."""


def hours_left(
    planned: Sequence[Planned], parameters: Parameters, speed: Speed, at_once: int | None = None
) -> Row:
    """What the cells that are not finished take: training, scores of checkpoints, tests.

    An algorithm that was not measured takes what finished trainings of the same base model took.
    Base models are tested as long as there is a cell left.

    Args:
        planned: every cell of the grid.
        at_once: cells that Ray would train side by side, if that is known.
    """
    name = "the grid that is left"
    left = [item for item in planned if item.state != "reuse"]
    if not left:
        return Row(name, "note", f"nothing: all {len(planned)} cells are trained")
    updates, answers = sum(item.left for item in left), _count_answers(left, parameters)
    what = f"{len(left)} of {len(planned)} cells, {updates:,} updates and {answers:,} answers"
    training, answering = sum(_seconds(item, speed) for item in left), answers * speed.answer
    if math.isnan(training + answering):
        return Row(name, "note", f"{what}; how long they take was not measured")
    detail = (
        f"{what} take at most about {describe_seconds(training + answering)}: "
        f"{describe_seconds(training)} to train, {describe_seconds(answering)} to validate and to "
        "test"
    )
    if at_once and at_once > 1:
        longest = max(_seconds(item, speed) for item in left)
        best = max(longest, (training + answering) / at_once)
        detail += (
            f"; side by side on Ray (docs/cluster.md), {at_once} at a time, at best about "
            f"{describe_seconds(best)}"
        )
    return Row(name, "note", detail)


def _seconds(item: Planned, speed: Speed) -> float:
    """Of the updates that are left of a cell."""
    measured = speed.update.get(item.method.algorithm)
    return item.seconds if measured is None else item.left * measured


def _count_answers(left: Sequence[Planned], parameters: Parameters) -> int:
    """Answers to validation examples that checkpoints are left to give, and answers to tests."""
    validated = sum(_checkpoints_left(item) * item.method.validation_examples for item in left)
    tested = (len(left) + parameters.base_model.count) * parameters.data_preparation.splits.test
    answers = validated + tested * (1 + parameters.evaluation.samples)
    return len(parameters.experiment.tasks) * answers


def _checkpoints_left(item: Planned) -> int:
    """The base model itself is scored first, and the last update last."""
    every = item.method.checkpoint_every_updates
    return (not item.done) - item.done // every - (-item.updates // every)
