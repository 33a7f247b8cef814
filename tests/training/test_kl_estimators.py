"""Three estimators of the KL: their values, their gradients, and TRL's loss around them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from othink_pipeline.models.load import load_model
from othink_pipeline.training import kl_estimators
from othink_pipeline.training.kl_estimators import Estimator, KLEstimatorTrainer, estimate
from othink_pipeline.training.rewards import accuracy_reward
from othink_pipeline.training.rows import rl_rows
from tests.conftest import PROMPT, MiniModel, grpo_config

Splits = Mapping[str, Mapping[str, Any]]
WEIGHT = 0.3


def test_values_by_hand() -> None:
    policy, reference = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.5])  # d = -2, 0.5
    assert estimate("k1", policy, reference).tolist() == [2.0, -0.5]
    assert estimate("k2", policy, reference).tolist() == [2.0, 0.125]
    assert estimate("k3", policy, reference).tolist() == pytest.approx([1.13534, 0.14872], abs=1e-5)


def mean_gradient(estimator: Estimator, times_ratio: bool) -> torch.Tensor:
    """Exactly, over a vocabulary of four: each token as often as the policy samples it."""
    logits = LOGITS.clone().requires_grad_()
    policy = logits.log_softmax(0)
    value = estimate(estimator, policy, REFERENCE)
    if times_ratio:
        value = value * torch.exp(policy - policy.detach())
    (gradient,) = torch.autograd.grad((policy.detach().exp() * value).sum(), logits)
    return gradient


LOGITS = torch.tensor([1.0, 0.0, -1.0, 0.5], dtype=torch.float64)
REFERENCE = torch.tensor([0.2, 0.9, -0.3, -1.0], dtype=torch.float64).log_softmax(0)


def test_what_each_estimators_gradient_is_of() -> None:
    logits = LOGITS.clone().requires_grad_()
    policy = logits.log_softmax(0)
    kl = (policy.exp() * (policy - REFERENCE)).sum()
    other_way = (REFERENCE.exp() * (REFERENCE - policy)).sum()
    (of_kl,) = torch.autograd.grad(kl, logits, retain_graph=True)
    (of_other_way,) = torch.autograd.grad(other_way, logits, retain_graph=True)
    second_order = (policy.exp() * (REFERENCE - policy).square() / 2).sum()
    (of_second_order,) = torch.autograd.grad(second_order, logits)
    cases: tuple[tuple[Estimator, bool, torch.Tensor], ...] = (
        ("k1", False, torch.zeros_like(of_kl)),
        ("k1", True, of_kl),
        ("k2", False, of_kl),
        ("k2", True, of_second_order),
        ("k3", False, of_other_way),
        ("k3", True, of_kl),
    )
    for estimator, times_ratio, expected in cases:
        assert torch.allclose(mean_gradient(estimator, times_ratio), expected, atol=1e-12)
    assert not torch.allclose(of_kl, of_other_way, atol=1e-2)
    assert not torch.allclose(of_kl, of_second_order, atol=1e-2)


class Comparing(KLEstimatorTrainer):
    """In its first loss, every loss that there is: ours beside TRL's, on the same completions."""

    compared: int = 0

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        if not self.compared:
            torch.manual_seed(5)
            reference = inputs["ref_per_token_logps"]
            other = {"ref_per_token_logps": reference + 0.5 * torch.randn_like(reference)}
            sampled = {"old_per_token_logps": reference + 0.2 * torch.randn_like(reference)}
            ratios: Any = (("token", {}), ("token", sampled), ("sequence", sampled))
            kinds = product(("grpo", "bnpo", "dr_grpo", "dapo"), (True, False), ratios)
            for self.loss_type, corrected, (level, old) in kinds:
                if corrected and level == "sequence":
                    continue  # refused
                self.args.use_bias_correction_kl = corrected
                self.importance_sampling_level = level
                self._compare(model, {**inputs, **other, **old})
                self.compared += 1
            self._by_hand(model, {**inputs, **other, "old_per_token_logps": reference})
        return super()._compute_loss(model, inputs)

    def _loss(
        self, estimator: Estimator, model: Any, inputs: dict[str, Any]
    ) -> tuple[torch.Tensor, float]:
        """And the KL that is measured."""
        self.kl_estimator = estimator
        loss = super()._compute_loss(model, inputs)
        self.kl_estimator = "k3"
        return loss, self._metrics["train"]["kl"][-1]

    def _compare(self, model: Any, inputs: dict[str, Any]) -> None:
        """TRL's own estimator, the way that the others go."""
        stock, kl = self._loss("k3", model, inputs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kl_estimators, "estimate", lambda _, *both: estimate("k3", *both))
            ours, measured = self._loss("k2", model, inputs)
        torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-7)
        assert measured == pytest.approx(kl, rel=1e-5) and kl > 0.01
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        gradients = [torch.autograd.grad(loss, weights) for loss in (ours, stock)]
        largest = max(float(gradient.abs().max()) for gradient in gradients[1])
        for mine, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5 * largest)

    def _by_hand(self, model: Any, inputs: dict[str, Any]) -> None:
        """The two that TRL has not; k3 is what is measured."""
        self.loss_type, self.importance_sampling_level = "grpo", "token"
        mask, policy = inputs["completion_mask"], inputs["old_per_token_logps"]
        moved = policy - inputs["ref_per_token_logps"]
        for estimator, corrected, kl in (("k1", True, moved), ("k2", False, moved**2 / 2)):
            self.args.use_bias_correction_kl = corrected
            loss, measured = self._loss(estimator, model, inputs)  # type: ignore[arg-type]
            assert measured == pytest.approx(self._loss("k3", model, inputs)[1], rel=1e-5)
            self.beta = 0.0
            without, _ = self._loss(estimator, model, inputs)  # type: ignore[arg-type]
            self.beta = WEIGHT
            rows = [row[seen.bool()].mean() for row, seen in zip(kl, mask, strict=True)]
            expected = WEIGHT * float(torch.stack(rows).mean()) / 2  # of two micro-batches
            assert (loss - without).item() == pytest.approx(expected, rel=1e-4)


def test_the_loss_around_an_estimator_is_trls(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    """All types of losses, ratios and corrections, on one batch of completions."""
    model, processor = load_model(str(mini_model.path))
    settings = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    trainer = Comparing(
        model=model,
        reward_funcs=[accuracy_reward],
        args=grpo_config(tmp_path, max_steps=1, beta=WEIGHT, **settings),
        train_dataset=rl_rows(splits["counting"]["train"], PROMPT, processor),
        processing_class=processor,
    )
    trainer.train()
    assert trainer.compared == 4 * (2 * 3 - 1)
