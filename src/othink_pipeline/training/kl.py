"""KL weights: how strongly RL is held to the base model, at every update.

GRPO holds the weight constant. GRPO-D (OThink-MR1, arXiv 2503.16081) makes it dynamic: weaker and
weaker while the policy explores, then stronger and stronger (``ExploreExploit``). The other shapes
are there to be compared.

A *schedule* is a pure function: what is known when an update's completions have been scored, and
the weight before, go in; the weight comes out. The *controller* carries one through a training.

What is *applied* has a floor above zero, which a weight of 0 stands for: with zero TRL neither
loads the reference model nor computes its log-probabilities, and a later positive weight fails.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from othink_pipeline.core.blocks import Block

FLOOR, CEILING = 1e-6, 1e3
"""Weights that are applied. At the floor the KL term is nothing beside advantages of about 1."""


def _check_floor(weight: float) -> float:
    if 0 < weight < FLOOR:
        raise ValueError(f"must be {FLOOR:g} to {CEILING:g}, or 0, which stands for {FLOOR:g}")
    return weight


KLWeight = Annotated[float, Field(ge=0, le=CEILING), AfterValidator(_check_floor)]
PositiveKLWeight = Annotated[float, Field(ge=FLOOR, le=CEILING)]
"""Of schedules that multiply: from 0 they would never rise."""

MAX_ERROR = 0.2
"""PPO's bound on the relative error that one update may correct (arXiv 1909.08593, section 2.2)."""


class Seen(NamedTuple):
    """What is known when an update's completions have been scored and its loss has not been taken.

    All numbers are means over every process, so that every process arrives at the same weight.
    """

    progress: float
    """0 in the first update, 1 in the last, in equal steps."""
    accuracy: float
    """Mean accuracy reward, in [0, 1], of the generation batch that this update learns from: its
    own completions, unless TRL is told to generate for several updates at once."""
    kl: float | None
    """Mean KL per token to the reference, of the latest update that had a loss (one that is skipped
    for its rewards has none); None before any, and where that one's was no finite number."""


class Schedule(Block):
    """A rule for the weight of the next update."""

    @abstractmethod
    def next_weight(self, seen: Seen, previous: float | None) -> float:
        """The weight of an update, given that of the update before (None in the first)."""

    def describe(self, updates: int) -> str:
        """The weights of a training of ``updates`` optimizer steps, in words."""
        controller = KLController(self, updates)
        weights = [controller.next_weight(update, accuracy=0.0) for update in range(updates)]
        if min(weights) == max(weights):
            return f"{weights[0]:.4g}"
        return (
            f"{weights[0]:.4g} first, {min(weights):.4g} least, {weights[-1]:.4g} last, "
            f"{sum(weights) / updates:.4g} on average"
        )


class Constant(Schedule):
    """The same weight at every update: GRPO."""

    schedule: Literal["constant"]
    weight: KLWeight
    """Of every update."""

    def next_weight(self, seen: Seen, previous: float | None) -> float:
        """``weight``."""
        return self.weight


class ExploreExploit(Schedule):
    """Early exploration, late exploitation: GRPO-D, equation 3 of OThink-MR1 (arXiv 2503.16081).

    At step s of t the paper's weight is, with mid = (low + high) / 2 and w the steps that explore,
    ``mid - (mid - low) s / w`` up to w and ``low + (high - low) (s - w) / (t - w)`` after it: from
    the middle down to ``low``, then up to ``high``. Here s / t is the progress, and w / t is
    ``explore_share``, 0.3 in the paper. Both fractions are damaged in the text that could be had;
    this reading is the one that is continuous at w and ends at ``high``, and it agrees with the
    paper's words ("reducing beta in the early stage", "later increasing").
    """

    schedule: Literal["explore_exploit"]
    low: KLWeight
    """The least weight, where exploring ends."""
    high: KLWeight
    """The weight of the last update."""
    explore_share: Annotated[float, Field(gt=0, lt=1)]
    """Share of the updates in which the weight falls."""

    @model_validator(mode="after")
    def _check_bounds(self) -> ExploreExploit:
        if self.low > self.high:
            raise ValueError(f"low <= high is asked, got low = {self.low}, high = {self.high}")
        return self

    def next_weight(self, seen: Seen, previous: float | None) -> float:
        """The middle at progress 0, ``low`` at ``explore_share``, ``high`` at 1; straight between.

        No update need stand at ``explore_share`` itself: the least weight may be above ``low``.
        """
        if seen.progress <= self.explore_share:
            middle = (self.low + self.high) / 2
            return middle - (middle - self.low) * seen.progress / self.explore_share
        rise = (seen.progress - self.explore_share) / (1 - self.explore_share)
        return self.low + (self.high - self.low) * rise


class Linear(Schedule):
    """From ``start`` in the first update to ``end`` in the last, in equal steps."""

    schedule: Literal["linear"]
    start: KLWeight
    """The weight of the first update."""
    end: KLWeight
    """The weight of the last update."""

    def next_weight(self, seen: Seen, previous: float | None) -> float:
        """``start + progress (end - start)``."""
        return self.start + seen.progress * (self.end - self.start)


class Cosine(Schedule):
    """From ``start`` to ``end`` along half a cosine: slow, quick in the middle, slow.

    It may fall as well: STILL-3 goes from 1e-3 to 0.
    """

    schedule: Literal["cosine"]
    start: KLWeight
    """The weight of the first update."""
    end: KLWeight
    """The weight of the last update."""

    def next_weight(self, seen: Seen, previous: float | None) -> float:
        """``start + (1 - cos(pi progress)) / 2 (end - start)``."""
        return self.start + (1 - math.cos(math.pi * seen.progress)) / 2 * (self.end - self.start)


class Exponential(Schedule):
    """From ``start`` to ``end`` by the same factor at every update."""

    schedule: Literal["exponential"]
    start: PositiveKLWeight
    """The weight of the first update."""
    end: PositiveKLWeight
    """The weight of the last update."""

    def next_weight(self, seen: Seen, previous: float | None) -> float:
        """``start (end / start)^progress``."""
        return self.start * math.pow(self.end / self.start, seen.progress)


class Step(Schedule):
    """One weight after the other, each for an equal part of the training."""

    schedule: Literal["step"]
    weights: Annotated[tuple[KLWeight, ...], Field(min_length=2, strict=False)]
    """In their order."""

    def next_weight(self, seen: Seen, previous: float | None) -> float:
        """The first weight from progress 0 on, the last up to progress 1."""
        parts = len(self.weights)
        return self.weights[min(int(seen.progress * parts), parts - 1)]


class Adaptive(Schedule):
    """Towards a target KL, by PPO's rule (arXiv 1909.08593, section 2.2): stronger above it."""

    schedule: Literal["adaptive"]
    start: PositiveKLWeight
    """The weight of the first update."""
    target: Annotated[float, Field(gt=0)]
    """Mean KL per token to be held, in nats."""
    gain: Annotated[float, Field(gt=0, le=4)]
    """K of the paper, 0.1 there. An update changes the weight by at most 20 % of it."""
    low: PositiveKLWeight
    """The least weight that it may come to."""
    high: PositiveKLWeight
    """The largest weight that it may come to."""

    @model_validator(mode="after")
    def _check_bounds(self) -> Adaptive:
        if not self.low <= self.start <= self.high:
            raise ValueError(
                f"low <= start <= high is asked, got low = {self.low}, start = {self.start}, "
                f"high = {self.high}"
            )
        return self

    def next_weight(self, seen: Seen, previous: float | None) -> float:
        """``previous (1 + gain clip(kl / target - 1, -0.2, 0.2))``, between ``low`` and ``high``.

        ``previous`` where no KL was measured.
        """
        if previous is None:
            return self.start
        if seen.kl is None:
            return previous
        error = min(max(seen.kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
        return min(max(previous * (1 + self.gain * error), self.low), self.high)

    def describe(self, updates: int) -> str:
        """What it starts from, and how far it may go."""
        return (
            f"{self.start:.4g} first, then between {self.low:.4g} and {self.high:.4g} towards a KL "
            f"of {self.target:.4g}"
        )


class Accuracy(Schedule):
    """Weaker while the batch's answers are mostly wrong, stronger the more of them are right.

    FG-ExPO's formula (arXiv 2605.11403) from a quotation, the paper itself could not be read: the
    weight, 0.02 there, is scaled by (tanh x + 1) / 2 of the batch's mean accuracy x. So it runs
    between 0.5 (all wrong) and 0.88 (all right) of ``weight``.
    """

    schedule: Literal["accuracy"]
    weight: KLWeight
    """What is scaled by the batch's accuracy."""

    def next_weight(self, seen: Seen, previous: float | None) -> float:
        """``weight (tanh(accuracy) + 1) / 2``."""
        return self.weight * (math.tanh(seen.accuracy) + 1) / 2

    def describe(self, updates: int) -> str:
        """Its bounds."""
        least, most = (self.next_weight(Seen(0.0, right, None), None) for right in (0.0, 1.0))
        return f"{least:.4g} to {most:.4g}, by the batch's accuracy"


KLSchedule = Constant | ExploreExploit | Linear | Cosine | Exponential | Step | Adaptive | Accuracy


class KLController:
    """A schedule on its way through a training of ``updates`` optimizer steps.

    Attributes:
        weight: applied in the latest update, at least ``FLOOR``; None before the first.

    Raises:
        ValueError: ``updates`` is not positive.
    """

    def __init__(self, schedule: Schedule, updates: int) -> None:
        if updates < 1:
            raise ValueError(f"a schedule runs over a known number of updates, got {updates}")
        self.schedule, self.updates = schedule, updates
        self.weight: float | None = None
        self._measured: list[float] = []

    def next_weight(self, update: int, accuracy: float) -> float:
        """Set the weight of ``update`` (0 .. ``updates`` - 1), whose mean accuracy is known.

        Raises:
            ValueError: what was seen makes no weight, as NaN does not.
        """
        progress = update / (self.updates - 1) if self.updates > 1 else 0.0
        kl = sum(self._measured) / len(self._measured) if self._measured else None
        seen = Seen(progress, accuracy, kl)
        weight = self.schedule.next_weight(seen, self.weight)
        if not 0 <= weight <= CEILING:  # NaN is not, either
            raise ValueError(f"KL weight {weight} in update {update}, from {seen}")
        self.weight, self._measured = max(weight, FLOOR), []
        return self.weight

    def measured(self, kl: float) -> None:
        """Take note of the KL in one loss of the current update, which may have several."""
        self._measured.append(kl)

    def state(self) -> dict[str, Any]:
        """All that changes, fit for JSON."""
        return {"weight": self.weight, "measured": self._measured}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.weight, self._measured = state["weight"], list(state["measured"])
