"""A training on the screen: one live line where that is a terminal, else the lines of the log."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
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
FORMAT = "{desc} {bar} {n_fmt}/{total_fmt}  {remaining} left{grid}{postfix}"
"""With what tqdm knows, and ``grid``: the time left of the whole grid, where that is known. The bar
takes what room there is; where there is none, the line's end is cut."""


class _Line(tqdm):  # type: ignore[misc]
    @property
    def format_dict(self) -> dict[str, Any]:
        fields: dict[str, Any] = super().format_dict
        grid, done = "", fields["n"] - fields["initial"]
        if done and (after_s := float(os.environ.get(LEFT_VARIABLE, "nan"))) > 0:  # False for NaN
            own_s = (fields["total"] - fields["n"]) * fields["elapsed"] / done
            grid = f", all {describe_seconds(own_s + after_s)}"
        return {**fields, "grid": grid}

    def begin(self, done: int) -> None:
        """Take the time from here: what was before is no measure of what is to come."""
        self.initial = self.n = self.last_print_n = done
        self.start_t = self.last_print_t = self._time()


class Progress:
    """How far a training has come."""

    def __init__(self, bar: _Line) -> None:
        self._bar = bar
        self._figures: dict[str, str] = {}

    def update(self, update: int, metrics: Mapping[str, float]) -> None:
        """An optimizer update is done."""
        if self._bar.disable:
            return
        if self._bar.n == 0:  # the first one here, after loading and scoring; maybe not the first
            self._bar.begin(update)
        for name in ("reward", "loss"):
            if f"train/{name}" in metrics:
                self._figures[name] = f"{metrics[f'train/{name}']:.2f}"
                break
        self._show(refresh=update == self._bar.n)
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
        smoothing=0,  # the mean: a checkpoint's scoring comes every some updates
        disable=None if is_shown and _has_room() else True,  # None: unless it is a terminal
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


def _has_room() -> bool:
    """False for a terminal without a size, which some programs make: tqdm shows nothing there."""
    with suppress(OSError, ValueError):
        return min(os.get_terminal_size(sys.stderr.fileno())) > 1
    return True
