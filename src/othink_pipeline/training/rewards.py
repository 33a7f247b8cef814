"""Rule-based rewards in [0, 1], scored by the same function as the evaluation.

Signatures are TRL's: a list of conversational completions (one assistant message each) and the
data set's columns as lists of the same length; who builds the trainer binds ``kind``. The names
appear in the logs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from othink_pipeline.scoring.kinds import EXACT, AnswerKind
from othink_pipeline.scoring.strict import score


def accuracy_reward(
    completions: Sequence[Any], answer: Sequence[str], kind: AnswerKind = EXACT, **_: Any
) -> list[float]:
    """1 where the tagged answer is right, else 0."""
    return [
        float(score(completion[0]["content"], gold, kind).correct)
        for completion, gold in zip(completions, answer, strict=True)
    ]


def accuracy_any_reward(
    completions: Sequence[Any], answer: Sequence[str], kind: AnswerKind = EXACT, **_: Any
) -> list[float]:
    """1 where the answer is right with or without tags, else 0: the last number, without tags."""
    return [
        float(score(completion[0]["content"], gold, kind).correct_any)
        for completion, gold in zip(completions, answer, strict=True)
    ]


def format_reward(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    """1 where the whole completion is ``<think>...</think><answer>...</answer>``, else 0."""
    return [
        float(score(completion[0]["content"], gold).format_ok)
        for completion, gold in zip(completions, answer, strict=True)
    ]


ACCURACY_REWARDS = {"tagged": accuracy_reward, "any": accuracy_any_reward}
"""The accuracy reward by where it looks for the answer."""
