"""A reward to train for."""

from typing import Any


def reward(completions: Any, **_: Any) -> list[float]:
    """What an untrained model earns now and then: which completions is arbitrary."""
    return [float(sum(completion[0]["content"].encode()) % 3 == 0) for completion in completions]
