"""Adversarial: garbage, an empty answer or one that merely contains the target earns nothing."""

from __future__ import annotations

import sys
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from othink_pipeline.scoring import r1v
from othink_pipeline.scoring.answers import MAX_ANSWER_CHARACTERS
from othink_pipeline.scoring.strict import Verdict, parse_answer, score
from tests.support.fuzz_scoring import fuzz


def answer(text: str) -> str:
    return f"<think>why</think><answer>{text}</answer>"


def test_parse_answer_is_exact() -> None:
    values = {
        **{text: Fraction(5) for text in ("5", " 5\n", "+5", "005", "5.0", "5°", "5 degrees")},
        **{text: Fraction(-5) for text in ("-5", "\u22125")},
        **{text: Fraction(-1, 2) for text in ("-.5", "-0.5", "-1/2")},
        "1 degree": Fraction(1),
        "-0": Fraction(0),
    }
    assert {text: parse_answer(text) for text in values} == values


def test_parse_answer_reads_nothing_but_a_plain_number() -> None:
    """Not what ``score`` reads besides."""
    texts = ["8√3", "65π", "A. 5", "- 5", "5.", "1 / 2", "1.5/2", "1/2/3", "1/-2", "\uff13"]
    texts += ["", "5 5", "1/0", "14/2", "٣", "9" * (MAX_ANSWER_CHARACTERS + 1)]
    assert {text: parse_answer(text) for text in texts} == dict.fromkeys(texts)


def test_the_longest_answer_still_parses() -> None:
    digits = "9" * MAX_ANSWER_CHARACTERS
    assert parse_answer(digits) == Fraction(int(digits))


def test_a_perfect_completion() -> None:
    completion = "<think>\n2+3=5\n</think>\n<answer> 5 </answer>"
    assert score(completion, "5") == Verdict(
        extracted="5",
        correct=True,
        correct_any=True,
        format_ok=True,
        unparseable=False,
        thought=True,
        canonical="5",
        reason="",
    )


@pytest.mark.parametrize(
    ("given_answer", "gold", "correct"),
    [
        ("5", "5", True),
        ("3.0", "3", True),
        ("1/2", "0.5", True),
        ("2/4", "1/2", True),
        ("140", "140°", True),
        ("25", "5", False),
        ("5", "25", False),
        ("-5", "5", False),
        ("5.0000001", "5", False),
        ("5 or 6", "5", False),
        ("٣", "3", False),
        ("", "5", False),
        ("0", "", False),
        ("", "", False),
        ("xy", "xy", False),
        (r"7\sqrt{2}", "7√{2}", True),
        ("7", "7√{2}", False),  # the whole gold, not what a parser makes of its beginning
        ("11π cm", "11πcm^{2}", False),
    ],
)
def test_correct_is_exact_equality_with_a_gold_that_reads(
    given_answer: str, gold: str, correct: bool
) -> None:
    verdict = score(answer(given_answer), gold)
    assert (verdict.correct, verdict.correct_any) == (correct, correct)


@pytest.mark.parametrize(
    ("completion", "gold", "canonical", "reason"),
    [
        (answer("2√3 cm"), "√{12}", "2*sqrt(3)", ""),
        (answer("6.0"), "5", "6", "another value"),
        (answer("5 cm"), "5m", "5", "another unit"),
        (answer("6 cm"), "5m", "6", "another value"),
        (answer("b"), "B", "B", ""),
        (answer("five"), "5", None, "the answer does not read"),
        (answer(""), "5", None, "the answer does not read"),
        ("5", "5", None, "not exactly one answer tag"),
        (answer("5"), "about 5", "5", "the gold does not read"),
        (answer("five"), "about 5", None, "the gold does not read"),
    ],
)
def test_a_verdict_says_why_and_in_one_spelling(
    completion: str, gold: str, canonical: str | None, reason: str
) -> None:
    verdict = score(completion, gold)
    assert (verdict.canonical, verdict.reason) == (canonical, reason)
    assert verdict.unparseable is (canonical is None)


def test_an_unknown_judge_is_refused() -> None:
    with pytest.raises(ValueError, match=r"judge must be one of .*'counting'.* got 'algebra'"):
        r1v.score("5", "5", "algebra")  # type: ignore[arg-type]


def test_strict_needs_neither_the_main_thread_nor_a_deep_stack() -> None:
    verdicts: list[Verdict] = []
    hostile = [
        answer(text) for text in ("(" * 128, "√" * 128, "9**" * 42 + "9", r"\frac" * 25, "√2")
    ]

    def judge() -> None:
        verdicts.extend(score(completion, "√2") for completion in hostile)

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(150)
    try:
        thread = threading.Thread(target=judge)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
    assert [verdict.correct for verdict in verdicts] == [False] * 4 + [True]


def test_the_fuzz_target_finds_nothing() -> None:
    figures, fault = fuzz(seed=7, inputs=150)
    assert fault is None
    assert figures.inputs == 150
    assert figures.parsed > figures.correct > 3  # it reaches what it is to test
    assert figures.worst_mb < 50


@pytest.mark.parametrize(
    "completion",
    [
        "<answer>5</answer><answer>5</answer>",
        "<answer>6</answer><answer>5</answer>",
        "<answer><answer>5</answer></answer>",
        "<answer>5</answer></answer>",
        "</answer>5<answer>",
        "<answer>5",
        "5</answer>",
        "<ANSWER>5</ANSWER>",
        "<answer >5</answer>",
        "5",
    ],
)
def test_without_exactly_one_tag_nothing_is_extracted(completion: str) -> None:
    verdict = score(completion, "5")
    assert verdict.extracted is None
    assert verdict.unparseable
    assert not verdict.correct
    assert verdict.correct_any  # the ability was there, the format was not


@pytest.mark.parametrize(
    ("completion", "correct_any"),
    [
        ("The answer is 5.", True),
        ("so x=5", True),
        ("it costs $5", True),
        ("12-5", True),  # a minus between numbers is no sign
        ("5 of 25", False),  # the last number counts
        ("The answer is 25.", False),
        ("The answer is -5.", False),
        ("The answer is \u22125.", False),
        ("The answer is 1,005", False),
        ("The answer is 0.5", False),
        ("The answer is 10/5/5", False),
        ("x5", False),
        ("٣5", False),
        ("5٣", False),
        ("five", False),
        ("", False),
    ],
)
def test_correct_any_reads_the_last_number(completion: str, correct_any: bool) -> None:
    verdict = score(completion, "5")
    assert verdict.correct_any is correct_any
    assert not verdict.correct


def test_a_wrong_or_unreadable_tagged_answer_is_not_rescued_by_the_text() -> None:
    assert not score("<answer>6</answer> 5", "5").correct_any
    assert not score("<answer>B. 5</answer>", "5").correct_any
    assert score("<answer>B. 5</answer>", "5").unparseable
    assert not score("<answer>B. 5</answer>", "C").unparseable


def test_a_thousands_separator_never_hits_a_gold_of_zero() -> None:
    assert not score("It is 1,000", "0").correct_any


@pytest.mark.parametrize(
    ("completion", "format_ok", "thought"),
    [
        ("<think>a</think><answer>5</answer>", True, True),
        ("<think>a</think> \n\t<answer>5</answer>", True, True),
        ("<think>a\nb</think><answer>\n5\n</answer>", True, True),
        ("<think></think><answer>5</answer>", True, False),
        ("<think> \n </think><answer>5</answer>", True, False),
        ("<think>a</think><answer></answer>", True, True),
        ("<answer>5</answer>", False, False),
        ("<think>a<answer>5</answer>", False, False),
        ("<think>a</think>so<answer>5</answer>", False, True),
        (" <think>a</think><answer>5</answer>", False, True),
        ("<think>a</think><answer>5</answer>\n", False, True),
        ("<think>a</think><answer>5</answer>.", False, True),
        ("<answer>5</answer><think>a</think>", False, True),
        ("<think><answer>5</answer></think>", False, True),
        ("<think>a</think><answer>5</answer><answer>5</answer>", False, True),
        ("<think>a</think><think>b</think><answer>5</answer>", False, False),
        ("<think><think>a</think><answer>5</answer>", False, False),
        ("</think>a<think><answer>5</answer>", False, False),
    ],
)
def test_format_and_thought(completion: str, format_ok: bool, thought: bool) -> None:
    verdict = score(completion, "5")
    assert (verdict.format_ok, verdict.thought) == (format_ok, thought)


@pytest.mark.parametrize(
    "pattern",
    [*("1", "-", " ", "1,", "1/", "-1", "1٣", "1.", "<think>", "<answer>", "</answer>", "<", "\n")],
)
def test_hostile_completions_cost_little_and_earn_nothing(pattern: str) -> None:
    text = (pattern * 100_000)[:100_000]
    started = time.process_time()
    for completion in (text, answer(text), f"<answer>{text}"):
        assert not score(completion, "5").correct_any
    assert time.process_time() - started < 1


tags = st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "5", "1/0", "-", " ", "°"])
texts = st.text() | st.lists(tags | st.text(max_size=3), max_size=12).map("".join)


@given(completion=texts, gold=st.just("5") | texts)
def test_score_never_raises_and_its_fields_agree(completion: str, gold: str) -> None:
    verdict = score(completion, gold)
    assert verdict.correct <= verdict.correct_any
    assert not (verdict.correct and verdict.unparseable)
    assert not (verdict.format_ok and verdict.extracted is None)
