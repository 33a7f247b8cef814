r"""Answers as values: text in LaTeX, ASCII or Chinese spelling to an exact number or a choice.

A number is an exact sum of roots and powers of π (``surds``): ``6/√3`` is ``2√3``, ``10.0`` is
``10``, ``13.86`` is not ``8√3``. No rounding, no tolerance and no computer algebra system; nothing
is evaluated but the grammar below, within fixed limits.

    answer   := quantity | (choice) quantity | choice (. | : | ")") quantity: an option, written out
    quantity := choice | (choice) | sum [unit] | \boxed{quantity} [unit]
    sum      := [+ | -] product ((+ | -) product)*
    product  := power ((* | / [+ | -] | nothing) power)*      from the left: 1/2√3 is (1/2)√3
    power    := atom [^ power]
    atom     := number | π | √power | \frac{sum}{sum} | (sum) | {sum} | mixed number 1\frac{1}{2}

A choice is a letter. Full-width characters are read as their ASCII ones, Markdown's marks around
the whole are passed over. "Nothing" multiplies only before ``π``, ``√``, ``\frac`` and ``(``:
``5 5`` is no number. Not read, on purpose: what is still to be calculated (``2+3``, ``2*3``,
``2^3``, and a whole number written as ``14/2`` or ``√49``: a reward for it would teach to leave out
the last step), thousands separators, ratios, equations, percentages, functions, nested radicals
that stay irrational, and numerals of other scripts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

from othink_pipeline.scoring import surds
from othink_pipeline.scoring.surds import Terms, UnreadableError

MAX_ANSWER_CHARACTERS = 128
"""Longer texts are not read: with the limits here and in ``surds`` it bounds the cost."""

MAX_DEPTH = 12

# Sign, digits, then a decimal part or a denominator, then a degree sign. Nothing here can
# backtrack over a long run: the text is short and each part starts with a different character.
_NUMBER = re.compile(r"([+\-\u2212]?)([0-9]+(?:\.[0-9]+|/[0-9]+)?|\.[0-9]+)\s*(°|degrees?)?")

ANY_UNIT = "unit"

_SPELLINGS: Mapping[str, str] = {
    "mm": "millimeter millimetre 毫米",
    "cm": "centimeter centimetre 厘米",
    "dm": "decimeter decimetre 分米",
    "m": "meter metre 米",
    "km": "kilometer kilometre 千米 公里",
    "nautical mile": "海里",
    "s": "sec second 秒",
    "min": "minute 分钟",
    "h": "hr hour 小时",
    ANY_UNIT: "",  # "12 units" names none, "12 square units" a dimension
}
_UNITS = {
    word + plural: unit
    for unit, spellings in _SPELLINGS.items()
    for word in filter(None, (unit, *spellings.split()))
    for plural in ("", "s" if word.isascii() and len(word) > 2 else "")
}
_TOKEN = re.compile(
    "|".join(
        f"(?P<{kind}>{pattern})"
        for kind, pattern in {
            "skip": r"\s+|~|\$|\{\}|\\[,;:!()\[\] ]|\\(?:left|right|displaystyle|q?quad)(?![a-z])",
            "number": r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+",
            "degree": r"(?:\^\s*)?\\circ|\^\s*\{\s*\\circ\s*\}|\\degree|[°º˚度]|degrees?|deg",
            "frac": r"\\[dt]?frac",
            "root": r"\\?sqrt|√",
            "pi": r"\\?pi|π",
            "boxed": r"\\boxed",
            "raise": r"\*\*|\^",
            "times": r"\\times|\\cdot|[*×·⋅]",
            "over": r"\\div|[/÷]",
            "plus": r"\+",
            "minus": r"[-\u2212]",
            "open": r"[({]",
            "close": r"[)}]",
            "square": r"square|sq\.?|平方",
            "cubic": r"cubic|立方",
            "unit": "|".join(sorted(_UNITS, key=len, reverse=True)),
            "choice": r"[a-z]",
        }.items()
    )
)
_TEXT = re.compile(r"\\(?:text|mathrm|mathbf|textbf|textrm|operatorname)\s*\{([^{}]*)\}")
_BRACKETS = {"(": ")", "{": "}"}
_FULL_WIDTH = {0xFF01 + offset: 0x21 + offset for offset in range(94)}
"""To ASCII. Unicode's own normal form would make 25 of 2⁵."""
_EMPHASIS = re.compile(r"(\*\*|__|[*_`])(.+)\1([.。]?)", re.DOTALL)
_OPTION = re.compile(r"(?:\(\s*([a-z])\s*\)[.:]?|([a-z])\s*[.:)])\s*(.+)", re.DOTALL)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed answer.

    Attributes:
        value: a fraction; else the sorted terms of an irrational number; else a choice's letter.
        unit: the canonical unit, as ``cm`` or ``cm^2``; ``unit^2`` for square units of whatever
            length; None where none is named.
        option: of a choice what stands there, if it is written out: ``30°`` of ``A. 30°``.
    """

    value: Fraction | tuple[tuple[tuple[int, int], Fraction], ...] | str
    unit: str | None
    option: Answer | None = None

    def answers(self, gold: Answer) -> bool:
        """Whether the values are equal and unit and option, where both name one, are the same."""
        return (
            self.value == gold.value
            and (self.unit is None or gold.unit is None or is_same_unit(self.unit, gold.unit))
            and (self.option is None or gold.option is None or self.option.answers(gold.option))
        )

    @property
    def canonical(self) -> str:
        """One text for each value, without the unit; reads back as the same value."""
        if not isinstance(self.value, tuple):
            return str(self.value)
        text = ""
        for (radicand, power), factor in self.value:
            parts = [] if abs(factor) == 1 and (radicand, power) != (1, 0) else [str(abs(factor))]
            parts += [f"sqrt({radicand})"] if radicand != 1 else []
            parts += [f"pi^({power})" if power != 1 else "pi"] if power else []
            text += ("-" if factor < 0 else "+" if text else "") + "*".join(parts)
        return text


def read(text: str) -> Answer | None:
    """What ``text`` says, or None if it is not exactly one answer. Never raises."""
    plain = read_number(text)  # some microseconds, for nearly every answer in training
    if plain is not None or len(text) > MAX_ANSWER_CHARACTERS:
        return plain
    text = clean(text)
    option = split_option(text)
    try:
        if option is None:
            return _Reader(text).answer()
        written = _Reader(option[1]).answer()
    except UnreadableError:
        return None
    return None if isinstance(written.value, str) else Answer(option[0], None, written)


def split_option(text: str) -> tuple[str, str] | None:
    """Letter and text of an option that is written out, as ``B. 30°``; None where none is.

    Args:
        text: as ``clean`` returns it.
    """
    option = _OPTION.fullmatch(text)
    return None if option is None else ((option[1] or option[2]).upper(), option[3])


def clean(text: str) -> str:
    """``text`` in lower case and ASCII's width, without Markdown's marks around it and full stop.

    Superscripts 2 and 3 are ``^2`` and ``^3``.
    """
    text = (
        _TEXT.sub(r" \1 ", text)
        .translate(_FULL_WIDTH)
        .replace("²", "^2")
        .replace("³", "^3")
        .lower()
        .strip()
    )
    while marked := _EMPHASIS.fullmatch(text):
        text = marked[2].strip() + marked[3]
    return text[:-1] if text.endswith((".", "。")) else text


def read_number(text: str) -> Answer | None:
    """As ``read`` for ``12``, ``-3.50``, ``.5``, ``+7/2``, ``140°``, ``140 degrees``; else None."""
    # Length first, then strip: neither the pattern nor int() ever sees a long string.
    if len(text) > MAX_ANSWER_CHARACTERS:
        return None
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    sign, magnitude, degree = match.groups()
    try:
        value = Fraction(magnitude)
    except ZeroDivisionError:  # "1/0" fits the grammar and has no value
        return None
    if "/" in magnitude and value.denominator == 1:
        return None  # 14/2 is still to be calculated
    return Answer(value if sign in ("", "+") else -value, "°" if degree else None)


def is_same_unit(a: str, b: str) -> bool:
    """Whether two canonical units are the same; those of no named length fit any of their power."""
    (unit, _, power), (other, _, other_power) = a.partition("^"), b.partition("^")
    return power == other_power and (unit == other or ANY_UNIT in (unit, other))


class _Reader:
    """Recursive descent over the tokens of one text. Every method may raise UnreadableError."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []  # (kind, text), the last one first
        self.depth = 0
        end = 0
        while end < len(text):
            match = _TOKEN.match(text, end)
            if match is None or match.lastgroup is None:
                raise UnreadableError
            if match.lastgroup != "skip":
                self.tokens.append((match.lastgroup, match.group()))
            end = match.end()
        if text.count("$") % 2:
            raise UnreadableError
        self.tokens.reverse()

    def next_kind(self, ahead: int = 1) -> str:
        return self.tokens[-ahead][0] if len(self.tokens) >= ahead else "end"

    def take(self, kind: str) -> str | None:
        """The next token's text if it is of ``kind``; it is then used up."""
        return self.tokens.pop()[1] if self.next_kind() == kind else None

    def need(self, kind: str) -> str:
        token = self.take(kind)
        if token is None:
            raise UnreadableError
        return token

    def answer(self) -> Answer:
        quantity = self.quantity()
        if self.tokens:
            raise UnreadableError
        return quantity

    def quantity(self) -> Answer:
        if self.take("boxed"):
            with_unit = self.group(self.quantity)
            unit = self.unit()
            if unit and with_unit.unit:
                raise UnreadableError
            return Answer(with_unit.value, unit or with_unit.unit)
        if self.is_letter(1):
            return Answer(self.choice(), None)
        if self.next_kind() == "open" and self.is_letter(2):
            return Answer(self.group(self.choice), None)
        before = [kind for kind, _ in self.tokens]
        terms = self.sum()
        if terms.keys() - {(1, 0)}:
            return Answer(tuple(sorted(terms.items())), self.unit())
        value = terms.get((1, 0), Fraction(0))
        used = sorted(set(before[len(self.tokens) :]) - {"plus", "minus", "open", "close"})
        numbers = before[len(self.tokens) :].count("number")
        if value.denominator == 1 and (used != ["number"] or numbers > 1):
            raise UnreadableError  # a whole number is written as one
        return Answer(value, self.unit())

    def is_letter(self, ahead: int) -> bool:
        """Whether a letter comes, which may be that of a unit: no quantity begins with one."""
        kinds = ("choice", "unit")
        if self.next_kind(ahead) not in kinds:
            return False
        letter = self.tokens[-ahead][1]
        return len(letter) == 1 and letter.isascii()

    def choice(self) -> str:
        return self.tokens.pop()[1].upper()

    def unit(self) -> str | None:
        if self.take("degree"):
            return "°"
        power = "2" if self.take("square") else "3" if self.take("cubic") else ""
        if self.next_kind() != "unit":
            if power:
                raise UnreadableError
            return None
        unit = _UNITS[self.need("unit")]
        if not power and self.take("raise"):
            power = self.number() if self.next_kind() == "number" else self.group(self.number)
            self.take("raise")  # pandoc's cm^2^
        elif not power and unit != ANY_UNIT and self.next_kind() == "number":  # cm2
            power = self.number()
        if power not in ("", "2", "3"):
            raise UnreadableError
        if not power:
            return None if unit == ANY_UNIT else unit
        return f"{unit}^{power}"

    def number(self) -> str:
        return self.need("number")

    def group(self, inside: Callable[[], T]) -> T:
        """What ``inside`` reads between brackets of one kind."""
        closing = _BRACKETS[self.need("open")]
        found = inside()
        if self.need("close") != closing:
            raise UnreadableError
        return found

    def sum(self) -> Terms:
        if self.next_kind() in ("plus", "minus"):
            total: Terms = {}
        else:
            total = self.product()
        while self.next_kind() in ("plus", "minus"):
            sign = 1 if self.tokens.pop()[0] == "plus" else -1
            part = self.product()
            if total.keys() & part.keys():
                raise UnreadableError  # 2+3 is still to be calculated
            total = surds.total((*total.items(), *((term, sign * q) for term, q in part.items())))
        return total

    def product(self) -> Terms:
        value = self.power()
        while True:
            if self.take("over"):
                below = self.signed(self.power)
                value = surds.multiply(value, surds.invert(below))
            elif self.take("times") or self.multiplies():
                factor = self.power()
                if not (value.keys() | factor.keys()) - {(1, 0)}:
                    raise UnreadableError  # 2*3, too
                value = surds.multiply(value, factor)
            else:
                return value

    def signed(self, inside: Callable[[], Terms]) -> Terms:
        """What ``inside`` reads after at most one sign."""
        negative = self.next_kind() == "minus"
        if self.next_kind() in ("plus", "minus"):
            self.tokens.pop()
        value = inside()
        return {term: -factor for term, factor in value.items()} if negative else value

    def multiplies(self) -> bool:
        """Whether what comes next is a factor without a sign; a brace is none, as in 0{3}{5}."""
        kinds = ("pi", "root", "frac")
        return self.next_kind() in kinds or (bool(self.tokens) and self.tokens[-1][1] == "(")

    def power(self) -> Terms:
        # Every way to go deeper leads through here.
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError
        value = self.atom()
        if self.take("raise"):
            value = surds.power(value, self.power())
        self.depth -= 1
        return value

    def atom(self) -> Terms:
        if self.take("pi"):
            return {(1, 1): Fraction(1)}
        if self.take("root"):
            return surds.root(self.power())
        if self.take("frac"):
            return surds.multiply(self.argument(), surds.invert(self.argument()))
        if self.next_kind() == "open":
            return self.group(self.sum)
        digits = self.number()
        value = surds.rational(Fraction(digits))
        if self.next_kind() != "frac":
            return value
        part = self.atom()  # 2\frac{√3}{3} is a product, 2\frac{1}{3} a mixed number
        if part.keys() - {(1, 0)}:
            return surds.multiply(value, part)
        if "." in digits or not 0 < part.get((1, 0), 0) < 1:
            raise UnreadableError
        return surds.rational(Fraction(digits) + part[1, 0])

    def argument(self) -> Terms:
        """Of a fraction: LaTeX takes a group or a single digit or symbol."""
        if self.next_kind() != "number":
            return self.group(self.sum) if self.next_kind() == "open" else self.atom()
        digits = self.number()
        if digits[0] == ".":
            raise UnreadableError
        if digits[1:].isdigit():
            self.tokens.append(("number", digits[1:]))
        elif digits[1:]:
            raise UnreadableError
        return surds.rational(Fraction(digits[0]))
