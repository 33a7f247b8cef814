"""Exact arithmetic with finite sums of ``q √r π^k``: what the grammar of ``answers`` reads.

``q`` is a fraction, ``r`` a square-free whole number, ``k`` a whole number. These terms are
linearly independent over the fractions, so two sums are equal exactly where their terms are.
Within the limits below no operation takes more than some milliseconds. Every function raises
``UnreadableError`` where there is no such value, or it lies beyond a limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import gcd, isqrt

MAX_TERMS = 6
MAX_BITS = 512
"""Of numerators and denominators: more than any answer has digits."""
MAX_RADICAND = 10**6
MAX_EXPONENT = 16

Terms = dict[tuple[int, int], Fraction]
"""``{(r, k): q}`` stands for the sum of ``q √r π^k``; no ``q`` is 0."""


class UnreadableError(ValueError):
    """There is no such value, or it is beyond a limit; or a text is not in the grammar."""


def rational(value: Fraction) -> Terms:
    """A fraction as a sum of one term."""
    return total([((1, 0), value)])


def total(items: Iterable[tuple[tuple[int, int], Fraction]]) -> Terms:
    """The sum of ``((r, k), q)``, of which several may have the same ``(r, k)``."""
    terms: Terms = {}
    for term, factor in items:
        terms[term] = terms.get(term, Fraction(0)) + factor
    terms = {term: factor for term, factor in terms.items() if factor}
    for (radicand, power), factor in terms.items():
        size = max(factor.numerator.bit_length(), factor.denominator.bit_length())
        if size > MAX_BITS or radicand > MAX_RADICAND or abs(power) > MAX_EXPONENT:
            raise UnreadableError
    if len(terms) > MAX_TERMS:
        raise UnreadableError
    return terms


def multiply(a: Terms, b: Terms) -> Terms:
    """``a b``."""
    items = []
    for (r, i), p in a.items():
        for (s, j), q in b.items():
            common = gcd(r, s)  # √r √s = common √(r s / common²), square-free again
            items.append((((r // common) * (s // common), i + j), p * q * common))
    return total(items)


def invert(a: Terms) -> Terms:
    """``1 / a``."""
    if not a:
        raise UnreadableError  # a division by zero
    if len(a) == 1:
        [((radicand, power), factor)] = a.items()
        return total([((radicand, -power), 1 / (factor * radicand))])
    radicand = max(r for r, _ in a)
    if radicand == 1:
        raise UnreadableError  # 1/(1 + π) is no finite sum of terms
    # With the sign of √p turned, for a prime p, the product is free of √p: one prime less.
    prime = next((d for d in range(2, isqrt(radicand) + 1) if radicand % d == 0), radicand)
    conjugate = {(r, k): -q if r % prime == 0 else q for (r, k), q in a.items()}
    return multiply(conjugate, invert(multiply(a, conjugate)))


def power(base: Terms, exponent: Terms) -> Terms:
    """``base^exponent``; roots aside no power of a fraction, which is still to be calculated."""
    if exponent.keys() - {(1, 0)}:
        raise UnreadableError
    times = exponent.get((1, 0), Fraction(0))
    if times.denominator == 2:
        base, times = root(base), 2 * times
    elif not base.keys() - {(1, 0)}:
        raise UnreadableError  # 2^3 is still to be calculated, 0^0 means nothing
    if times.denominator != 1 or abs(times) > MAX_EXPONENT:
        raise UnreadableError
    value = _repeat(base, abs(times.numerator))
    return value if times >= 0 else invert(value)


def _repeat(base: Terms, times: int) -> Terms:
    if times == 0:
        return {(1, 0): Fraction(1)}
    half = _repeat(base, times // 2)
    square = multiply(half, half)
    return multiply(square, base) if times % 2 else square


def root(a: Terms) -> Terms:
    """``√a`` of a fraction that is not negative."""
    if not a:
        return a
    square = a.get((1, 0), Fraction(0))
    if a.keys() != {(1, 0)} or square < 0:
        raise UnreadableError  # a nested radical, √π or an imaginary number
    if max(square.numerator, square.denominator) > MAX_RADICAND:
        raise UnreadableError
    above, r = _take_square(square.numerator)
    below, s = _take_square(square.denominator)
    return total([((r * s, 0), Fraction(above, below * s))])  # √(r/s) = √(r s)/s


def _take_square(n: int) -> tuple[int, int]:
    """``(a, r)`` with ``n = a² r`` and ``r`` square-free, for n in 1..MAX_RADICAND."""
    root = next(a for a in range(isqrt(n), 0, -1) if n % a**2 == 0)
    return root, n // root**2
