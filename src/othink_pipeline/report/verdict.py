"""What a run comes to, in words: no more than its intervals and tests bear out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.comparison import SCOPES, Difference, Scope, read_differences
from othink_pipeline.report.parameters import KnownMethods
from othink_pipeline.report.significance import SIGNIFICANCE
from othink_pipeline.report.tables import UNKNOWN

SCOPE_NAMES: dict[Scope, str] = {"same": "own task", "cross": "other tasks"}
DIFFERENT, UNDECIDED, SAME = "different", "undecided", "the same items right"
SMALL_PULL = 0.1
"""Of the KL term, beside advantages of about 1."""


class Finding(NamedTuple):
    """One line of the verdict."""

    about: str
    says: str


def verdict(
    differences: pd.DataFrame, training: pd.DataFrame, failures: pd.DataFrame, known: KnownMethods
) -> list[Finding]:
    """The answer: gains over the base model by scope, method against method, what limits it.

    What is told of a difference is its :func:`conclusion`.

    Args:
        differences: as from :func:`comparison.differences_table`.
        training: one row for each cell, with ``kl_pull`` where there is one.
        failures: one row for each score that is missing.
    """
    rows = read_differences(differences)
    holes = _holes(rows)
    findings = [
        Finding(
            SCOPE_NAMES[scope].capitalize(),
            _by_basis(of_scope, holes, lambda part, basis: _gains(part, basis, known)),
        )
        for scope in SCOPES
        if (of_scope := [row for row in rows if (row.baseline, row.scope) == (BASE, scope)])
    ]
    duels = [row for row in rows if row.baseline != BASE]
    for (method, baseline), of_pair in groupby(duels, key=lambda row: (row.method, row.baseline)):
        about = f"{known.label(method)} against {known.label(baseline)}"
        findings.append(Finding(about, _by_basis(of_pair, holes, _duel)))
    pull = training["kl_pull"].max() if "kl_pull" in training else float("nan")
    if pull < SMALL_PULL:
        says = (
            f"its pull, KL weight × √(2 KL), is at most {pull:.2g}, a cell's mean, beside"
            " advantages of about 1; over the updates a small pull can add up. A difference between"
            " methods that differ in it alone wants several base models before it is believed"
        )
        findings.append(Finding("KL term", says))
    if len(failures):
        says = f"{len(failures)} scores are missing (—): see What failed"
        findings.append(Finding("Not all of it", says))
    return findings


def verdict_section(findings: Sequence[Finding]) -> str:
    """The verdict as a Markdown list."""
    return "\n".join(f"- **{about}**: {says}." for about, says in findings)


def _holes(rows: Iterable[Difference]) -> dict[Difference, str]:
    """Which cells a difference is of, where others of its scope have more; "" where none has."""
    rows = list(rows)
    cells = {row: set(row.directions.split(", ")) for row in rows}
    all_of: dict[Scope, set[str]] = {}
    for row in rows:
        all_of[row.scope] = all_of.get(row.scope, set()) | cells[row]
    return {
        row: "" if cells[row] == all_of[row.scope] else f"; only {row.directions}" for row in rows
    }


def _by_basis(
    rows: Iterable[Difference],
    holes: Mapping[Difference, str],
    tell: Callable[[Sequence[Difference], str], str],
) -> str:
    """What is drawn over other seeds, or is of other cells, is told apart."""
    parts: dict[str, list[Difference]] = {}
    for row in rows:
        parts.setdefault(row.basis + holes[row], []).append(row)
    return "; ".join(tell(part, basis) for basis, part in parts.items())


def _gains(rows: Sequence[Difference], basis: str, known: KnownMethods) -> str:
    """Of each method over the base model, in one scope, on one basis."""
    shown = [row for row in rows if _is_different(row)]
    parts = []
    for verb, found in (
        ("gain", [row for row in shown if row.points > 0]),
        ("lose", [row for row in shown if row.points < 0]),
    ):
        if found:
            names = _list(known.label(row.method) for row in found)
            points = _list(f"{abs(row.points):.1f}" for row in found)
            verb += "s" * (len(found) == 1)
            parts.append(f"{names} {verb} {points} points over the base model")
    same = [known.label(row.method) for row in rows if _judgement(row) == SAME]
    if same:
        parts.append(f"{SAME} as the base model for {_list(same)}")
    undecided = [
        f"{known.label(row.method)} ({_points(row.points)})"
        for row in rows
        if _judgement(row) == UNDECIDED
    ]
    if undecided:
        parts.append(f"{UNDECIDED} for {_list(undecided)}")
    return f"{'; '.join(parts)} ({basis})"


def _duel(rows: Sequence[Difference], basis: str) -> str:
    """One method against another, in each scope, on one basis.

    What one seed leaves open is told once, of the seed: beside an interval far from zero it would
    read as a doubt about these items.
    """
    is_open = [row.unit == "items" and _judgement(row) == UNDECIDED for row in rows]
    told = [
        f"{SCOPE_NAMES[row.scope]} {_points(row.points)} [{_points(row.low)}, {_points(row.high)}]"
        + ("" if open_ else f" {_judgement(row)}")
        for row, open_ in zip(rows, is_open, strict=True)
    ]
    return f"{'; '.join(told)} ({basis}{f': {UNDECIDED}' if any(is_open) else ''})"


def conclusion(row: Difference) -> str:
    """What a difference comes to, and of what where that is not several trainings.

    Different: the interval excludes zero and the p-value after Holm is below 5 %. Equivalent: the
    interval lies within the margin and the p-value of the two one-sided tests after Holm is below
    5 %. A small difference can be shown to be one and to be small. Without a test nothing is told,
    and neither is it of two methods with one seed each: what another seed would do is unknown.
    """
    told = _judgement(row)
    if row.unit != "items":
        return told
    if not row.seeds:
        return f"{told}, {row.basis}"
    return f"{told}{' over items' if told == DIFFERENT else ''}, one seed"


def _judgement(row: Difference) -> str:
    """Different, equivalent within the margin, both, or undecided."""
    if row.pairs and not row.discordant:
        return SAME
    if row.unit == "items" and row.baseline != BASE:
        return UNDECIDED
    equivalent = f"equivalent within {row.margin:g} points"
    if not _is_equivalent(row):
        return DIFFERENT if _is_different(row) else UNDECIDED
    return f"{DIFFERENT}, yet {equivalent}" if _is_different(row) else equivalent


def _is_different(row: Difference) -> bool:
    """Whether this run can tell a difference from none."""
    return (row.low > 0 or row.high < 0) and row.p_holm < SIGNIFICANCE  # NaN: there is no test


def _is_equivalent(row: Difference) -> bool:
    """Whether this run can tell that the difference is within the margin."""
    is_within = -row.margin < row.low and row.high < row.margin
    return is_within and row.p_equivalent_holm < SIGNIFICANCE


def _points(value: float) -> str:
    if math.isnan(value):
        return UNKNOWN
    return f"{value:+.1f}".replace("-", "−")


def _list(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
