"""GRPO that is guarded against rewards, a KL and completions that go wrong; see ``health``."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from concurrent.futures import Future, wait
from threading import Thread
from typing import Any

import torch
from accelerate.utils import gather_object
from trl import GRPOTrainer
from trl.trainer.utils import nanstd

from othink_pipeline.training.guard import MAX_KL_EXPONENT, Guarded

logger = logging.getLogger(__name__)


class GuardedRL(Guarded, GRPOTrainer):
    """GRPO that is also guarded against rewards, a KL and completions that go wrong.

    Mixed in first: ``class GuardedGRPO(GuardedRL, DynamicKLTrainer)``. The KL's exponent is bounded
    by ``MAX_KL_EXPONENT``, so that the loss stays finite. Reward functions run in a thread: they
    may not count on being in the main one, and one that hangs is left behind there. One that never
    lets go of the interpreter, as a regular expression may, cannot be timed out. Rewards that
    failed are NaN, and to TRL no part of the sum.
    """

    _buffered_inputs: Any
    num_generations: Any  # typed too widely where it is inherited from

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._unscored = False  # the generation batch lacks rewards
        self._exponent = 0.0
        self._level = 0.0  # share of the latest groups whose rewards are all equal

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
        self._level = self._level_share(rewards)
        return rewards

    def _level_share(self, rewards: torch.Tensor) -> float:
        """Share of groups without a deviation; ``rewards``: of all processes, [R x functions]."""
        sums = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
        sums[rewards.isnan().all(dim=1)] = math.nan
        deviations = nanstd(sums.view(-1, self.num_generations), dim=1)
        return float(deviations.isclose(torch.zeros_like(deviations)).float().mean())

    def _guard(self, function: Any, name: str, faults: list[tuple[str, str]]) -> Any:
        """The reward function as one that returns NaN and adds to ``faults`` where it fails."""
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
        metrics = self._metrics["train"]  # TRL's figures are of all processes
        # Where advantages are scaled by the batch's deviation TRL looks at that one alone.
        metrics["frac_reward_zero_std"][-1] = self._level
        self.monitor.generated(
            self._level,
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
        inputs = dict(inputs)  # a copy: the KL is bounded in it
        compute = self._get_per_token_logps_and_entropies
        self._exponent = 0.0

        def compute_and_bound(*args: Any, **kwargs: Any) -> Any:
            """TRL reads the reference in its loss after this: the place to bound it."""
            computed: Any = compute(*args, **kwargs)
            if inputs.get("ref_per_token_logps") is not None:
                policy, reference = computed[0].detach(), inputs["ref_per_token_logps"]  # [R x C]
                mask = inputs["completion_mask"]
                self._exponent = float(((reference - policy) * (mask > 0)).nan_to_num(0.0).max())
                inputs["ref_per_token_logps"] = torch.minimum(reference, policy + MAX_KL_EXPONENT)
            return computed

        self._get_per_token_logps_and_entropies = compute_and_bound  # type: ignore[method-assign]
        try:
            return super()._guarded_loss(model, inputs, num_items)
        finally:
            del self._get_per_token_logps_and_entropies  # the method again

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
