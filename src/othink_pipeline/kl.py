"""KL weights: how strongly RL is held to the base model, at every update.

GRPO holds the weight constant. GRPO-D (arXiv 2503.16081) makes it dynamic: weak early, so that the
policy explores, stronger later. The paper's exact formula could not be retrieved; linear in the
optimizer steps is this project's documented default.

Weights stay above zero: with a weight of zero TRL neither loads the reference model nor computes
its log-probabilities, and a later positive weight fails.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from othink_pipeline.validation import Block

KLWeight = Annotated[float, Field(gt=0)]


class Constant(Block):
    """The same weight at every update: GRPO."""

    schedule: Literal["constant"]
    weight: KLWeight

    def weight_at(self, update: int, updates: int) -> float:
        """The weight applied in update ``update`` (0 .. ``updates`` - 1)."""
        return self.weight


class Linear(Block):
    """From ``start`` in the first update to ``end`` in the last, in equal steps: GRPO-D."""

    schedule: Literal["linear"]
    start: KLWeight
    end: KLWeight

    def weight_at(self, update: int, updates: int) -> float:
        """The weight applied in update ``update`` (0 .. ``updates`` - 1)."""
        progress = update / (updates - 1) if updates > 1 else 0.0
        return self.start + progress * (self.end - self.start)


KLSchedule = Constant | Linear
