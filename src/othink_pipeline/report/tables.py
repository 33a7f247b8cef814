"""Numbers and tables as Markdown text: a hole (—) is not in the run, a question mark is unknown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from othink_pipeline.report.matrix import HOLE
from othink_pipeline.report.resampling import Estimate

UNKNOWN = "?"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(text) for text in line) + " |" for line in lines)


def percent(estimate: Estimate) -> str:
    """``62.5 [30.6, 86.3]`` of a share in [0, 1]."""
    if math.isnan(estimate.value):
        return UNKNOWN
    return f"{100 * estimate.value:.1f} {_interval(estimate, 100, '.1f')}"


def mean_percent(values: pd.Series[float]) -> str:
    """``62.5``, or a hole where there are no values."""
    return HOLE if values.empty else f"{100 * values.mean():.1f}"


def signed(estimate: Estimate, scale: float = 100) -> str:
    """``+1.2 [+0.1, +2.3]``; a difference in [-1, 1] becomes points."""
    value = UNKNOWN if math.isnan(estimate.value) else f"{scale * estimate.value:+.1f}"
    return f"{value} {_interval(estimate, scale, '+.1f')}"


def p_text(p: float) -> str:
    """``0.042``, or ``< 0.001``."""
    if math.isnan(p):
        return UNKNOWN
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def number(value: Any) -> str:
    """Any entry of a table; a hole where there is none."""
    if pd.isna(value):
        return HOLE
    if isinstance(value, float):
        return f"{value:,.6g}"
    return value if isinstance(value, str) else f"{value:,}"


def _interval(estimate: Estimate, scale: float, form: str) -> str:
    if math.isnan(estimate.low):
        return f"[{UNKNOWN}]"
    return f"[{scale * estimate.low:{form}}, {scale * estimate.high:{form}}]"
