"""A trainer whose loss and gradient are looked at before they are used; see ``health``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from othink_pipeline.training.health import Monitor, Report

if TYPE_CHECKING:
    from othink_pipeline.training.parameters import Health

MAX_KL_EXPONENT = 20.0
"""Bound of ``reference - policy`` in TRL's KL, ``exp(x) - x - 1``: float32 overflows at 88, and at
20 one token weighs as much as 5e8 others."""


class Guarded(Trainer):
    """A trainer whose loss and gradient are looked at before they are used.

    Mixed in first: ``class GuardedSFT(Guarded, SFTTrainer)``. Where an update was skipped, the
    metric ``skipped_batches`` is how many were until then.

    Args:
        report: called on the main process alone.
    """

    # Typed too narrowly, or not at all, where they are inherited from.
    model: Any
    _metrics: Any

    def __init__(self, *args: Any, health: Health, report: Report, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        told = report if self.is_world_process_zero() else _tell_nobody
        self.monitor = Monitor(health, told)
        self._update_to_skip: int | None = None

    @property
    def _update(self) -> int:
        return int(self.state.global_step) + 1

    def _skip_if(self, asked: bool) -> bool:
        """Drop this update's gradients where that is asked for."""
        if asked:
            self._update_to_skip = self._update
            self.model.zero_grad()
            self._metrics["train"]["skipped_batches"] = [float(self.monitor.skipped)]
        return asked

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss; in an update that is skipped a zero that no weight has a part in."""
        if self._update_to_skip != self._update:
            loss = self._guarded_loss(model, inputs, num_items_in_batch)
            if not self._skip_if(self._is_faulty(loss)):
                return loss
        return torch.zeros((), device=self.accelerator.device, requires_grad=True)

    def _guarded_loss(self, model: Any, inputs: dict[str, Any], num_items: Any) -> torch.Tensor:
        compute: Any = super().compute_loss  # typed as one that may return outputs, too
        loss: torch.Tensor = compute(model, inputs, num_items_in_batch=num_items)
        return loss

    def _kl_exponent(self) -> float:
        """The largest in the latest loss of this process; SFT has none."""
        return 0.0

    def _is_faulty(self, loss: torch.Tensor) -> bool:
        """Whether the loss asks for its update to be skipped."""
        own = torch.stack([loss.detach().float(), loss.new_tensor(self._kl_exponent()).float()])
        losses, exponents = self.accelerator.gather(own).view(-1, 2).T.tolist()
        faults = {}
        if not all(map(math.isfinite, losses)):
            faults["loss_not_finite"] = f"loss {_listed(losses)}"
        if max(exponents) > MAX_KL_EXPONENT:
            faults["kl_overflow"] = (
                f"a token is exp({max(exponents):.3g}) times as likely to the reference as to the "
                f"policy; beyond exp({MAX_KL_EXPONENT:.0f}) the KL overflows"
            )
        return self.monitor.tell(self._update, faults)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        if not math.isfinite(norm):
            fault = {"gradient_not_finite": f"gradient norm {float(norm)}"}
            self._skip_if(self.monitor.tell(self._update, fault))
        return norm


def _listed(losses: list[float]) -> str:
    return ", ".join(f"{loss:g}" for loss in losses)


def _tell_nobody(*_: Any) -> None:
    """For all processes but the main one."""
