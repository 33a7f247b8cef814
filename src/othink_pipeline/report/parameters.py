"""What the report looks at, what it calls it, and what others report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from othink_pipeline.core.blocks import BASE, Block, Name


class Report(Block):
    """What the report looks at."""

    comparisons: tuple[Annotated[tuple[Name, Name], Field(strict=False)], ...] = Field(strict=False)
    """Pairs of method and baseline, besides each method with the base model."""
    equivalence_margin: Annotated[float, Field(gt=0, le=100)]
    """Points of accuracy: two methods that are shown to differ by less are called equivalent. To be
    chosen before the results are seen."""


class KnownMethods(Block):
    """What is known of methods by name; those that a run has not do not matter to it."""

    labels: dict[Name, str]
    """What the figures and the text call a method; else its name."""
    positive_controls: tuple[Name, ...] = Field(strict=False)
    """Methods of which one at least must gain on its own task, if training works at all."""
    format_control: Name | None
    """The negative control: the method that is rewarded for the format alone."""

    def label(self, method: str) -> str:
        """What to call a method."""
        return self.labels.get(method, method)

    def name(self, train_task: str, method: str) -> str:
        """What to call a trained model, or the base model."""
        return "base model" if method == BASE else f"{self.label(method)} on {train_task}"


class Improvement(Block):
    """A relative improvement across tasks that others report."""

    trained_on: Name
    """A task."""
    tested_on: Name
    """Another task."""
    method: Name
    """The method that is better."""
    over: Name
    """The baseline: another method, or ``base``."""
    percent: float
    """100 (accuracy / the baseline's accuracy - 1)."""


class Published(Block):
    """Figures of others, printed beside those of a run."""

    source: str
    """Where they stand, for the report's caption."""
    accuracy: dict[Name, dict[str, dict[Name, Annotated[float, Field(ge=0, le=100)]]]]
    """Task that was trained on and tested -> model -> method (or ``base``) -> %."""
    improvements: tuple[Improvement, ...] = Field(strict=False)
    """Relative ones, across tasks."""
