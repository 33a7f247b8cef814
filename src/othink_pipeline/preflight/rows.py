"""What came of a check, and the end of a run where one failed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from othink_pipeline.core.blocks import ConfigurationError


class Row(NamedTuple):
    """What came of one check; what failed says how to mend it."""

    check: str
    outcome: Literal["ok", "note", "FAILED"]
    detail: str
    remedy: str = ""


def failed(rows: Iterable[Row]) -> list[Row]:
    """The checks that failed."""
    return [row for row in rows if row.outcome == "FAILED"]


def refuse(rows: Iterable[Row]) -> None:
    """Stop where a check failed.

    Raises:
        ConfigurationError: with every failed check.
    """
    lines = [f"  {row.check}: {row.detail} {row.remedy}".rstrip() for row in failed(rows)]
    if lines:
        raise ConfigurationError(f"checks that failed: {len(lines)}\n" + "\n".join(lines))
