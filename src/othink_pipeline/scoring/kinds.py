"""Kinds of answer: what the text of an answer says, and when that is right.

Each task has one (``data_preparation.answers``), which reward and evaluation share. A gold is a
text; as a JSON list of texts it is several accepted answers, or the items of a list or set. What is
compared is always the whole answer with the whole gold. Nothing here raises, and texts beyond the
limits are not read: the cost is bounded.
"""

from __future__ import annotations

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, starmap
from math import pi, sqrt
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from othink_pipeline.core.blocks import Block, Weight
from othink_pipeline.scoring.answers import (
    MAX_ANSWER_CHARACTERS,
    Answer,
    clean,
    is_same_unit,
    read,
    split_option,
)

MAX_TEXT_CHARACTERS = 512
MAX_ITEMS = 64

_NUMBER_WORDS = dict(
    zip(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
        range(11),
        strict=True,
    )
)
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = " .,;:!?\"'`“”\u2018\u2019"
_STRAIGHT = str.maketrans("\u2018\u2019\u201c\u201d", "''\"\"")
# Soft hyphens, zero widths, marks of direction, byte order marks: nobody sees them.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\ufeff]")
# But for the point of ".5"; "...5" is 5.
_LEADING = re.compile(rf"\A(?:(?!(?<!\.)\.[0-9])[{_PUNCTUATION}])+")
# As tables and charts write numbers: $1,234.50, 12 %, 1.5e3. Every part begins otherwise.
_DRESSED = re.compile(
    r"([+\-\u2212]?)[$€£¥]?\s*([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+|(?=\.))(\.[0-9]+)?(e[+-]?[0-9]{1,2})?"
    r"\s*(%|percent|per cent)?"
)
# Beyond what exact answers may be: "B)", "[b]", "B:"; "Option B" may also be an option's text.
_LETTER = re.compile(r"[(\[]?([a-z])[)\]]?[.:]?")
_NAMED_LETTER = re.compile(r"(?:option|choice) ([a-z])")
# A letter that is no article, so that "B. or C" does not pass for B.
_OTHER_LETTER = re.compile(r"\b[b-hj-z]\b|\b[ai]\b(?!\s+\w)")


class Words(NamedTuple):
    """A short text: normalised, and its value where it is a number."""

    text: str
    value: Answer | None

    def means(self, other: Words) -> bool:
        """Whether both are the same text, or the same number."""
        if self.value and other.value:
            return self.value.answers(other.value)
        return self.text == other.text


class Chosen(NamedTuple):
    """An option: its letter, its text, or both."""

    letter: str | None
    words: Words | None
    whole: Words | None = None
    """Letter and text as one text: ``U.S.`` and ``E. coli`` are no options U and E."""


class Quantity(NamedTuple):
    """A number with its unit; or, without a value, a text."""

    value: Fraction | float | None
    unit: str | None
    words: Words


class _Kind(Block, ABC):
    """What all kinds can do. What is read of an answer is each kind's own affair."""

    @abstractmethod
    def read(self, text: str) -> Any:
        """What an answer says; None where it does not read."""

    def read_for(self, text: str, golds: Sequence[Any]) -> Any:
        """As ``read``; None also where what is said is of another sort than all golds."""
        return self.read(text)

    @abstractmethod
    def is_right(self, given: Any, gold: Any) -> bool:
        """Whether what was read of an answer is what was read of a gold."""

    @abstractmethod
    def name(self, given: Any) -> str:
        """One text for each answer: equal for equal ones."""

    def read_golds(self, gold: str) -> tuple[Any, ...]:
        """The accepted answers that a gold stands for; none where one of them does not read."""
        found = tuple(self.read(text) for text in accepted(gold))
        return () if None in found else found

    def target(self, gold: str) -> str:
        """The right answer that is taught."""
        return accepted(gold)[0]


class Exact(_Kind):
    """An exact value or a choice's letter: the grammar of ``answers``."""

    kind: Literal["exact"]

    def read(self, text: str) -> Answer | None:
        return read(text)

    def read_for(self, text: str, golds: Sequence[Answer]) -> Answer | None:
        """See ``_Kind.read_for``: a letter answers no question for a number."""
        given = self.read(text)
        asked = not golds or any(isinstance(gold.value, str) for gold in golds)
        return given if asked or given is None or not isinstance(given.value, str) else None

    def is_right(self, given: Answer, gold: Answer) -> bool:
        return given.answers(gold)

    def name(self, given: Answer) -> str:
        return given.canonical


EXACT = Exact(kind="exact")


class Number(_Kind):
    """A number within a tolerance; a gold that is no number is compared as short text (ChartQA)."""

    kind: Literal["number"]
    relative: Weight
    """Of the gold: 0.05 is ChartQA's 5 %."""
    absolute: Weight
    """The larger one of both counts."""

    def read(self, text: str) -> Quantity | None:
        words = read_words(text)
        if words is None:
            return None
        exact = None if len(text) > MAX_ANSWER_CHARACTERS else read(text)
        if exact is not None and not isinstance(exact.value, str):
            return Quantity(_size(exact), exact.unit, words)
        value, unit = _read_dressed(text)
        return Quantity(value, unit, words)

    def read_for(self, text: str, golds: Sequence[Quantity]) -> Quantity | None:
        """See ``_Kind.read_for``: words answer no question for a number."""
        given = self.read(text)
        asked = not golds or any(gold.value is None for gold in golds)
        return given if asked or given is None or given.value is not None else None

    def is_right(self, given: Quantity, gold: Quantity) -> bool:
        """See ``_Kind.is_right``; a unit may be left out, not contradicted."""
        if gold.value is None or given.value is None:
            return gold.value is None and given.words.means(gold.words)
        if given.unit and gold.unit and not is_same_unit(given.unit, gold.unit):
            return False
        allowed = max(_decimal(self.absolute), _decimal(self.relative) * abs(Fraction(gold.value)))
        return abs(Fraction(given.value) - Fraction(gold.value)) <= allowed

    def name(self, given: Quantity) -> str:
        return given.words.text if given.value is None else str(given.value)


class Choice(_Kind):
    """An option: its letter, its text, or both; golds are ``B``, ``30°`` or ``B. 30°``."""

    kind: Literal["choice"]

    def read(self, text: str) -> Chosen | None:
        if len(text) > MAX_TEXT_CHARACTERS:
            return None
        if option := split_option(clean(text)):
            return Chosen(option[0], read_words(option[1]), read_words(text))
        letter = read(text)
        if letter is not None and isinstance(letter.value, str):
            return Chosen(letter.value, None)
        if alone := _LETTER.fullmatch(clean(text)):
            return Chosen(alone[1].upper(), None)
        words = read_words(text)
        return words and Chosen(None, words)

    def is_right(self, given: Chosen, gold: Chosen) -> bool:
        if given.whole and gold.words and given.whole.means(gold.words):
            return True
        if given.letter and gold.letter and given.letter != gold.letter:
            return False
        if given.words and gold.words and given.words.means(gold.words):
            return True
        if given.words and not given.letter and gold.letter:
            named = _NAMED_LETTER.fullmatch(given.words.text)
            return named is not None and named[1].upper() == gold.letter
        if (given.words and gold.words) or not given.letter or not gold.letter:
            return False
        return not given.words or not _OTHER_LETTER.search(given.words.text)

    def name(self, given: Chosen) -> str:
        return given.letter or (given.words.text if given.words else "")

    def target(self, gold: str) -> str:
        chosen = self.read(accepted(gold)[0])
        return chosen.letter if chosen and chosen.letter else accepted(gold)[0]


class Text(_Kind):
    """A short text, normalised: case, width, articles, outer punctuation, number words."""

    kind: Literal["text"]

    def read(self, text: str) -> Words | None:
        return read_words(text)

    def is_right(self, given: Words, gold: Words) -> bool:
        return given.means(gold)

    def name(self, given: Words) -> str:
        return given.value.canonical if given.value else given.text


class Items(_Kind):
    """Several short texts: a list in its order, a set in any; each item once."""

    kind: Literal["list", "set"]
    """In the gold's order, or in any."""

    def read(self, text: str) -> tuple[Words, ...] | None:
        return _read_items(_split_items(text))

    def read_golds(self, gold: str) -> tuple[Any, ...]:
        """See ``_Kind.read_golds``; none, too, where no text says these, or a set has one twice."""
        found = self.read(self.target(gold))
        if found is None:
            return ()
        if self.kind == "set" and any(starmap(Words.means, combinations(found, 2))):
            return ()
        return (found,)

    def is_right(self, given: tuple[Words, ...], gold: tuple[Words, ...]) -> bool:
        if len(given) != len(gold):
            return False
        if self.kind == "list":
            return all(map(Words.means, given, gold))
        left = list(gold)
        for item in given:
            place = next((n for n, each in enumerate(left) if item.means(each)), None)
            if place is None:
                return False
            del left[place]
        return True

    def name(self, given: tuple[Words, ...]) -> str:
        texts = [each.value.canonical if each.value else each.text for each in given]
        return "; ".join(texts if self.kind == "list" else sorted(texts))

    def target(self, gold: str) -> str:
        """See ``_Kind.target``; empty where no one text says these items: one may hold ``;``."""
        if not gold.startswith("["):
            return gold
        items = accepted(gold)
        meant = None if items == (gold,) else _read_items(items)  # it begins as JSON and is none
        for text in (", ".join(items), "; ".join(items)):
            found = self.read(text)
            if meant and found and self.is_right(found, meant):
                return text
        return ""


AnswerKind = Annotated[Exact | Number | Choice | Text | Items, Field(discriminator="kind")]


def accepted(gold: str) -> tuple[str, ...]:
    """The texts of a gold: the elements of a JSON list of texts, else itself."""
    if gold.startswith("["):
        try:
            texts = json.loads(gold)
        except (ValueError, RecursionError):
            return (gold,)
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            return tuple(texts)
    return (gold,)


def read_words(text: str) -> Words | None:
    """A short text; None where nothing is left of it, or it is too long."""
    if len(text) > MAX_TEXT_CHARACTERS:
        return None
    plain = unicodedata.normalize("NFKC", clean(text)).casefold().translate(_STRAIGHT)
    plain = _INVISIBLE.sub("", plain).rstrip(_PUNCTUATION)
    words = _LEADING.sub("", plain).split()
    words = [word for word in words if word not in _ARTICLES] or words
    normal = " ".join(str(_NUMBER_WORDS.get(word, word)) for word in words)
    if not normal:
        return None
    value = read(normal)
    return Words(normal, None if value is None or isinstance(value.value, str) else value)


def _split_items(text: str) -> tuple[str, ...]:
    if len(text) > MAX_TEXT_CHARACTERS:
        return ()
    text = clean(text)
    if text[:1] + text[-1:] in ("[]", "{}", "()"):
        text = text[1:-1]
    for separator in (";", "\n"):
        if separator in text:
            return tuple(part for part in text.split(separator) if part.strip())
    return tuple(re.split(r",\s*and\s|\sand\s|[,、]", text))


def _read_items(texts: tuple[str, ...]) -> tuple[Words, ...] | None:
    items = [read_words(text) for text in texts[: MAX_ITEMS + 1]]
    if not 0 < len(items) <= MAX_ITEMS or None in items:
        return None
    return tuple(item for item in items if item is not None)


def _read_dressed(text: str) -> tuple[Fraction | None, str | None]:
    """Value and unit of a number as tables write it."""
    if len(text) > MAX_ANSWER_CHARACTERS:
        return None, None
    match = _DRESSED.fullmatch(clean(text))
    if match is None:
        return None, None
    sign, whole, decimals, exponent, percent = match.groups(default="")
    if not whole and not decimals:
        return None, None
    value = Fraction(f"{whole.replace(',', '') or 0}{decimals}{exponent}")
    return (value if sign in ("", "+") else -value), "%" if percent else None


def _size(answer: Answer) -> Fraction | float:
    if isinstance(answer.value, Fraction):
        return answer.value
    assert not isinstance(answer.value, str)
    return sum(float(q) * sqrt(r) * pi**k for (r, k), q in answer.value)


def _decimal(number: float) -> Fraction:
    """A tolerance as it is written: 0.05 is 1/20, which no float is."""
    return Fraction(repr(number))
