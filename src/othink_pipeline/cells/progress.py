"""A training on the screen: one live line where that is a terminal, else the lines of the log."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from othink_pipeline.core.console import has_colours
from othink_pipeline.core.units import describe_seconds

LINES = "othink_pipeline.training.loop"
"""The logger of the lines that say, every few updates, what the live line says all the time."""
LEFT_VARIABLE = "OTHINK_LEFT_S"
"""Environment variable with the seconds of all trainings that come after this one, which worker
processes inherit."""
FORMAT = "{desc} {bar} {n_fmt}/{total_fmt}{postfix}  {remaining} left{grid}"
"""With what tqdm knows, and ``grid``: the time left of the whole grid, where that is known. The bar
takes what room is left: on 80 columns one, for a name of 21 characters in a grid of two tasks."""


class _Line(tqdm):  # type: ignore[misc]
    @property
    def format_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = super().format_dict
        grid, done = "", fields["n"] - fields["initial"]
        if done and (after_s := float(os.environ.get(LEFT_VARIABLE, "nan"))) > 0:  # False for NaN
            an_update_s = 1 / fields["rate"] if fields["rate"] else fields["elapsed"] / done
            left_s = (fields["total"] - fields["n"]) * an_update_s + after_s
            grid = f", all {describe_seconds(left_s)}"
        return {**fields, "grid": grid}


class Progress:
    """How far a training has come."""

    def __init__(self, bar: tqdm) -> None:
        self._bar = bar
        self._figures: dict[str, str] = {}

    def update(self, update: int, metrics: Mapping[str, float]) -> None:
        """An optimizer update is done."""
        if self._bar.n == 0:  # the first one here: it may go on from an earlier process's
            self._bar.initial = self._bar.n = update - 1
        for name in ("reward", "loss"):
            if f"train/{name}" in metrics:
                self._figures[name] = f"{metrics[f'train/{name}']:.2f}"
                break
        self._show(refresh=False)
        self._bar.update(update - self._bar.n)

    def validated(self, scores: Mapping[str, float]) -> None:
        """Checkpoint scores came in: task -> accuracy."""
        shown = "/".join(f"{100 * score:.0f}" for score in scores.values())
        self._figures["val"] = f"{shown} %"
        self._show(refresh=True)

    def _show(self, refresh: bool) -> None:
        text = "  ".join(f"{name} {figure}" for name, figure in self._figures.items())
        self._bar.set_postfix_str(text, refresh=refresh)


@contextmanager
def show_progress(name: str, updates: int, is_shown: bool) -> Iterator[Progress]:
    """Keep a line on the screen while the block lasts, if stderr is a terminal.

    Args:
        is_shown: False on all processes of a training but one.
    """
    bar = _Line(
        total=updates,
        desc=name,
        bar_format=FORMAT,
        colour="green" if has_colours() else None,
        leave=False,
        dynamic_ncols=True,
        disable=None if is_shown else True,  # None: unless it is a terminal
    )
    if bar.disable:
        yield Progress(bar)
        return
    lines = logging.getLogger(LINES)
    lines.setLevel(logging.WARNING)
    try:
        with bar, logging_redirect_tqdm():
            yield Progress(bar)
    finally:
        lines.setLevel(logging.NOTSET)
