"""Kinds of answer: what is right, and beside each what only looks right."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from othink_pipeline.scoring.kinds import MAX_ITEMS, AnswerKind
from othink_pipeline.scoring.strict import score


def kind_of(name: str, **settings: Any) -> AnswerKind:
    block = {"kind": name, **({"relative": 0.05, "absolute": 0.0} if name == "number" else {})}
    found: AnswerKind = TypeAdapter(AnswerKind).validate_python({**block, **settings})
    return found


def is_right(name: str, given: str, gold: str, **settings: Any) -> bool:
    return score(f"<answer>{given}</answer>", gold, kind_of(name, **settings)).correct


@pytest.mark.parametrize(
    ("given", "gold", "right"),
    [
        ("105", "100", True),  # as ChartQA: 5 %, the bound included
        ("95", "100", True),
        ("105.01", "100", False),
        ("94.99", "100", False),
        ("-100", "100", False),
        ("-105", "-100", True),
        ("0", "0", True),
        ("0.001", "0", False),  # no share of nothing
        ("$1,234.50", "1234.5", True),
        ("1,234", "1234", True),
        ("1,23", "123", False),
        ("1.2e3", "1200", True),
        ("12 %", "12%", True),
        ("12", "12%", True),
        ("0.12", "12%", False),  # units are compared, never converted
        ("12 cm", "12 m", False),
        ("12 square units", "12 cm²", True),  # of no named length, as with exact
        ("12 square units", "12 cm³", False),
        ("12 square units", "12 cm", False),
        (r"\frac{1}{2}", "0.5", True),
        ("√2", "1.4142", True),
        ("99 or 100", "100", False),
        ("100 200", "100", False),
        ("about 100", "100", False),
        ("", "100", False),
        ("Yes", "yes", True),  # ChartQA has golds that are words
        ("Yes, 100", "yes", False),
        ("100", "yes", False),
        ("2020", '["2020", "2021"]', True),
    ],
)
def test_numbers_within_a_tolerance(given: str, gold: str, right: bool) -> None:
    assert is_right("number", given, gold) is right


def test_the_larger_tolerance_counts_to_the_digit() -> None:
    assert is_right("number", "0.1", "0", absolute=0.1)
    assert not is_right("number", "0.1000001", "0", absolute=0.1)
    assert is_right("number", "1.1", "1", relative=0.1, absolute=0.05)  # 0.1 exactly, in no float
    assert not is_right("number", "3", "4", relative=0.0, absolute=0.9)


@pytest.mark.parametrize(
    ("given", "gold", "right"),
    [
        ("B", "B. 30°", True),
        ("b", "B. 30°", True),
        ("(B)", "B. 30°", True),
        ("**B**", "B. 30°", True),
        (r"\boxed{B}", "B. 30°", True),
        ("30°", "B. 30°", True),
        ("30 degrees", "B. 30°", True),
        ("B. 30°", "B. 30°", True),
        ("(B) 30°", "B. 30°", True),
        ("B: 30", "B. 30°", True),
        ("B. 40°", "B. 30°", False),  # the letter of one, the text of another
        ("A. 30°", "B. 30°", False),
        ("A", "B. 30°", False),
        ("40°", "B. 30°", False),
        ("A or B", "B. 30°", False),
        ("B, C", "B", False),
        ("B. or C", "B", False),
        ("B. a cat", "B", True),
        ("B. a cat C. a dog", "B", False),
        ("the red car", "B. red car", True),
        ("not the red car", "B. red car", False),
        ("H", "H", True),
        ("M", "M", True),
        ("B)", "B. 30°", True),
        ("[b]", "B. 30°", True),
        ("B:", "B. 30°", True),
        ("Option B.", "B", True),
        ("Option B", "B. 30°", True),
        ("option C", "B", False),
        ("Option A", "B. Option A", True),  # its text
        ("Option", "B", False),
        ("U.S.", "C. U.S.", True),  # a text that looks like an option
        ("p.m.", "B. p.m.", True),
        ("J. K. Rowling", "B. J. K. Rowling", True),
        ("E. coli", "B. E. coli", True),
        ("B. E. coli", "B. E. coli", True),
        ("E. coli", "B. coli", False),
        ("C", "B. C", False),  # the letter, whatever B's text is
        ("BB", "B", False),
        ("", "B", False),
    ],
)
def test_choices(given: str, gold: str, right: bool) -> None:
    assert is_right("choice", given, gold) is right


@pytest.mark.parametrize(
    ("given", "gold", "right"),
    [
        ("Yes.", "yes", True),
        ("yes, it is", "yes", False),
        ("not yes", "yes", False),
        ("no", "yes", False),
        ("The Red  Car", "red car", True),
        ("red cars", "red car", False),
        ("car red", "red car", False),
        ("two", "2", True),
        ("2.0", "two", True),
        ("twenty", "2", False),
        ("\uff32\uff45\uff44", "red", True),
        ("`red`", "red", True),
        ('"red"', "red", True),
        (r"\text{red}", "red", True),
        ("grey", '["gray", "grey"]', True),
        ("gray grey", '["gray", "grey"]', False),
        ("true", '["yes", "true"]', True),
        ("", "red", False),
        (".", "red", False),
        ("0.5", ".5", True),  # its point is no punctuation
        ("“.5”.", ".5", True),
        ("5", ".5", False),
        (".5", "5", False),
        ("...5", "5", True),
        (".red", "red", True),
        ("don\u2019t know", "don't know", True),
        ("dont know", "don't know", False),
        ("red\u200b \ufeffcar\u200e", "red car", True),  # what nobody sees
        ("red\u200bcar", "red car", False),
    ],
)
def test_short_texts(given: str, gold: str, right: bool) -> None:
    assert is_right("text", given, gold) is right


@pytest.mark.parametrize(
    ("given", "gold", "as_list", "as_set"),
    [
        ("red, blue", '["red", "blue"]', True, True),
        ("red and blue", "red, blue", True, True),
        ("red, green, and blue", '["red", "green", "blue"]', True, True),
        ("['red', 'blue']", '["red", "blue"]', True, True),
        ("blue; red", '["red", "blue"]', False, True),
        ("{blue, red}", "red, blue", False, True),
        ("red", '["red", "blue"]', False, False),
        ("red, blue, green", '["red", "blue"]', False, False),
        ("red, red", '["red", "blue"]', False, False),
        ("red, red, blue", '["red", "blue", "blue"]', False, False),
        ("red, blue, blue", '["red", "blue", "blue"]', True, False),  # a set has no item twice
        ("1, 2.0", '["1", "2"]', True, True),
        ("1, 3", '["1", "2"]', False, False),
        ("", '["red"]', False, False),
        (".5, 2", '["0.5", "2"]', True, True),
        (".5, 2", '["5", "2"]', False, False),
        ("red,,blue", "red, blue", False, False),
    ],
)
def test_lists_have_an_order_and_sets_none(
    given: str, gold: str, as_list: bool, as_set: bool
) -> None:
    assert is_right("list", given, gold) is as_list
    assert is_right("set", given, gold) is as_set


@pytest.mark.parametrize(
    ("name", "gold", "target"),
    [
        ("exact", "12", "12"),
        ("exact", '["12", "12.0"]', "12"),
        ("choice", "B. 30°", "B"),
        ("choice", "red", "red"),
        ("text", '["yes", "true"]', "yes"),
        ("list", '["red", "blue"]', "red, blue"),
        ("set", '["1,5", "2"]', "1,5; 2"),
        ("list", '["salt and pepper", "oil"]', "salt and pepper; oil"),
        ("list", '["a、b", "c"]', "a、b; c"),
        ("list", '["a\\nb", "c"]', "a\nb; c"),
        ("number", "12%", "12%"),
    ],
)
def test_what_is_taught_is_right(name: str, gold: str, target: str) -> None:
    assert kind_of(name).target(gold) == target
    assert is_right(name, target, gold)


@pytest.mark.parametrize("name", ["list", "set"])
@pytest.mark.parametrize(
    "gold",
    [
        '["a;b", "c"]',
        '["salt and pepper"]',  # two items, as everyone would write it
        "[red, blue]",
        '["red", "blue"',
        '["red"',
        "[1, 2]",
        json.dumps(["word " * 60, "word " * 60]),
    ],
)
def test_items_that_no_text_says_are_no_gold(name: str, gold: str) -> None:
    assert kind_of(name).read_golds(gold) == ()


@pytest.mark.parametrize("name", ["exact", "number", "choice", "text", "list", "set"])
def test_hostile_answers_cost_little_and_earn_nothing(name: str) -> None:
    started = time.process_time()
    for piece in ("*", "(", "[", "a ", "A.", "1,", ";", "\n", "e9", "**", "\ud800", "½", "\0"):
        for size in (300, 100_000):
            text = (piece * size)[:size]
            for gold in ("5", "B", "red", '["red", "blue"]', text):
                verdict = score(f"<answer>{text}</answer>", gold, kind_of(name))
                assert not verdict.correct or gold == text
    assert time.process_time() - started < 5


def test_more_items_than_the_limit_are_not_read() -> None:
    items = [str(number) for number in range(MAX_ITEMS + 1)]
    assert is_right("set", ", ".join(items[:-1]), json.dumps(items[:-1]))
    assert not is_right("set", ", ".join(items), json.dumps(items))


def test_the_block_is_closed() -> None:
    with pytest.raises(ValidationError):
        kind_of("text", relative=0.05)
    with pytest.raises(ValidationError):
        kind_of("number", relative=-1)
    with pytest.raises(ValidationError):
        kind_of("regex")


def test_votes_are_counted_by_what_answers_mean() -> None:
    def name(kind: str, text: str) -> str | None:
        return score(f"<answer>{text}</answer>", "5", kind_of(kind)).canonical

    assert name("text", "Two.") == name("text", "2.0") == "2"
    assert name("set", "b, a") == name("set", "a and b") != name("list", "b, a")
    assert name("choice", "(b)") == name("choice", "B. 30°") == "B"
    assert name("number", "1,000") == name("number", "1e3")
