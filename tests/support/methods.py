"""Methods that train in seconds, and an evaluation to match."""

from __future__ import annotations

from typing import Any

from othink_pipeline.cells.parameters import Evaluation
from othink_pipeline.training.parameters import RL, SFT
from tests.conftest import shipped

_EITHER: dict[str, Any] = {
    "updates": 4,
    "prompts_per_update": 2,
    "checkpoint_every_updates": 2,
    "validation_examples": 4,
    "learning_rate": 5.0e-3,  # the policy must move visibly within three updates
    "lr_schedule": "constant",
    "warmup_ratio": 0.0,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
}


def small_sft(**changes: Any) -> SFT:
    """SFT on the answers, but for some keys."""
    content = {**shipped("training"), **_EITHER, "algorithm": "sft", "target": "answer"}
    return SFT.model_validate({**content, **changes})


def small_rl(**changes: Any) -> RL:
    """RL with TRL's gradient of a KL term whose weight rises, but for some keys."""
    content = {
        **shipped("training"),
        **shipped("rl"),
        **_EITHER,
        "algorithm": "rl",
        "completions_per_prompt": 4,
        "unbiased_kl": True,
        "max_completion_tokens": 8,
        "temperature": 1.0,
        "rewards": {"accuracy": 1.0, "format": 1.0, "answer": "tagged"},
        "kl": {"schedule": "linear", "start": 0.1, "end": 0.7},
    }
    return RL.model_validate({**content, **changes})


def small_evaluation(**changes: Any) -> Evaluation:
    """Greedy answers of a few tokens, but for some keys."""
    content = {
        "batch_size": 8,
        "max_completion_tokens": 6,
        "samples": 0,
        "sample_temperature": 1.0,
        "shuffle_images": False,
        "seed": 0,
    }
    return Evaluation.model_validate({**content, **changes})
