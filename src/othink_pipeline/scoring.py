"""Extract and judge answers. The reward and the evaluation both use this module.

The rule (``strict``, our own): the answer is what stands in the *one* ``<answer>`` tag, read by a
small grammar to an exact fraction. R1-V also credits untagged text; here such an answer counts in
``correct_any`` only, which tells a lack of format from a lack of ability. Completions are
untrusted: the cost is linear in their length and no string makes it raise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_ANSWER_CHARACTERS = 64
"""Longer answers are unparseable: it bounds the size of the integers that are built."""

# Sign, digits, then a decimal part or a denominator, then a degree sign. Nothing here can
# backtrack over a long run: the text is short and each part starts with a different character.
_NUMBER = re.compile(r"([+\-\u2212]?)([0-9]+(?:\.[0-9]+|/[0-9]+)?)\s*(?:°|degrees?)?")

# Whole numeric tokens in running text, so that "12,000" or "2.5.1" is never read as its last part
# and the minus in "12-5" is no sign. The possessive "*+" gives nothing back: "5" in "5٣" is out.
_NUMERIC_TOKEN = re.compile(r"(?<![\w.,/])[+\-\u2212]?[0-9][0-9.,/]*+(?!\d)")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known about one completion.

    Attributes:
        extracted: content of the one ``<answer>`` tag, stripped; None without exactly one.
        correct: the tagged answer equals the gold.
        correct_any: correct, or there is no tagged answer and the last number equals the gold.
        format_ok: ``<think>…</think>``, optional white space, ``<answer>…</answer>``, no more.
        unparseable: no tagged answer, or one that is not a number.
        thought: the one think block holds more than white space.
    """

    extracted: str | None
    correct: bool
    correct_any: bool
    format_ok: bool
    unparseable: bool
    thought: bool


def score(completion: str, gold: str) -> Verdict:
    """Judge ``completion`` against ``gold``. Never raises; a gold that is no number never matches.

    Where the tag stands is the format's business: an answer tag inside the think block counts as
    an answer, but such a completion is not ``format_ok``.
    """
    target = parse_answer(gold)
    extracted = _tag_content(completion, "answer")
    value = None if extracted is None else parse_answer(extracted)
    fallback = _last_number(completion) if extracted is None else value
    thinking = _tag_content(completion, "think")
    return Verdict(
        extracted=extracted,
        correct=target is not None and value == target,
        correct_any=target is not None and fallback == target,
        format_ok=_is_format_ok(completion),
        unparseable=value is None,
        thought=bool(thinking),
    )


def parse_answer(text: str) -> Fraction | None:
    """The exact value of ``text``, or None if it is not one number.

    Read are ``12``, ``-3.50``, ``+7/2`` and ``140°`` or ``140 degrees``, in ASCII digits, with
    white space around. Not read: thousands separators, exponents, other scripts' digits, units.
    """
    # Length first, then strip: neither the pattern nor int() ever sees a long string.
    if len(text) > MAX_ANSWER_CHARACTERS:
        return None
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    sign, magnitude = match.groups()
    try:
        value = Fraction(magnitude)
    except ZeroDivisionError:  # "1/0" fits the grammar and has no value
        return None
    return value if sign in ("", "+") else -value


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
