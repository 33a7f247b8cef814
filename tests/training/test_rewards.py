"""Rewards are the verdicts of the scoring, nothing else."""

from collections.abc import Callable

import pytest

from othink_pipeline.scoring.kinds import Text
from othink_pipeline.training.rewards import (
    ACCURACY_REWARDS,
    accuracy_any_reward,
    accuracy_reward,
    format_reward,
)

Reward = Callable[..., list[float]]

COMPLETIONS = {
    "<think>2+1</think><answer>3</answer>": (1.0, 1.0, 1.0),
    "It is 3": (0.0, 1.0, 0.0),
    "<think>3</think><answer>4</answer>": (0.0, 0.0, 1.0),
}


@pytest.mark.parametrize(("text", "expected"), COMPLETIONS.items())
def test_what_a_completion_earns(text: str, expected: tuple[float, float, float]) -> None:
    completions = [[{"role": "assistant", "content": text}]]
    earned = tuple(
        reward(completions, ["3"])[0]
        for reward in (accuracy_reward, accuracy_any_reward, format_reward)
    )
    assert earned == expected


def test_each_completion_is_judged_by_its_own_gold() -> None:
    completions = [[{"content": f"<answer>{n}</answer>"}] for n in (1, 2, 3)]
    assert accuracy_reward(completions, ["1", "5", "3"]) == [1.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="zip"):
        accuracy_reward(completions, ["1", "2"])


@pytest.mark.parametrize("reward", ACCURACY_REWARDS.values())
def test_answers_are_judged_by_their_kind(reward: Reward) -> None:
    completions = [[{"content": "<answer>The Cat.</answer>"}]]
    assert reward(completions, ["cat"], kind=Text(kind="text")) == [1.0]
    assert reward(completions, ["cat"]) == [0.0]
