"""A reference that follows the policy: as TRL moves it, and by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from trl import GRPOTrainer

from othink_pipeline.models.load import load_model
from othink_pipeline.training.moving_reference import MovingReferenceTrainer
from othink_pipeline.training.rows import rl_rows
from tests.conftest import PROMPT, MiniModel, grpo_config, stock_rows
from tests.support.rewards import reward

Splits = Mapping[str, Mapping[str, Any]]
Weights = list[torch.Tensor]
ALPHA = 0.3


class Kept(TrainerCallback):
    """Policy and reference after each update, when TRL's callback was there."""

    trainer: Any

    def __init__(self) -> None:
        self.policies: list[Weights] = []
        self.references: list[Weights] = []

    def on_log(self, *_: Any, logs: Any = None, **__: Any) -> None:
        if "loss" in logs:
            self.policies.append(copied(self.trainer.model))
            self.references.append(copied(self.trainer.ref_model))


def copied(model: Any) -> Weights:
    return [weight.detach().clone() for weight in model.parameters()]


def train(kind: type[GRPOTrainer], path: Path, examples: Any, folder: Path) -> tuple[Any, Kept]:
    model, processor = load_model(str(path))
    ours = issubclass(kind, MovingReferenceTrainer)
    kept = Kept()
    trainer = kind(
        model=model,
        reward_funcs=[reward],
        args=grpo_config(
            folder, sync_ref_model=True, ref_model_sync_steps=2, ref_model_mixup_alpha=ALPHA
        ),
        train_dataset=rl_rows(examples, PROMPT, processor) if ours else stock_rows(examples),
        processing_class=processor,
        callbacks=[kept],
    )
    kept.trainer = trainer
    trainer.train()
    return trainer, kept


def assert_close(ours: Weights, theirs: Weights, atol: float) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=atol)


def test_it_moves_as_stock_trl_moves_it_and_when(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    examples = splits["counting"]["train"]
    trainer, ours = train(MovingReferenceTrainer, mini_model.path, examples, tmp_path)
    stock_trainer, stock = train(GRPOTrainer, mini_model.path, examples, tmp_path)
    for mine, theirs in zip(ours.references, stock.references, strict=True):
        assert_close(mine, theirs, 2e-4)
    logged = [
        [(entry["loss"], entry["kl"]) for entry in each.state.log_history if "loss" in entry]
        for each in (trainer, stock_trainer)
    ]
    torch.testing.assert_close(*map(torch.tensor, logged), rtol=1e-3, atol=1e-6)
    # By hand: the base model, until after the second update.
    base = copied(load_model(str(mini_model.path))[0])
    first, second, third = ours.references
    assert all(map(torch.equal, first, base))
    mixed = [(1 - ALPHA) * b + ALPHA * p for b, p in zip(base, ours.policies[1], strict=True)]
    assert_close(second, mixed, 1e-6)
    assert all(map(torch.equal, third, second))
    assert max(float((a - b).abs().max()) for a, b in zip(second, base, strict=True)) > 1e-3


def test_a_half_precision_reference_moves_in_whole_precision(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    model, processor = load_model(str(mini_model.path))
    trainer = MovingReferenceTrainer(
        model=model.to(torch.bfloat16),
        reward_funcs=[reward],
        args=grpo_config(tmp_path, sync_ref_model=True),
        train_dataset=rl_rows(splits["counting"]["train"], PROMPT, processor),
        processing_class=processor,
    )
    assert {weight.dtype for weight in trainer.ref_model.parameters()} == {torch.float32}
