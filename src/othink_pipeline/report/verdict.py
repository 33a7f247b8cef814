"""What a run comes to, in words: no more than its intervals and tests bear out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import NamedTuple

import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.comparison import SCOPES, Difference, Scope, read_differences
from othink_pipeline.report.parameters import KnownMethods

SCOPE_NAMES: dict[Scope, str] = {"same": "own task", "cross": "other tasks"}
SIGNIFICANCE = 0.05
UNDECIDED = "undecided"
INERT_KL_TERM = 0.01
"""A KL term that never exceeds it hardly acts: advantages are about 1."""


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
        training: one row for each cell, with ``kl_term`` where there is one.
        failures: one row for each score that is missing.
    """
    rows = read_differences(differences)
    findings = [
        Finding(
            SCOPE_NAMES[scope].capitalize(), _by_basis(of_scope, lambda part: _gains(part, known))
        )
        for scope in SCOPES
        if (of_scope := [row for row in rows if (row.baseline, row.scope) == (BASE, scope)])
    ]
    duels = [row for row in rows if row.baseline != BASE]
    for (method, baseline), of_pair in groupby(duels, key=lambda row: (row.method, row.baseline)):
        about = f"{known.label(method)} against {known.label(baseline)}"
        findings.append(Finding(about, _by_basis(of_pair, _duel)))
    kl_term = training["kl_term"].max() if "kl_term" in training else float("nan")
    if kl_term < INERT_KL_TERM:
        says = (
            f"KL weight × KL is at most {kl_term:.2g} on average, against advantages of about 1: it"
            " hardly acts, so methods that differ in it alone can only differ by chance"
        )
        findings.append(Finding("KL term", says))
    if len(failures):
        says = f"{len(failures)} scores are missing (—): see What failed"
        findings.append(Finding("Not all of it", says))
    return findings


def verdict_section(findings: Sequence[Finding]) -> str:
    """The verdict as a Markdown list."""
    return "\n".join(f"- **{about}**: {says}." for about, says in findings)


def _by_basis(rows: Iterable[Difference], tell: Callable[[Sequence[Difference]], str]) -> str:
    """What is drawn over other seeds is told apart."""
    parts: dict[str, list[Difference]] = {}
    for row in rows:
        parts.setdefault(row.drawn_over, []).append(row)
    return "; ".join(map(tell, parts.values()))


def _gains(rows: Sequence[Difference], known: KnownMethods) -> str:
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
    undecided = [
        f"{known.label(row.method)} ({_points(row.points)})" for row in rows if row not in shown
    ]
    if undecided:
        parts.append(f"{UNDECIDED} for {_list(undecided)}")
    return f"{'; '.join(parts)} (over {rows[0].drawn_over})"


def _duel(rows: Sequence[Difference]) -> str:
    """One method against another, in each scope, on one basis."""
    told = []
    for row in rows:
        interval = f"[{_points(row.low)}, {_points(row.high)}]"
        text = f"{SCOPE_NAMES[row.scope]} {_points(row.points)} {interval}"
        told.append(text if row.unit == "items" else f"{text} {conclusion(row)}")
    end = f": {conclusion(rows[0])}" if rows[0].unit == "items" else f" (over {rows[0].drawn_over})"
    return "; ".join(told) + end


def conclusion(row: Difference) -> str:
    """Different, equivalent within the margin, both, or undecided.

    Different: the interval excludes zero and, where there is a test, its p-value after Holm is
    below 5 %. Equivalent: the interval lies within the margin and the p-value of the two one-sided
    tests after Holm is below 5 %. A small difference can be shown to be one and to be small.
    Neither is ever told of two methods with one seed each: what another seed would do is unknown.
    """
    if row.unit == "items":
        is_told = row.baseline == BASE and _is_different(row)
        return f"{'different over items' if is_told else UNDECIDED}, one seed"
    equivalent = f"equivalent within {row.margin:g} points"
    if not _is_equivalent(row):
        return "different" if _is_different(row) else UNDECIDED
    return f"different, yet {equivalent}" if _is_different(row) else equivalent


def _is_different(row: Difference) -> bool:
    """Whether this run can tell a difference from none."""
    excludes_zero = row.low > 0 or row.high < 0
    return excludes_zero and not row.p_holm >= SIGNIFICANCE  # NaN: there is no test


def _is_equivalent(row: Difference) -> bool:
    """Whether this run can tell that the difference is within the margin."""
    is_within = -row.margin < row.low and row.high < row.margin
    return is_within and row.p_equivalent_holm < SIGNIFICANCE


def _points(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _list(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
