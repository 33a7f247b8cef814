"""What the benchmarks share: peers in processes of their own that take turns, and records.

A machine that is shared and noisy slows down now one peer, now the other. So peers take turns,
step by step, and what counts are ratios.
"""

from __future__ import annotations

import json
import platform
import resource
import subprocess
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "transformers", "trl", "kedro", "mlflow")

Turn = Callable[[], None]
"""Called by a peer before each of its steps: waits until it is its turn."""


class Peer:
    """A function in a process of its own that works step by step, when told to.

    ``work(turn, *args)`` calls ``turn()`` before each step and once after the last, and returns
    what is to be known about it.
    """

    def __init__(self, work: Callable[..., Any], *args: Any) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, work, args), daemon=True)
        self._process.start()
        theirs.close()  # so that its death is the end of the pipe
        self._receive()  # ready for the first step
        self.seconds: list[float] = []

    def step(self) -> None:
        """Let it take one step."""
        self._pipe.send(None)
        self.seconds.append(self._receive())

    def finish(self) -> tuple[Any, float]:
        """Let it end: what it returned, and its peak memory in GB."""
        self._pipe.send(None)
        result, memory = self._receive()
        self._process.join()
        return result, memory

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a peer died: exit code {self._process.exitcode}") from None


def _serve(pipe: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    since: list[float] = []

    def turn() -> None:
        pipe.send(perf_counter() - since.pop() if since else None)
        pipe.recv()
        since.append(perf_counter())

    result = work(turn, *args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 1 if platform.system() == "Darwin" else 1024
    pipe.send((result, peak * unit / 1e9))


def take_turns(peers: Iterable[Peer], steps: int) -> None:
    """Let all peers take so many steps, one after the other in each round."""
    peers = list(peers)
    for _ in range(steps):
        for peer in peers:
            peer.step()


def interleave(rounds: int, **peers: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds that each function takes, run in turns in this process after one run to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    for round_number in range(rounds + 1):
        for name, function in peers.items():
            started = perf_counter()
            function()
            if round_number:
                seconds[name].append(perf_counter() - started)
    return seconds


def record(name: str, title: str, rows: list[dict[str, Any]], notes: str) -> None:
    """Keep a benchmark's table, and print it."""
    file = store(name, title, rows, notes)
    print(f"{title}\n{table(rows)}\n-> {file.relative_to(ROOT)}", flush=True)


def store(name: str, title: str, rows: list[dict[str, Any]], notes: str) -> Path:
    """Keep a benchmark's table with the day, the machine and the versions it was measured on."""
    RESULTS.mkdir(exist_ok=True)
    entry = {"title": title, "rows": rows, "notes": notes, "measured": measured_on()}
    file = RESULTS / f"{name}.json"
    file.write_text(json.dumps(entry, indent=2, ensure_ascii=False) + "\n")
    return file


def merge(name: str, row: dict[str, Any], keys: Sequence[str]) -> list[dict[str, Any]]:
    """The kept rows of a benchmark and a new one, in place of the one with the same ``keys``.

    It is told when it was measured and at which commit: the others may be older.
    """
    file = RESULTS / f"{name}.json"
    kept = json.loads(file.read_text())["rows"] if file.exists() else []
    on = measured_on()
    new = {**row, "measured": f"{on['date']}, {on['commit']}"}
    return [old for old in kept if any(old.get(key) != row[key] for key in keys)] + [new]


def measured_on() -> dict[str, str]:
    """Day, commit, machine and library versions."""
    import torch

    def git(*command: str) -> str:
        try:
            return subprocess.run(
                ["git", *command], cwd=ROOT, capture_output=True, text=True, check=False
            ).stdout.strip()
        except OSError:  # a machine that is lent may have none
            return ""

    changed = git("status", "--porcelain", "--", "src", "conf", "benchmarks/*.py")
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except OSError:  # no Linux
        pass
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{cpu}, {psutil.cpu_count()} cores, {memory:.0f} GiB"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": (git("rev-parse", "--short", "HEAD") or "unknown")
        + (" with changes" if changed else ""),
        "machine": machine,
        "threads": str(torch.get_num_threads()),
        "versions": ", ".join(filter(None, map(_version, LIBRARIES))),
    }


def _version(name: str) -> str | None:
    """None: it is not installed."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return None


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table; numbers to three digits, – where there is none."""
    columns = list(rows[0])

    def shown(value: Any) -> str:
        return (
            "–"
            if value != value
            else f"{value:.3g}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )

    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(shown(row[column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines)
