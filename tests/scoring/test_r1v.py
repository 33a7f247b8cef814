"""R1-V's judges with their faults, and a worker that nothing keeps from answering."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from othink_pipeline.scoring import r1v
from othink_pipeline.scoring.r1v import Judgement, Worker, WorkerError, judge
from othink_pipeline.scoring.strict import Verdict, score

RIGHT = Judgement(correct=True, readable=True, reason="")
# Runs into math-verify's own alarm after 5 s; here the worker's limit comes first.
ENDLESS = "$9^{9^{9}}$"


@pytest.fixture(scope="module")
def hasty() -> Iterator[Worker]:
    """A worker with a limit that only an endless computation oversteps."""
    worker = Worker(limit_s=2.0)
    yield worker
    worker.close()


@pytest.mark.parametrize(
    ("completion", "gold", "correct", "readable"),
    [
        ("<answer>6</answer>", "6", True, True),
        ("<think>5</think><answer>\n 6 \n</answer>", "6", True, True),
        ("<answer>6</answer><answer>7</answer>", "6", True, True),  # the first counts
        ("<answer>six</answer><answer>6</answer>", "6", True, True),  # ... of those with digits
        ("<answer>006</answer>", "6", True, True),
        ("<answer>٦</answer>", "6", True, True),  # any script's digits
        ("<answer>16</answer>", "6", False, True),
        ("<answer>-6</answer>", "6", False, False),
        ("<answer>6.0</answer>", "6", False, False),
        ("<answer>A. 6</answer>", "6", False, False),
        ("<answer>6", "6", False, False),
        ("6", "6", False, False),
        ("", "6", False, False),
        ("<answer>" + "6" * 5000 + "</answer>", "6", False, False),
        ("<answer>6</answer>", "6°", False, False),
    ],
)
def test_counting_wants_digits_alone_in_a_tag(
    completion: str, gold: str, correct: bool, readable: bool
) -> None:
    theirs = judge(completion, gold, "counting")
    assert (theirs.correct, theirs.readable) == (correct, readable)
    assert bool(theirs.reason) is not correct


@pytest.mark.parametrize(
    ("completion", "gold", "geometry", "reward"),
    [
        ("<think>so</think>\n<answer> 35 </answer>", "35°", True, True),
        ("<think>so</think>\n<answer> 36 </answer>", "35°", False, False),
        ("<think>so</think>\n<answer>35</answer>", "35°", False, False),  # right after a >
        ("<think>so</think>\n<answer>35</answer>", "35", False, True),
        ("<think>as 2 + 3 = 5</think>\n<answer>6</answer>", "5", True, True),
        ("so the angle is 35 degrees. The answer is 35.", "35°", True, True),  # no tag at all
        ("<answer>7</answer> so it is 7.", "7√{2}", True, True),  # a truncated gold
        ("It is $7\\sqrt{2}$", "7√{2}", False, False),
        ("<answer>√{7}</answer>", "√{7}", False, True),  # a gold that it cannot read
        ("<answer> √{7} </answer>", "√{7}", False, True),
        ("<answer>\n√{7}\n</answer>", "√{7}", False, False),  # more than a line is no tag
        ("√{7}", "√{7}", False, True),
        ("The answer is 1.33333333.", "\\frac{4}{3}", True, True),  # six decimals
        ("", "5", False, False),
        ("\ud800 The answer is 5.", "5", True, True),
    ],
)
def test_geometry_and_reward_read_the_whole_output(
    completion: str, gold: str, geometry: bool, reward: bool
) -> None:
    assert judge(completion, gold, "geometry").correct is geometry
    assert judge(completion, gold, "reward").correct is reward


def test_what_could_not_be_read_is_told_apart() -> None:
    assert judge("no idea", "5", "geometry") == Judgement(False, False, "nothing parsed")
    unreadable_gold = judge("The answer is 5.", "√{7}", "geometry")
    assert unreadable_gold == Judgement(False, True, "the gold parses to nothing")
    assert judge("The answer is 6.", "5", "geometry") == Judgement(False, True, "another value")


def test_a_worker_beyond_its_limit_is_replaced(hasty: Worker) -> None:
    assert hasty.judge("The answer is 5.", "5", "geometry") == RIGHT
    late = hasty.judge(ENDLESS, "5", "geometry")
    assert late == Judgement(False, False, "no verdict within 2 s")
    assert hasty.judge("The answer is 5.", "5", "geometry") == RIGHT
    process = hasty._process
    assert hasty.judge("The answer is 5.", "5", "geometry") == RIGHT
    assert hasty._process is process  # one for the batch


def test_a_worker_that_dies_answers_with_the_reason(hasty: Worker) -> None:
    assert hasty.judge("The answer is 5.", "5", "geometry") == RIGHT
    assert hasty._process is not None
    hasty._process.kill()
    died = hasty.judge("The answer is 5.", "5", "geometry")
    assert not died.correct
    assert "the worker died (exit status -9)" in died.reason
    assert hasty.judge("The answer is 5.", "5", "geometry") == RIGHT


def start_serving(limit_s: float) -> subprocess.Popen[str]:
    code = f"from othink_pipeline.scoring.r1v import serve; serve({limit_s})"
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the platform has no such timer")
def test_a_worker_that_nobody_watches_ends_itself() -> None:
    question = {"completion": ENDLESS, "gold": "5", "judge": "geometry"}
    with start_serving(limit_s=0.2) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        assert process.wait(timeout=120) == -signal.SIGVTALRM


def test_a_worker_ends_with_its_input() -> None:
    with start_serving(limit_s=1.0) as process:
        assert process.communicate("", timeout=120) == ("", None)
        assert process.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
def test_a_worker_cannot_take_all_memory() -> None:
    code = (
        "from othink_pipeline.scoring import r1v; r1v._limit_memory(); "
        f"bytearray({r1v.MEMORY_LIMIT_BYTES})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("MemoryError")


def test_threads_share_the_worker() -> None:
    judgements: list[Judgement] = []

    def ask(number: int) -> None:
        judgements.append(judge(f"The answer is {number}.", "3", "geometry"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(judgement.correct for judgement in judgements) == [False] * 5 + [True]


def test_hostile_completions_are_answered() -> None:
    for pattern in ("<answer>", r"\frac{", "9", "$", "\0", "{", "boxed"):
        started = time.monotonic()
        theirs = judge(pattern * (20_000 // len(pattern)), "5", "reward")
        assert not theirs.correct
        assert time.monotonic() - started < r1v.LIMIT_S + 60  # and a new start


def test_a_worker_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(r1v.sys, "executable", "/bin/false")
    with pytest.raises(WorkerError, match="import math_verify"):
        Worker().judge("5", "5", "geometry")


def test_score_takes_the_verdict_and_keeps_the_rest() -> None:
    completion = "<think>so</think><answer>7</answer> The answer is 7."
    assert r1v.score(completion, "7√{2}", "geometry") == Verdict(
        extracted="7",
        correct=True,
        correct_any=True,
        format_ok=False,
        unparseable=False,
        thought=True,
        canonical="7",
        reason="",
    )
    assert not score(completion, "7√{2}").correct
    assert r1v.score("<answer>√{7}</answer>", "√{7}").correct  # the reward's judge
    assert not r1v.score("<answer>√{7}</answer>", "√{7}", "geometry").correct
    unread = r1v.score("<answer>6.0</answer>", "6", "counting")
    assert (unread.unparseable, unread.canonical) == (True, "6")
    assert unread.reason == "no number alone in a tag"
