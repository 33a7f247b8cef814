"""GRPO whose KL weight is set anew for every update."""

from __future__ import annotations

import math
from typing import Any

import torch

from othink_pipeline.training.kl import KLController, KLSchedule
from othink_pipeline.training.kl_estimators import KLEstimatorTrainer


class DynamicKLTrainer(KLEstimatorTrainer):
    """GRPO whose KL weight follows a schedule.

    TRL reads its weight (``beta``) in every loss, so it is enough to set it there: once an update,
    after its completions were scored and before its first loss. The weight that was applied is
    logged as ``kl_weight``. The first of the reward functions is the accuracy that a schedule may
    go by.
    """

    _accuracy = 0.0  # of the completions that are learnt from

    def __init__(self, *args: Any, kl: KLSchedule, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._controller = self.parts["kl"] = KLController(kl, self.args.max_steps)
        self._weighted_update: int | None = None  # the update that `beta` was last set for

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        rewards: torch.Tensor = super()._calculate_rewards(*args)  # [all processes' rows x rewards]
        # NaN: rewards that failed. Where all did, the accuracy before (at first 0) is a guess.
        accuracy = rewards[:, 0].nanmean().item()
        self._accuracy = self._accuracy if math.isnan(accuracy) else accuracy
        return rewards

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        metrics = self._metrics["train"]
        if self._weighted_update != self.state.global_step:
            self._weighted_update = self.state.global_step
            self.beta = self._controller.next_weight(self._weighted_update, self._accuracy)
        metrics["kl_weight"].append(self.beta)
        loss = super()._compute_loss(model, inputs)
        kl = metrics["kl"][-1]  # TRL's mean over all processes
        if math.isfinite(kl):
            self._controller.measured(kl)
        return loss

    def _own_state(self) -> dict[str, Any]:
        # Completions of this accuracy may serve several updates.
        return {**super()._own_state(), "accuracy": self._accuracy}

    def _restore_own_state(self, state: dict[str, Any]) -> None:
        super()._restore_own_state(state)
        self._accuracy = state["accuracy"]
