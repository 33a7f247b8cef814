"""Numbers that go wrong in a training: found before they reach a weight, named, and acted on.

One alone is found later: a gradient that is not finite, where DeepSpeed computes and applies it in
one step.

A fault's policy (``parameters.Health``) is to stop the training, to skip the batch or to go on. To
skip means: the update changes no weight, whichever of its micro-batches had the fault, for part of
an update would be another, weaker update. Its gradients are dropped, its loss in the logs is 0, and
the learning-rate schedule moves on. With several processes the figures are gathered before anything
is decided, so that all of them do the same.

Updates count from 1, as in the logs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import click

from othink_pipeline.core.blocks import ConfigurationError

if TYPE_CHECKING:
    from othink_pipeline.training.parameters import Health

Report = Callable[[str, int, str], None]
"""Told a fault's name, the update and the figures, the first time that the fault is there."""

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


THRESHOLDS = {
    "reward_timeout": ("reward_timeout_s",),
    "no_advantage": ("patience_updates",),
    "endless_completions": ("patience_updates", "endless_share"),
    "format_collapse": ("patience_updates", "format_learnt", "format_lost"),
}
"""From which figures on something is each of RL's faults."""
LOOSER: dict[str, Callable[[Any, Any], Any]] = {
    "reward_timeout_s": max,
    "patience_updates": max,
    "endless_share": max,
    "format_learnt": max,
    "format_lost": min,
}
"""Threshold -> which of two values is the looser one."""


def find_change(
    then: Mapping[str, Any], now: Health, counted: Collection[str], rewarded: bool
) -> str | None:
    """The key of ``health`` by which a training would now become another; None: there is none.

    What occurred must have its policy and its thresholds as then. What did not occur might have
    under stricter thresholds, so none may be stricter.

    Args:
        then: the policies that it was made with, or what is known of them.
        counted: the faults that occurred in it.
        rewarded: it is RL; supervised fine-tuning has no faults with thresholds.
    """
    for fault in counted:
        for key in (fault, *THRESHOLDS.get(fault, ())):
            if then.get(key) != getattr(now, key):
                return key
    # Any fault's updates in a row may be skipped.
    for key in LOOSER if rewarded else ("patience_updates",) if counted else ():
        value = getattr(now, key)
        if key not in then or LOOSER[key](then[key], value) != value:
            return key
    return None


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
        self._signs: tuple[float, float, float | None] | None = None  # of the latest completions

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

    def generated(self, level: float, clipped: float, formatted: float | None) -> None:
        """Take note of an update's completions, which later ones may learn from, too.

        Args:
            level: share of groups whose rewards are all equal.
            clipped: share of completions that reached the most tokens.
            formatted: mean format reward, where there is one.
        """
        self._signs = level, clipped, formatted

    def watch(self, update: int) -> bool:
        """Look for faults that last, once an update; True when the batch is to be skipped.

        Raises:
            TrainingFault: as ``tell``.
        """
        assert self._signs is not None
        level, clipped, formatted = self._signs
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
            "health": self.health.model_dump(),
            "counts": dict(self.counts),
            "skipped": self.skipped,
            "lasting": dict(self._lasting),
            "skipped_last": self._skipped_last,
            "skipped_in_a_row": self._skipped_in_a_row,
            "format_learnt": self._format_learnt,
            "signs": self._signs,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``.

        Raises:
            ConfigurationError: a training that began so would have come elsewhere until here.
        """
        then, rewarded = state["health"], state["signs"] is not None
        if key := find_change(then, self.health, state["counts"], rewarded):
            raise ConfigurationError(
                f"health.{key} = {getattr(self.health, key)!r}, and this training was interrupted "
                f"under {then[key]!r}: it would be neither one nor the other. Set it back to go "
                "on, or begin anew: --params=compute.fresh=true"
            )
        self.counts, self.skipped = Counter(state["counts"]), state["skipped"]
        self._lasting = Counter(state["lasting"])
        self._skipped_last = state["skipped_last"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self._format_learnt = state["format_learnt"]
        self._signs = tuple(state["signs"]) if rewarded else None
