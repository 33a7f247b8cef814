"""Numbers that go wrong in a training: found before they reach a weight, named, and acted on.

A fault's policy (``parameters.Health``) is to stop the training, to skip the batch or to go on. To
skip means: the update changes no weight, whichever of its micro-batches had the fault, for part of
an update would be another, weaker update. Its gradients are dropped, its loss in the logs is 0, and
the learning-rate schedule moves on. With several processes the figures are gathered before anything
is decided, so that all of them do the same.

Updates count from 1, as in the logs.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from threading import Thread
from typing import TYPE_CHECKING, Any

import click
import torch
from accelerate.utils import gather_object
from transformers import Trainer
from trl import GRPOTrainer
from trl.trainer.utils import is_async_callable

if TYPE_CHECKING:
    from othink_pipeline.parameters import Health

logger = logging.getLogger(__name__)

Report = Callable[[str, int, str], None]
"""Told a fault's name, the update and the figures, the first time that the fault is there."""

MAX_KL_EXPONENT = 20.0
"""Bound of ``reference - policy`` in TRL's KL, ``exp(x) - x - 1``: float32 overflows at 88, and at
20 one token weighs as much as 5e8 others."""

REMEDIES = {
    "loss_not_finite": "a lower learning_rate or max_grad_norm",
    "gradient_not_finite": "a lower learning_rate or max_grad_norm",
    "kl_overflow": "a lower learning_rate, or a higher KL weight early on",
    "reward_failed": "mend the reward function: the log has its traceback",
    "reward_timeout": "mend the reward function, or raise health.reward_timeout_s",
    "no_advantage": "rewards that differ within a group: another temperature, more completions",
    "endless_completions": "more max_completion_tokens, or a higher KL weight",
    "format_collapse": "a lower learning_rate, a higher KL weight or rewards.format",
}
"""What may help against each fault."""


class TrainingFault(click.ClickException):
    """A fault that ended a training: shown without a traceback, exit code 1."""


class Monitor:
    """Counts faults, reports each at its first time, and says what its policy asks for.

    Attributes:
        counts: how often there was each fault.
        skipped: updates that changed no weight.
    """

    def __init__(self, health: Health, report: Report) -> None:
        self.health, self.report = health, report
        self.counts: Counter[str] = Counter()
        self.skipped = 0
        self._lasting: Counter[str] = Counter()  # updates in a row, up to the latest
        self._skipped_last = 0  # the latest skipped update, and how many in a row it ended
        self._skipped_in_a_row = 0
        self._format_learnt = False
        self._signs: list[tuple[float, float, float | None]] = []
        self._signs_update = 0  # in which these were generated

    def tell(self, update: int, faults: Mapping[str, str]) -> bool:
        """Count faults, with their figures; True when the batch is to be skipped.

        Raises:
            TrainingFault: a fault's policy is to stop, or more than ``patience_updates`` in a row
                are skipped.
        """
        for fault, detail in faults.items():
            self.counts[fault] += 1
            if self.counts[fault] == 1:
                self.report(fault, update, detail)
        policies = {fault: getattr(self.health, fault) for fault in faults}
        for fault, policy in policies.items():
            if policy == "stop":
                raise TrainingFault(
                    f"update {update}: {fault}: {faults[fault]}. What may help: {REMEDIES[fault]}. "
                    f"health.{fault}: skip_batch or go_on would not stop here."
                )
        skipping = "skip_batch" in policies.values()
        if skipping and update != self._skipped_last:
            in_a_row = update == self._skipped_last + 1
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if in_a_row else 1
            self._skipped_last = update
            self.skipped += 1
            if self._skipped_in_a_row > self.health.patience_updates:
                told = "; ".join(f"{fault}: {detail}" for fault, detail in faults.items())
                raise TrainingFault(
                    f"update {update}: {self._skipped_in_a_row} updates in a row were skipped, "
                    f"more than health.patience_updates = {self.health.patience_updates}: nothing "
                    f"is learnt any more. The last: {told}. What may help: "
                    + "; ".join(REMEDIES[fault] for fault in faults)
                )
        return skipping

    def generated(self, update: int, level: float, clipped: float, formatted: float | None) -> None:
        """Take note of a generation batch: there may be several for an update, or one for several.

        Args:
            level: share of groups whose rewards are all equal.
            clipped: share of completions that reached the most tokens.
            formatted: mean format reward, where there is one.
        """
        if update != self._signs_update:
            self._signs_update, self._signs = update, []
        self._signs.append((level, clipped, formatted))

    def watch(self, update: int) -> bool:
        """Look for faults that last, once an update; True when the batch is to be skipped.

        Raises:
            TrainingFault: as ``tell``.
        """
        level, clipped, formatted = (_mean(figures) for figures in zip(*self._signs, strict=True))
        health = self.health
        signs = {}
        if level == 1:
            signs["no_advantage"] = "all rewards are equal in every group"
        if clipped >= health.endless_share:
            signs["endless_completions"] = f"{clipped:.0%} of the completions did not end"
        if formatted is not None:
            self._format_learnt |= formatted >= health.format_learnt
            if self._format_learnt and formatted < health.format_lost:
                signs["format_collapse"] = (
                    f"mean format reward {formatted:.2f}, once at least {health.format_learnt}"
                )
        self._lasting = Counter({sign: self._lasting[sign] + 1 for sign in signs})
        return self.tell(
            update,
            {
                sign: f"{detail}, in {self._lasting[sign]} updates in a row"
                for sign, detail in signs.items()
                if self._lasting[sign] >= health.patience_updates
            },
        )

    def state(self) -> dict[str, Any]:
        """All that changes, fit for JSON."""
        return {
            "counts": dict(self.counts),
            "skipped": self.skipped,
            "lasting": dict(self._lasting),
            "skipped_last": self._skipped_last,
            "skipped_in_a_row": self._skipped_in_a_row,
            "format_learnt": self._format_learnt,
            "signs": list(self._signs),
            "signs_update": self._signs_update,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self.counts, self.skipped = Counter(state["counts"]), state["skipped"]
        self._lasting = Counter(state["lasting"])
        self._skipped_last = state["skipped_last"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self._format_learnt = state["format_learnt"]
        self._signs = [tuple(figures) for figures in state["signs"]]
        self._signs_update = state["signs_update"]


class Guarded(Trainer):
    """A trainer whose loss and gradient are looked at before they are used.

    Mixed in first: ``class GuardedSFT(Guarded, SFTTrainer)``. Where an update was skipped, the
    metric ``skipped_batches`` is how many were until then.

    Args:
        health: the policies.
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
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
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
                f"a token is exp({max(exponents):.3g}) times as likely to the base model as to the "
                f"policy; beyond exp({MAX_KL_EXPONENT:.0f}) the KL overflows"
            )
        return self.monitor.tell(self._update, faults)

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)  # type: ignore[no-untyped-call]
        # With fp16 an overflow is everyday life: its scaler skips the step.
        if self.accelerator.scaler is None and not math.isfinite(norm):
            fault = {"gradient_not_finite": f"gradient norm {float(norm)}"}
            self._skip_if(self.monitor.tell(self._update, fault))
        return norm


class GuardedRL(Guarded, GRPOTrainer):
    """GRPO that is also guarded against rewards, a KL and completions that go wrong.

    Mixed in first: ``class GuardedGRPO(GuardedRL, DynamicKLTrainer)``. The KL's exponent is bounded
    by ``MAX_KL_EXPONENT``, so that the loss stays finite. Reward functions (no reward models, and
    no coroutines) run in a thread: they may not count on being in the main one, and one that hangs
    is left behind there. One that never lets go of the interpreter, as a regular expression may,
    cannot be timed out. Rewards that failed are NaN, and to TRL no part of the sum.
    """

    _buffered_inputs: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unscored = False  # the generation batch lacks rewards
        self._loss_inputs: dict[str, Any] | None = None  # while a loss is computed
        self._exponent = 0.0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-batch; completions without rewards do not outlive their update."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self._unscored and self.accelerator.sync_gradients:
            self._buffered_inputs, self._unscored = None, False
        return loss

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        faults: list[tuple[str, str]] = []
        functions = self.reward_funcs
        self.reward_funcs = [
            self._guard(function, name, faults)
            for function, name in zip(functions, self.reward_func_names, strict=True)
        ]
        try:
            rewards: torch.Tensor = super()._calculate_rewards(*args)
        finally:
            self.reward_funcs = functions
        found: dict[str, str] = {}
        for fault, detail in gather_object(faults):
            found.setdefault(fault, detail)
        self._unscored = self._skip_if(self.monitor.tell(self._update, found))
        return rewards

    def _guard(self, function: Any, name: str, faults: list[tuple[str, str]]) -> Any:
        """The reward function as one that returns NaN and adds to ``faults`` where it fails."""
        if isinstance(function, torch.nn.Module) or is_async_callable(function):
            return function
        seconds = self.monitor.health.reward_timeout_s

        def guarded(**columns: Any) -> list[float]:
            rows = len(columns["prompts"])
            answer = _answer_of(lambda: _checked(function(**columns), rows))
            if not wait([answer], seconds).done:
                faults.append(("reward_timeout", f"{name} did not return within {seconds:g} s"))
            elif (error := answer.exception()) is None:
                return answer.result()
            elif isinstance(error, Exception):
                logger.error("The reward function %s failed", name, exc_info=error)
                faults.append(("reward_failed", f"{name}: {type(error).__name__}: {error}"))
            else:
                raise error
            return [math.nan] * rows

        return guarded

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.model.training:
            metrics = self._metrics["train"]  # TRL's figures are of all processes
            self.monitor.generated(
                self._update,
                metrics["frac_reward_zero_std"][-1],
                metrics["completions/clipped_ratio"][-1],
                metrics["rewards/format_reward/mean"][-1]
                if "format_reward" in self.reward_func_names
                else None,
            )
        return batch

    def _is_faulty(self, loss: torch.Tensor) -> bool:
        faulty = super()._is_faulty(loss)
        if faulty or not self.accelerator.sync_gradients:
            return faulty
        return self.monitor.watch(self._update)

    def _guarded_loss(self, model: Any, inputs: dict[str, Any], num_items: Any) -> torch.Tensor:
        self._loss_inputs, self._exponent = dict(inputs), 0.0  # a copy: the KL is bounded in it
        try:
            return super()._guarded_loss(model, self._loss_inputs, num_items)
        finally:
            self._loss_inputs = None

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """TRL reads the reference in its loss after this: the place to bound it."""
        computed: Any = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        inputs = self._loss_inputs
        if inputs is not None and inputs.get("ref_per_token_logps") is not None:
            policy, reference = computed[0].detach(), inputs["ref_per_token_logps"]  # [R x C]
            mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
            self._exponent = float(((reference - policy) * (mask > 0)).nan_to_num(0.0).max())
            inputs["ref_per_token_logps"] = torch.minimum(reference, policy + MAX_KL_EXPONENT)
        return computed

    def _kl_exponent(self) -> float:
        return self._exponent

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log what is known: for the mean of nothing but NaN TRL would log None."""
        for name, values in list(self._metrics["train"].items()):
            if all(map(math.isnan, values)):
                del self._metrics["train"][name]
        super().log(logs, start_time)


def _answer_of(call: Callable[[], list[float]]) -> Future[list[float]]:
    """What the call comes to, in a thread that nobody has to wait for, not even at the exit."""
    answer: Future[list[float]] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # else nobody would ever hear of it
            answer.set_exception(error)

    Thread(target=run, daemon=True, name="reward").start()
    return answer


def _checked(rewards: Any, rows: int) -> list[float]:
    """One reward for each row, NaN for None.

    Raises:
        ValueError: another number of them, or one that is infinite.
    """
    values = [math.nan if reward is None else float(reward) for reward in rewards]
    if len(values) != rows:
        raise ValueError(f"returned {len(values)} rewards for {rows} completions")
    if any(map(math.isinf, values)):
        raise ValueError("returned an infinite reward")
    return values


def _mean(figures: Sequence[Any]) -> Any:
    return None if None in figures else sum(figures) / len(figures)


def _listed(losses: list[float]) -> str:
    return ", ".join(f"{loss:g}" for loss in losses)


def _tell_nobody(*_: Any) -> None:
    """For all processes but the main one."""
