"""What a run comes to, in words: no more than its intervals and tests bear out."""

from __future__ import annotations

from typing import Any, NamedTuple

import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.comparison import SCOPES
from othink_pipeline.report.parameters import KnownMethods

SCOPE_NAMES = {"same": "own task", "cross": "other tasks"}
SIGNIFICANCE = 0.05
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

    A difference is told as one only where its interval excludes zero and, where there is a test,
    its p-value after Holm is below 5 %. Between two methods with one seed each it is never told as
    one: what another seed would do is unknown.

    Args:
        differences: as from :func:`comparison.differences_table`.
        training: one row for each cell, with ``kl_term`` where there is one.
        failures: one row for each score that is missing.
        known: labels of methods.
    """
    against_base = differences[differences["baseline"] == BASE]
    findings = [
        Finding(SCOPE_NAMES[scope].capitalize(), _gains(rows, known))
        for scope in SCOPES
        if len(rows := against_base[against_base["scope"] == scope])
    ]
    duels = differences[differences["baseline"] != BASE]
    for (method, baseline), rows in duels.groupby(["method", "baseline"], sort=False):
        about = f"{known.label(method)} against {known.label(baseline)}"
        findings.append(Finding(about, _duel(rows)))
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


def verdict_section(findings: list[Finding]) -> str:
    """The verdict as a Markdown list."""
    return "\n".join(f"- **{about}**: {says}." for about, says in findings)


def _gains(rows: pd.DataFrame, known: KnownMethods) -> str:
    """Of each method over the base model, in one scope."""
    groups: dict[str, list[tuple[str, float]]] = {"gain": [], "lose": [], "": []}
    for row in rows.itertuples():
        group = ("gain" if row.points > 0 else "lose") if _is_shown(row) else ""
        groups[group].append((known.label(str(row.method)), row.points))
    parts = [
        f"{_list(name for name, _ in found)} {verb}{'s' if len(found) == 1 else ''}"
        f" {_list(f'{abs(points):.1f}' for _, points in found)} points over the base model"
        for verb, found in groups.items()
        if verb and found
    ]
    if groups[""]:
        undecided = _list(f"{name} ({points:+.1f})" for name, points in groups[""])
        parts.append(f"no difference shown for {undecided}")
    return f"{'; '.join(parts)} ({_basis(rows)})"


def _duel(rows: pd.DataFrame) -> str:
    """One method against another, in each scope."""
    told = []
    for row in rows.itertuples():
        text = f"{SCOPE_NAMES[row.scope]} {row.points:+.1f} [{row.low:+.1f}, {row.high:+.1f}]"
        if row.unit == "seeds":
            text += ", shown" if _is_shown(row) else ", undecided"
        told.append(text)
    end = "undecided, one seed" if (rows["unit"] == "items").all() else _basis(rows)
    return f"{'; '.join(told)}: {end}"


def _is_shown(row: Any) -> bool:
    """Whether this run can tell a difference from none."""
    return bool(
        (row.low > 0 or row.high < 0) and not row.p_holm >= SIGNIFICANCE  # NaN: there is no test
    )


def _basis(rows: pd.DataFrame) -> str:
    """What the intervals are drawn over."""
    seeds = rows["seeds"].max()
    return "over items, one seed" if (rows["unit"] == "items").all() else f"over {seeds} seeds"


def _list(words: Any) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
