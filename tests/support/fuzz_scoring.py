"""Fuzz rule strict: ``python -m tests.support.fuzz_scoring --seconds 60 --seed 0``.

Mutates answers and tags and checks what must hold for every completion: nothing raises, equal
texts get equal verdicts, the canonical text reads back, and one verdict costs at most 50 ms of
computing and 50 MB. It runs off the main thread, as a reward may. Prints the worst of each as JSON;
exit status 1 and the input where something does not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
import tracemalloc
from dataclasses import asdict, dataclass

from othink_pipeline.scoring.answers import MAX_ANSWER_CHARACTERS
from othink_pipeline.scoring.strict import score

LIMIT_MS = 50.0
LIMIT_MB = 50.0
HUGE = 100_000
MEMORY_EVERY = 20  # tracemalloc slows everything down

ATOMS = [
    *("0", "1", "7", "12", "140", "999983", "2.50", "0.001", "9" * 40, "1/2", "1/0", "٣", "\uff13"),
    *("π", "pi", r"\pi", "√", "√{3}", "sqrt(2)", r"\sqrt{999983}", r"\frac", r"\frac12", "√√"),
    *(r"\frac{1}{2}", r"\dfrac{√{3}}{3}", "(√2+√3+√5)", "1/(√2+√3+√5)", "^", "**", "^16", "^{1/2}"),
    *(
        "+",
        "-",
        "\u2212",
        "*",
        "/",
        "×",
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        "{}",
        "$",
        r"\(",
        r"\boxed{",
    ),
    *(
        "°",
        r"^\circ",
        "cm",
        " m^2",
        "²",
        "平方米",
        "海里",
        r"\text{ cm}",
        "units",
        "degrees",
        "square",
    ),
    *("A", "(B)", "or", "=", ",", "%", ".", " ", "\n", "\0", "\x1b", "\u200b", "\ud800", "İ", "e9"),
    *("<think>", "</think>", "<answer>", "</answer>", "<answer >", "__import__('os')", "9**9**9"),
]
SEEDS = [
    *("5", "-3.50", "140°", "8√{3}", "65π", r"\frac{10√{3}}{3}m", "27cm^{2}", "5cm^2^", "400cm²"),
    *(
        "(√{3}+1)小时",
        "16π平方米",
        r"\boxed{27\text{ cm}^2}",
        r"$\frac{2}{\sqrt{3}-1}$",
        "B",
        "(c).",
    ),
    *(
        "(1+√2+√3+√5)^16",
        "((1+√2+√3)^9)^9",
        "1/(1+√2+√3+√5)/(1-√2+√3-√7)",
        "9^9^9^9^9",
        "√999983" * 18,
    ),
    *("(1+√2+√3+√6)^16*" * 7 + "√2", "1/(1+√2+√3+√6)^16*" * 6 + "π"),  # the dearest we know
    *("(" * 60 + "1" + ")" * 60, "√" * 128, "1^" * 63 + "1", "-" * 128, r"\frac1" * 20, "π" * 128),
]


@dataclass
class Figures:
    """What a run saw; the worst verdict's computing time and memory."""

    inputs: int = 0
    parsed: int = 0
    correct: int = 0
    worst_ms: float = 0.0
    worst_mb: float = 0.0


def draw_answer(rng: random.Random) -> str:
    """An answer near the grammar: a seed or atoms, then some edits."""
    text = (
        rng.choice(SEEDS)
        if rng.random() < 0.6
        else "".join(rng.choices(ATOMS, k=rng.randint(0, 24)))
    )
    for _ in range(rng.choice([0, 0, 1, 2, 5])):
        start = rng.randint(0, len(text))
        end = min(len(text), start + rng.choice([0, 0, 1, 4]))
        text = text[:start] + rng.choice(ATOMS) + text[end:]
    return text


def draw_completion(rng: random.Random, answer: str) -> str:
    """The answer in a tag, mostly; else in broken tags, or something huge."""
    shape = rng.random()
    if shape < 0.85:
        return f"<think>{rng.choice(ATOMS)}</think><answer>{answer}</answer>"
    if shape < 0.98:
        return "".join(rng.choices([*ATOMS, answer], k=rng.randint(0, 30)))
    part = rng.choice([*ATOMS, *SEEDS, r"\frac{", "<answer>" + answer, answer + "</answer>"]) or " "
    huge = (part * (HUGE // len(part) + 1))[:HUGE]
    return huge if rng.random() < 0.5 else f"<answer>{huge}</answer>"


def check(completion: str, answer: str, gold: str) -> str | None:
    """What does not hold for this input, or None."""
    verdict = score(completion, gold)
    if verdict != score(completion, gold):
        return "two verdicts on one completion"
    if verdict.correct > verdict.correct_any or verdict.correct == bool(verdict.reason):
        return "correct, correct_any and reason disagree"
    if verdict.unparseable != (verdict.canonical is None):
        return "unparseable and canonical disagree"
    if verdict.canonical is not None and verdict.extracted is not None:
        if len(verdict.extracted) > MAX_ANSWER_CHARACTERS + 2:
            return "a long answer was read"
        again = score(f"<answer>{verdict.canonical}</answer>", verdict.extracted)
        if len(verdict.canonical) <= MAX_ANSWER_CHARACTERS and not again.correct:
            return "the canonical text is another value"
    here, there = (
        score(f"<answer>{a}</answer>", b).correct for a, b in ((answer, gold), (gold, answer))
    )
    if here != there and "<" not in answer + gold:
        return "right one way round only"
    return None


def fuzz(seed: int, *, seconds: float = 1e9, inputs: int = 10**9) -> tuple[Figures, str | None]:
    """Figures and the first fault; ends after so many seconds or inputs, whichever is first."""
    rng, figures, end = random.Random(seed), Figures(), time.monotonic() + seconds
    score("<answer>√2</answer>", "5")  # what is computed once and kept
    while figures.inputs < inputs and time.monotonic() < end:
        answer = draw_answer(rng)
        gold = rng.choice([answer, draw_answer(rng), rng.choice(SEEDS), ""])
        completion = draw_completion(rng, answer)
        try:
            fault = check(completion, answer, gold)
            cost_ms = min(_cost_ms(completion, gold) for _ in range(3))  # the least is its own
            cost_mb = 0.0 if figures.inputs % MEMORY_EVERY else _cost_mb(completion, gold)
            verdict = score(completion, gold)
        except Exception as error:
            return figures, f"{error!r}: {completion[:300]!r} against {gold[:300]!r}"
        figures.inputs += 1
        figures.parsed += not verdict.unparseable
        figures.correct += verdict.correct
        figures.worst_ms = max(figures.worst_ms, cost_ms)
        figures.worst_mb = max(figures.worst_mb, cost_mb)
        if fault is not None:
            return figures, f"{fault}: {completion[:300]!r} against {gold[:300]!r}"
    return figures, None


def _cost_ms(completion: str, gold: str) -> float:
    started = time.thread_time()
    score(completion, gold)
    return 1000 * (time.thread_time() - started)


def _cost_mb(completion: str, gold: str) -> float:
    tracemalloc.start()
    score(completion, gold)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def main() -> int:
    """Fuzz for so long; 0 where all held."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    results: list[tuple[Figures, str | None]] = []
    thread = threading.Thread(
        target=lambda: results.append(fuzz(arguments.seed, seconds=arguments.seconds))
    )
    thread.start()
    thread.join()
    if not results:  # the thread has printed why
        return 1
    figures, fault = results[0]
    print(json.dumps(asdict(figures)))
    if fault is not None:
        print(fault.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
    return int(fault is not None or figures.worst_ms > LIMIT_MS or figures.worst_mb > LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
