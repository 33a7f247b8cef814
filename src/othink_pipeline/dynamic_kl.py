"""GRPO whose KL weight is set anew for every update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from othink_pipeline.grpo import SharedPromptTrainer
from othink_pipeline.kl import KLController, KLSchedule


class DynamicKLTrainer(SharedPromptTrainer):
    """GRPO whose KL weight follows a schedule.

    TRL reads its weight (``beta``) in every loss, so it is enough to set it there: once an update,
    after its completions were scored and before its first loss. The weight that was applied is
    logged as ``kl_weight``. Checkpoints hold the controller's state. The first of the reward
    functions is the accuracy that a schedule may go by.
    """

    STATE_FILE = "kl_controller.json"

    def __init__(self, *args: Any, kl: KLSchedule, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._controller = KLController(kl, self.args.max_steps)
        self._weighted_update: int | None = None  # the update that `beta` was last set for
        self._accuracy = float("nan")  # of the completions that are learnt from

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        rewards: torch.Tensor = super()._calculate_rewards(*args)  # [all processes' rows x rewards]
        self._accuracy = rewards[:, 0].mean().item()
        return rewards

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        if not model.training:
            raise ValueError("the KL weight is set in training: TRL's own evaluation has none")
        metrics = self._metrics["train"]
        if self._weighted_update != self.state.global_step:
            self._weighted_update = self.state.global_step
            self.beta = self._controller.next_weight(self._weighted_update, self._accuracy)
        metrics["kl_weight"].append(self.beta)
        loss = super()._compute_loss(model, inputs)
        self._controller.measured(metrics["kl"][-1])  # TRL's mean over all processes
        return loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load weights by the names that they were saved under.

        Transformers saves Qwen2-VL's under the names of the hub's checkpoints, and on resuming
        looks for those of the module: it finds none, warns, and goes on from the base model.
        """
        model = model or self.model
        if not isinstance(model, PreTrainedModel):  # an adapter: PEFT knows its names
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(resume_from_checkpoint, local_files_only=True)
        model.load_state_dict(saved.state_dict())

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            Path(output_dir, self.STATE_FILE).write_text(json.dumps(self._controller.state()))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[no-untyped-call]
        if checkpoint is not None:
            self._controller.restore(json.loads(Path(checkpoint, self.STATE_FILE).read_text()))
