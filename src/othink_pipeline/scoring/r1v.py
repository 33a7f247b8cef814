"""Rule r1v: the verdicts of R1-V (github.com/Deep-Agent/R1-V), faults included.

R1-V judged in three ways:

- ``counting``, its SuperCLEVR evaluation: the digits that stand alone in the first
  ``<answer>…</answer>`` that holds nothing else, as an integer.
- ``geometry``, its GeoQA evaluation: math-verify parses the *whole* output and the gold, and
  compares what it found. So an untagged number is credited; a number right after the tag's ``>``
  is overlooked for another one; ``8√{3}`` is read as 8; ``√{3}`` is not read at all and can never
  be right.
- ``reward``, its accuracy reward in training: as ``geometry``, else the first ``<answer>`` on one
  line (without any: the whole output) and the gold are the same text.

math-verify sets SIGALRM, which only a main thread may, and its alarm (5 s each to parse, to parse
the gold and to compare) does not stop a long integer operation. It therefore runs in one worker
process with limits of time and memory, killed and started again when it oversteps them. What
R1-V would have answered beyond the limits is not known: not correct, with the reason.
"""

from __future__ import annotations

import atexit
import json
import re
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from othink_pipeline.scoring import strict
from othink_pipeline.scoring.strict import Verdict

Judge = Literal["counting", "geometry", "reward"]

LIMIT_S = 15.0
"""For one completion: the three alarms of math-verify. Beyond, the worker is killed."""

START_LIMIT_S = 120.0
MEMORY_LIMIT_BYTES = 2 * 1024**3
"""Address space of the worker, where the platform can limit it; about 0.3 GB are libraries."""

_COUNT = re.compile(r"<answer>\s*(\d+)\s*</answer>")
_TAGGED = re.compile(r"<answer>(.*?)</answer>")


class WorkerError(RuntimeError):
    """The worker does not start, so that rule r1v cannot be applied to anything."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What R1-V would have said.

    Attributes:
        correct: its verdict.
        readable: it found an answer in the completion.
        reason: why not correct, in words; empty where it is.
    """

    correct: bool
    readable: bool
    reason: str


class Worker:
    """One process that asks math-verify; starts when first asked. Safe to share between threads.

    Args:
        limit_s: seconds for one completion, by the clock.
    """

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.limit_s = limit_s
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def judge(self, completion: str, gold: str, which: Judge) -> Judgement:
        """What the judge says, or why it said nothing within the limits.

        Raises:
            WorkerError: the worker does not start.
        """
        with self._lock:
            if self._process is None:
                self._process = self._start()
            question = {"completion": completion, "gold": gold, "judge": which}
            reply, reason = self._ask(self._process, question, self.limit_s)
            if reply is None:
                self._stop()
                return Judgement(False, False, reason)
            return Judgement(**reply)

    def close(self) -> None:
        """Stop the process; the next question starts another."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import serve; serve({self.limit_s!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="ascii",  # JSON escapes the rest
        )
        # A first question, so that the imports are no part of anybody's limit.
        question = {"completion": "1", "gold": "1", "judge": "geometry"}
        reply, reason = self._ask(process, question, START_LIMIT_S)
        if reply != {"correct": True, "readable": True, "reason": ""}:
            process.kill()
            process.communicate()
            raise WorkerError(
                f"the worker of rule r1v does not start ({reason or reply}): "
                f"try {sys.executable} -c 'import math_verify'"
            )
        return process

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()  # closes the pipes and waits
            self._process = None

    @staticmethod
    def _ask(
        process: subprocess.Popen[str], question: dict[str, str], limit_s: float
    ) -> tuple[dict[str, Any] | None, str]:
        """The reply, or None and why there is none."""
        assert process.stdin is not None
        assert process.stdout is not None
        overdue = threading.Event()

        def end() -> None:
            overdue.set()
            process.kill()

        timer = threading.Timer(limit_s, end)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:  # it died before it read the question
            line = ""
        except BaseException:  # an interrupt: the reply, unread, would answer the next question
            process.kill()
            raise
        finally:
            timer.cancel()
            timer.join()  # from here on it kills nothing
        if line.endswith("\n") and not overdue.is_set():
            return json.loads(line), ""
        status = process.wait()
        if overdue.is_set() or status == -getattr(signal, "SIGVTALRM", 0):
            return None, f"no verdict within {limit_s:g} s"
        return None, f"the worker died (exit status {status})"


_worker = Worker()
atexit.register(_worker.close)


def score(completion: str, gold: str, which: Judge = "reward") -> Verdict:
    """The strict verdict, with R1-V's in place of ours where it had one.

    Raises:
        WorkerError: the worker does not start.
    """
    theirs = judge(completion, gold, which)
    return replace(
        strict.score(completion, gold),
        correct=theirs.correct,
        correct_any=theirs.correct,
        unparseable=not theirs.readable,
        reason=theirs.reason,
    )


def judge(completion: str, gold: str, which: Judge) -> Judgement:
    """What one of R1-V's judges says. Whatever the completion, it takes at most ``LIMIT_S``.

    Raises:
        ValueError: no such judge.
        WorkerError: the worker does not start.
    """
    if which not in get_args(Judge):
        raise ValueError(f"judge must be one of {get_args(Judge)}, got {which!r}")
    return (
        _count(completion, gold) if which == "counting" else _worker.judge(completion, gold, which)
    )


def _count(completion: str, gold: str) -> Judgement:
    match = _COUNT.search(completion)
    try:
        number = None if match is None else int(match.group(1))  # any script's digits, as R1-V
        correct = number is not None and number == int(gold)
    except ValueError:  # thousands of digits, or a gold that is no integer
        number, correct = None, False
    reason = "" if correct else "no number alone in a tag" if number is None else "another number"
    return Judgement(correct, number is not None, reason)


def serve(limit_s: float) -> None:
    """The worker: one question a line from standard input, one judgement a line to the output."""
    replies, sys.stdout = sys.stdout, sys.stderr  # a library's print would break the protocol
    _limit_memory()
    import math_verify  # noqa: F401  before the first limit

    for line in sys.stdin:
        _limit_computing(limit_s)
        reply = _judge_symbolically(**json.loads(line))
        _limit_computing(0)
        replies.write(json.dumps(asdict(reply)) + "\n")
        replies.flush()


def _judge_symbolically(completion: str, gold: str, judge: Judge) -> Judgement:
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException  # no Exception: it derives from BaseException

    found, target, correct = [], [], False
    try:
        found, target = parse(completion), parse(gold)
        correct = bool(verify(found, target))
    except (Exception, TimeoutException) as error:  # R1-V's reward goes on, its evaluation stopped
        reason = f"math-verify raised {type(error).__name__}"
    else:
        reason = "nothing parsed" if not found else "another value"
        reason = "the gold parses to nothing" if not target else reason
    if judge == "reward" and not correct:
        tag = _TAGGED.search(completion)
        correct = (tag.group(1) if tag else completion).strip() == gold.strip()
    return Judgement(correct, bool(found), "" if correct else reason)


def _limit_computing(limit_s: float) -> None:
    # The system ends the process after so much computing, even where Python runs no handler (a
    # long integer operation) and nobody is left to kill it.
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    except (ImportError, OSError, ValueError):  # no such limit on this platform
        pass
