"""Extract and judge answers. The reward and the evaluation both use this module.

Rule ``strict`` (our own): the answer is what stands in the *one* ``<answer>`` tag, read as
the task's kind of answer (``kinds``; an exact value unless it says otherwise), and right where it
is that of the *whole* gold. R1-V also credits
untagged text; here such an answer counts in ``correct_any`` only, which tells a lack of format from
a lack of ability. Completions are untrusted: the cost is linear in their length, what is computed
is bounded by the grammar's limits, and no string makes it raise.

What R1-V said, faults included, is ``r1v``'s: no training or evaluation of ours depends on it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from othink_pipeline.scoring.answers import Answer, read_number
from othink_pipeline.scoring.kinds import EXACT, AnswerKind

# Whole numeric tokens in running text, so that "12,000" or "2.5.1" is never read as its last part
# and the minus in "12-5" is no sign. The possessive "*+" gives nothing back: "5" in "5٣" is out.
_NUMERIC_TOKEN = re.compile(r"(?<![\w.,/])[+\-\u2212]?[0-9][0-9.,/]*+(?!\d)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known about one completion.

    Attributes:
        extracted: content of the one ``<answer>`` tag, stripped; None without exactly one.
        correct: the tagged answer equals the gold. Under rule r1v: R1-V would have said so.
        correct_any: correct, or there is no tagged answer and the last number equals the gold.
        format_ok: ``<think>…</think>``, optional white space, ``<answer>…</answer>``, no more.
        unparseable: no tagged answer, or one that does not read. Under rule r1v: R1-V read none.
        thought: the one think block holds more than white space.
        canonical: one text for each value of the tagged answer, without its unit, whatever the
            rule; None where it does not read. Equal for equal answers: count votes by it.
        reason: why it is not correct, in words; empty where it is.
    """

    extracted: str | None
    correct: bool
    correct_any: bool
    format_ok: bool
    unparseable: bool
    thought: bool
    canonical: str | None = None
    reason: str = ""


def score(completion: str, gold: str, kind: AnswerKind = EXACT) -> Verdict:
    """Judge ``completion`` against ``gold``. Never raises; a gold that does not read never matches.

    Where the tag stands is the format's business: an answer tag inside the think block counts as
    an answer, but such a completion is not ``format_ok``.
    """
    golds = kind.read_golds(gold)
    extracted = _tag_content(completion, "answer")
    given: Any = None if extracted is None else kind.read_for(extracted, golds)
    correct = given is not None and any(kind.is_right(given, each) for each in golds)
    correct_any = correct
    if extracted is None and golds and (last := _last_number(completion)) is not None:
        untagged: Any = kind.read_for(str(last), golds)
        correct_any = untagged is not None and any(kind.is_right(untagged, g) for g in golds)
    if correct:
        reason = ""
    elif not golds:
        reason = "the gold does not read"
    elif extracted is None:
        reason = "not exactly one answer tag"
    elif given is None:
        reason = "the answer does not read"
    else:
        same = isinstance(given, Answer) and any(given.value == each.value for each in golds)
        reason = "another unit" if same and given.option is None else "another value"
    return Verdict(
        extracted=extracted,
        correct=correct,
        correct_any=correct_any,
        format_ok=_is_format_ok(completion),
        unparseable=given is None,
        thought=bool(_tag_content(completion, "think")),
        canonical=None if given is None else kind.name(given),
        reason=reason,
    )


def parse_answer(text: str) -> Fraction | None:
    """The exact value of ``text``, or None if it is not one plain number.

    Read are ``12``, ``-3.50``, ``.5``, ``+7/2``, ``140°`` and ``140 degrees``, in ASCII digits and
    with white space around: what the project's own tasks ask for. ``score`` reads more.
    """
    answer = read_number(text)
    return answer.value if answer is not None and isinstance(answer.value, Fraction) else None


def _tag_content(text: str, tag: str) -> str | None:
    """What stands in the one ``<tag>…</tag>``, stripped; None unless there is exactly one."""
    opening, closing = f"<{tag}>", f"</{tag}>"
    start, end = text.find(opening), text.find(closing)
    if text.count(opening) != 1 or text.count(closing) != 1 or end < start:
        return None
    return text[start + len(opening) : end].strip()


def _is_format_ok(text: str) -> bool:
    if _tag_content(text, "think") is None or _tag_content(text, "answer") is None:
        return False
    thinking, answer = text.split("</think>")
    return (
        thinking.startswith("<think>")
        and answer.lstrip().startswith("<answer>")
        and answer.endswith("</answer>")
    )


def _last_number(text: str) -> Fraction | None:
    """The last numeric token's value; None if there is none or it is no number (``12,000``)."""
    token = ""
    for match in _NUMERIC_TOKEN.finditer(text):
        token = match.group()
    return parse_answer(token.rstrip(".,/"))
