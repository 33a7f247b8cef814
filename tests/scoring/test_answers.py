"""The grammar: what each spelling means, what is not read, and that nothing is rounded."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from othink_pipeline.scoring.answers import (
    MAX_ANSWER_CHARACTERS,
    Answer,
    read,
)
from othink_pipeline.scoring.surds import MAX_BITS, MAX_RADICAND, MAX_TERMS


def canonical(text: str) -> str | None:
    answer = read(text)
    return None if answer is None else answer.canonical


def cases(*rows: str) -> list[str]:
    """Two spaces apart."""
    return [text for row in rows for text in row.split("  ")]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (r".5  0.5  \frac12  1/2  +.5  .50", "1/2"),
        (r"-.5  -0.5  -1/2  1/-2  (-1)/2  1/(-2)  \frac{-1}{2}  \frac{1}{-2}", "-1/2"),
        (r"**73**  *73*  __73__  `73`  **73.**  **73**.  ** 73 **  ***73***  **$73$**", "73"),
        ("\uff17\uff13  \uff17\uff13\uff0e\uff10  \uff08\uff17\uff13\uff09", "73"),
        ("G  g  (G)  G.  **G**  \uff27  G. 30°  (G) 30°  G) 30  G: 5 cm  \uff27\uff0e30", "G"),
        ("M  m  (m)  m.", "M"),  # no quantity begins with a unit
        (r"7  7.0  +7  (7)  {7}  7.  $7$  \(7\)  \text{7}", "7"),
        ("-3  \u22123  - 3  (-3)  -3.0", "-3"),
        (r"\frac{9}{4}  \dfrac94  \tfrac{9}4  9/4  2.25  2\frac{1}{4}  9÷4", "9/4"),
        (r"6√{3}  6\sqrt{3}  6\sqrt3  6*sqrt(3)  6sqrt3  6 √3  √108  $6\sqrt{3}$", "6*sqrt(3)"),
        (r"6×√3  6\cdot\sqrt{3}  \frac{18}{√{3}}  6*3^(1/2)  6·3**0.5  6√6/√2", "6*sqrt(3)"),
        (r"\frac{√{6}}{4}  √6/4  \frac{1}{4}√{6}  \frac14√6  \sqrt{\frac{3}{8}}", "1/4*sqrt(6)"),
        (r"9π  9\pi  9pi  9 * pi  π×9  $9\pi$  \boxed{9\pi}  $\boxed{9\pi}$.", "9*pi"),
        (r"\frac{1}{6}π  π/6  \frac{\pi}{6}  \frac\pi6  1/6π", "1/6*pi"),
        (r"√5+1  1+\sqrt{5}  \frac{4}{\sqrt{5}-1}  \left(1+\sqrt5\right)", "1+sqrt(5)"),
        (r"4√{2}-4  -4+4\sqrt{2}  4(√2-1)  4/(√2+1)", "-4+4*sqrt(2)"),
        (r"2\frac{√3}{2}  √3  \frac{3}{√3}  √√9  27^(1/2)/3", "sqrt(3)"),
        ("π²  π^2  π^{2}  π·π", "pi^(2)"),
        (r"1/π  \frac{1}{\pi}  π^{-1}", "pi^(-1)"),
        ("0  -0  (0)  0.0", "0"),
        ("√2√3  √6  √{2}*√{3}", "sqrt(6)"),
        (r"3/2  \frac{√9}{2}  (3)/(2)  1/(2/3)  1.50", "3/2"),
        (r"C  (C)  C.  c  (c)  \text{C}  \boxed{C}  $C$  " + "\uff08C\uff09", "C"),
    ],
)
def test_spellings_of_one_value(texts: str, expected: str) -> None:
    assert {text: canonical(text) for text in cases(texts)} == dict.fromkeys(cases(texts), expected)


@pytest.mark.parametrize(
    ("texts", "unit"),
    [
        (r"9°  9 degrees  9 deg  9^\circ  9^{\circ}  9{}^\circ  9º  9度  $9^\circ$", "°"),
        (r"9cm  9 cm  9\text{ cm}  9\,\mathrm{cm}  9 centimeters  9厘米  9 CM  $9$ cm", "cm"),
        (r"9cm²  9cm^2  9cm^{2}  9cm^2^  9 cm2  9\text{ cm}^2  9平方厘米", "cm^2"),
        (r"9 square meters  9 sq m  9平方米  9m^2  \boxed{9}\text{ m}^2", "m^2"),
        ("9 m^3  9立方米  9 cubic metres", "m^3"),
        (r"9m  9米  9 metres  \boxed{9\text{ m}}", "m"),
        ("9mm  9毫米", "mm"),
        ("9 nautical miles  9海里", "nautical mile"),
        ("9s  9秒  9 seconds", "s"),
        ("9小时  9 hours  9h", "h"),
        ("9 square units  9平方unit  9 units²  9 units^2  9 unit^{2}", "unit^2"),
        ("9 units³  9 cubic units", "unit^3"),
        ("9  9 units  9 unit", None),
    ],
)
def test_spellings_of_one_unit(texts: str, unit: str | None) -> None:
    nine = Answer(Fraction(9), unit)
    assert {text: read(text) for text in cases(texts)} == dict.fromkeys(cases(texts), nine)


def test_what_is_not_exactly_one_answer_is_not_read() -> None:
    texts = cases(
        " ",
        r".  five  5 5  5 or 6  5, 6  5 apples  A or B  AB  5 A  A5  (B  {B)  five cm  米",
        r"2x  x=5  AB=5  ≈5  5%  $5  5$  $5$6$  5$6$  #5  5!  1:4  5..  ..5  50%  22°30'",
        "1,000  1_000  1e3  0x5  inf  nan  ٣  5\u200b  5\x00  5\x1b  ½  2\u2075  ①  \ud800",
        r"..5  5..5  1.2.3  .5.5  .  -.  \frac.5.5  .5\frac12  1/.",
        "**5  5**  *5  *  **  ****  `  __",
        r"B. C  A. B. 5  A. 5 B. 6  A. x  (B 5  B) or C)  .A 5  AB. 5  5. A",
        "1/--2  1/-  4/-2  √3*-2",
        r"--5  +-5  2*-3  5-  5*  /5  5//2  1/0  1/(√2-√2)  \frac{1}{0}  0^0  0^{-1}",
        r"()  (5  5)  (5}  {5)  {}  \frac{1}  \frac{}{3}  \frac  √  √-4  \sqrt{}  √(1-2)",
        r"0{3}{5}  2{3}  π2  √3 2  2\frac{9}{5}  \frac{1}{2}3  1.5\frac{1}{2}  2\frac{0}{3}",
        r"√π  √(2+√2)  1/(1+π)  2^√2  2^(1/3)  π^(1/2)  sin(30)  \sqrt[3]{2}  log 5  \frac1.52",
        r"14/2  0/5  \frac{18}{3}  112/(1/2)  12/(1/3)  √49  √√16  (√2)^6  4^(3/2)  √9√2√2",
        r"0π  √0  5+0  5+0π  12π/π  3*π*4/π  \frac{7}{1}  7/1  2\frac{4}{2}",
        r"2+3  7-2  √3+√3  2*3  2(3)  10 (10)  2·3·√3  2^3  5²  1^1  \frac{2+3}{4}  √(2+2)  8*2π",
        r"cm  °  5 cm m  5 cm 3 m  cm 5  5 m^4  5 m^π  5 square  5 m/s  5 cm°  5°°  5 s^m",
        r"5 units 2  5 units^4  5 square",
        r"5 miles  5 pieces  \boxed{5 cm} m  \boxed{5  \boxed{}  2\boxed{5}  <answer>5  </answer>",
        r"9**9**9  9^9^9  (√2)^17  (√2)^(-17)  √1000001  π^17  __import__('os')  \input{x}",
    )
    assert {text: read(text) for text in texts} == dict.fromkeys(texts)


@pytest.mark.parametrize(
    ("given_answer", "gold", "right"),
    [
        ("3", "3cm", True),
        ("3 cm", "3cm", True),
        ("3 centimeters", "3厘米", True),
        ("3 m", "3cm", False),
        ("3 cm^2", "3cm", False),
        ("3°", "3cm", False),
        ("0.03 m", "3cm", False),  # units are compared, never converted
        ("3 cm", "3", True),  # a gold without a unit leaves it open
        ("3 units", "3cm", True),
        ("3 square units", "3cm^2", True),
        ("3 square units", "3平方米", True),
        ("3 square units", "3cm", False),
        ("3 cubic units", "3cm^2", False),
        ("140", "140°", True),
        ("140°", "140", True),
        ("16π", "16π平方米", True),
        ("16", "16π平方米", False),
        ("4", "4√{3}", False),
        ("6.93", "4√{3}", False),
        ("6.928203230275509", "4√{3}", False),
        ("3.14", "π", False),
        ("0.333333", r"\frac{1}{3}", False),
        ("51/5", "10.2米", True),
        ("2√3", "√{12}", True),
        ("2√3", "√{13}", False),
        ("B", "B", True),
        ("b.", "B", True),
        ("A", "B", False),
        ("2", "B", False),
        ("B", "2", False),
        ("A. 30°", "A", True),
        ("A", "A. 30°", True),
        ("A. 30", "(A) 30°", True),
        ("A. 40°", "A. 30°", False),
        ("B. 30°", "A. 30°", False),
        ("B. 5", "5", False),  # the letter says more than the number
        ("30°", "A. 30°", False),
        ("16 units²", "16cm^2", True),
        ("16 units²", "16cm", False),
        ("1/-2", "1/2", False),
        ("-.5", ".5", False),
        ("**73**", "7", False),
        ("G", "C", False),
    ],
)
def test_an_answer_is_right_by_its_value_unless_its_unit_contradicts(
    given_answer: str, gold: str, right: bool
) -> None:
    given_value, gold_value = read(given_answer), read(gold)
    assert given_value is not None
    assert gold_value is not None
    assert given_value.answers(gold_value) is right


def test_limits_are_the_last_values_that_are_read() -> None:
    assert canonical("(" * 11 + "5" + ")" * 11) == "5"
    assert canonical("(" * 12 + "5" + ")" * 12) is None
    assert canonical("√3*(√2)^16") == "256*sqrt(3)"
    assert canonical("√3*(√2)^17") is None
    assert canonical(f"√3*√{MAX_RADICAND}") == "1000*sqrt(3)"
    assert canonical(f"√3*√{MAX_RADICAND + 1}") is None
    assert canonical("√2*√499979") == "sqrt(999958)"
    assert canonical("√2*√999983") is None  # the product's radicand counts too
    assert canonical("1+√2+√3+√5+√7+π") is not None
    assert canonical("1+√2+√3+√5+√7+π+√11") is None
    assert canonical("((1+√2)^16)^16") is not None
    assert canonical("((3+√2)^16)^16") is None  # about 2^548
    digits = "1" * MAX_ANSWER_CHARACTERS
    assert canonical(digits) == digits
    assert canonical(digits + "1") is None
    assert canonical(f"√2+{digits[3:]}") == f"{digits[3:]}+sqrt(2)"
    assert canonical(f"√2+{digits[2:]}") is None


Pair = tuple[str, float]  # a text and its value by another way: floating point
FACTORS = {
    r"\sqrt{2}": math.sqrt(2),
    "√12": math.sqrt(12),
    "sqrt(5)": math.sqrt(5),
    "π": math.pi,
    "": 1.0,
}
fractions = st.builds(Fraction, st.integers(1, 12), st.integers(1, 12))


def write_difference(terms: dict[str, Fraction]) -> Pair:
    """The first term minus the others."""
    spelt = [rf"\frac{{{q.numerator}}}{{{q.denominator}}}{factor}" for factor, q in terms.items()]
    first, *others = (float(q) * FACTORS[factor] for factor, q in terms.items())
    return "-".join(spelt), first - sum(others)


def sums(*factors: str, most: int) -> st.SearchStrategy[Pair]:
    some = st.dictionaries(st.sampled_from(factors), fractions, min_size=1, max_size=most)
    return some.filter(lambda terms: terms.keys() != {""}).map(write_difference)


a_sum, a_factor = sums(*FACTORS, most=3), sums(*FACTORS, most=2)
a_divisor = sums(*(factor for factor in FACTORS if factor != "π"), most=2)
expressions = st.one_of(
    a_sum,
    st.builds(lambda a, b: (f"({a[0]})*({b[0]})", a[1] * b[1]), a_sum, a_factor),
    st.builds(lambda a, b: (rf"\frac{{{a[0]}}}{{{b[0]}}}", a[1] / b[1]), a_sum, a_divisor),
    st.builds(lambda a: (f"({a[0]})^2", a[1] ** 2), a_factor),
)


def in_floating_point(answer: Answer) -> float:
    text = re.sub(r"sqrt\((\d+)\)", r"(\1)**0.5", answer.canonical).replace("^", "**")
    return float(eval(text.replace("pi", repr(math.pi))))


@given(expressions)
def test_values_are_those_of_floating_point(expression: Pair) -> None:
    text, value = expression
    answer = read(text)
    if answer is None:  # a whole number is to be written as one
        assert value == pytest.approx(round(value), abs=1e-9)
        return
    assert in_floating_point(answer) == pytest.approx(value, rel=1e-6, abs=1e-6)


@given(expressions, expressions)
def test_equal_exactly_where_floating_point_cannot_tell_them_apart(a: Pair, b: Pair) -> None:
    left, right = read(a[0]), read(b[0])
    assume(left is not None and right is not None)
    assert left is not None and right is not None  # for the type checker
    assert (left.value == right.value) == math.isclose(a[1], b[1], rel_tol=1e-9, abs_tol=1e-9)


symbols = st.sampled_from(
    [*"0123456789.+-*/^√π(){}$ °²cm米", r"\frac", r"\sqrt{", r"\boxed{", "pi"]
)


@settings(max_examples=300)
@given(st.lists(symbols, max_size=60).map("".join) | st.text(max_size=140))
def test_whatever_is_read_stays_within_the_limits(text: str) -> None:
    answer = read(text)
    if answer is None:
        return
    assert len(text) <= MAX_ANSWER_CHARACTERS
    terms = answer.value if isinstance(answer.value, tuple) else ()
    assert len(terms) <= MAX_TERMS
    for (radicand, _), factor in terms:
        assert radicand <= MAX_RADICAND
        assert max(abs(factor.numerator), factor.denominator) < 2**MAX_BITS
    again = read(answer.canonical)
    assert (again is None) == (len(answer.canonical) > MAX_ANSWER_CHARACTERS)
    assert again is None or again.value == answer.value
