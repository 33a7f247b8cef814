"""What is done to a run, and whether the next one makes it good.

A scenario hurts a run of a fresh project, runs the same command again, and demands what an
undisturbed run gives: the same matrix, weights, curves and MLflow records, no double, nothing left.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from urllib.request import urlopen

import yaml

from tests.faults.project import (
    Outcome,
    leftovers,
    make_project,
    read_outcome,
    run,
    start,
    steps_taken,
)
from tests.faults.victim import POINTS

KILLS = 24
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)


class Undisturbed(NamedTuple):
    """What a run comes to that nothing happens to."""

    outcome: Outcome
    steps: int
    passed: dict[str, int]
    """How often each point of ``victim.POINTS`` was passed."""


class Found(NamedTuple):
    """What a scenario came to."""

    happened: str
    lost_steps: int
    """Optimizer steps that were taken twice."""
    faults: list[str]
    """In what the result differs from the undisturbed one; empty is as it must be."""


def run_undisturbed(folder: Path, model: Path, **blocks: Any) -> Undisturbed:
    """Run once without harm; count how often each point is passed."""
    project = make_project(folder, model, **blocks)
    code = run(project, {"count": str(project / "passed.json")})
    if code:
        raise RuntimeError(f"the undisturbed run failed: {project}/log.txt")
    passed = json.loads((project / "passed.json").read_text())
    return Undisturbed(read_outcome(project), steps_taken(project), passed)


def choose_kills(passed: dict[str, int], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Names and wounds: every point in turn, at calls that the seed chooses."""
    rng = Random(seed)
    wounds = {}
    for number in range(KILLS):
        point = list(POINTS)[number % len(POINTS)]
        wound = {
            "point": point,
            "call": rng.randint(1, passed[point]),
            "after": rng.random() < 0.5,
            "signal": int(SIGNALS[number % len(SIGNALS)]),
        }
        name = signal.Signals(wound["signal"]).name
        when = "after" if wound["after"] else "before"
        wounds[f"{name} {when} {point} {wound['call']} of {passed[point]}"] = wound
    return wounds


def kill(project: Path, wound: dict[str, Any], undisturbed: Undisturbed) -> Found:
    """Kill a run, then run again."""
    code = run(project, wound)
    happened = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return _again(project, happened, undisturbed, died=code != 0)


def damage(project: Path, name: str, undisturbed: Undisturbed) -> Found:
    """Kill the last cell's training in its last update, damage a file, then run again."""
    last = {"point": "optimizer step", "call": undisturbed.steps, "after": True, "signal": 9}
    run(project, last)
    file = DAMAGES[name](project)
    return _again(project, f"killed; {file} damaged", undisturbed)


def damage_finished(project: Path, name: str, undisturbed: Undisturbed) -> Found:
    """Damage a file of a finished run, then run again."""
    run(project)
    file = DAMAGES_AFTER[name](project)
    before = steps_taken(project)
    found = _again(project, f"finished; {file} damaged", undisturbed)
    if steps_taken(project) > before:  # trained anew, so there is a second run of that cell
        return found._replace(faults=[f for f in found.faults if f != "another ends"])
    return found


def fill_disk(project: Path, undisturbed: Undisturbed) -> Found:
    """Something else fills the disk of ``data`` in the middle of a training; then it is gone.

    Needs the right to mount a file system.
    """
    data, aside = project / "data", project / "aside"
    data.rename(aside)
    data.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2200m", "tmpfs", str(data)], check=True)
    try:
        shutil.copytree(aside, data, dirs_exist_ok=True)
        filler = data / "filler"
        wound = {"point": "optimizer step", "call": 3, "after": True, "fill": str(filler)}
        code = run(project, wound)
        filler.unlink()
        return _again(project, f"exit code {code}", undisturbed, died=code == 1)
    finally:
        subprocess.run(["umount", str(data)], check=True)


def lose_server(project: Path, undisturbed: Undisturbed) -> Found:
    """The MLflow server is killed in the middle of a training and started again."""
    store = f"sqlite:///{project}/server.db"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    settings = yaml.safe_load((project / "conf/base/mlflow.yml").read_text())
    settings["server"]["mlflow_tracking_uri"] = uri
    (project / "conf/test/mlflow.yml").write_text(yaml.safe_dump(settings))
    with serve(project, store, port) as server:
        middle = {
            "point": "optimizer step",
            "call": undisturbed.steps - 3,
            "after": True,
            "signal": 9,
            "pid": -server.pid,  # the process group: MLflow's server has workers
        }
        process = start(project, middle)
        server.wait(timeout=600)
    with serve(project, store, port):
        code = process.wait(timeout=600)
    return compare(project, [code], "", undisturbed, store)


@contextmanager
def serve(project: Path, store: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """An MLflow server that answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (project / "server.txt").open("ab") as log:
        server = subprocess.Popen(
            command, cwd=project, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        for _ in range(240):
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.25)  # it has no other way to say that it is up
        yield server
    finally:
        with suppress(ProcessLookupError):  # killed already
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def run_twice_at_once(project: Path, undisturbed: Undisturbed) -> Found:
    """Two runs of one project at the same time."""
    both = [start(project), start(project)]
    codes = [process.wait(timeout=900) for process in both]
    return compare(project, codes, "", undisturbed)


def _again(project: Path, happened: str, undisturbed: Undisturbed, died: bool = True) -> Found:
    found = compare(project, [run(project)], f"{happened}; again: ", undisturbed)
    return found if died else found._replace(faults=["it was not hurt at all", *found.faults])


def compare(
    project: Path,
    codes: list[int],
    happened: str,
    undisturbed: Undisturbed,
    store: str | None = None,
) -> Found:
    """What runs came to that ended with these exit codes."""
    happened += "exit code " + " and ".join(map(str, codes))
    if any(codes):
        return Found(happened, 0, ["a run that nothing was done to failed"])
    lost = steps_taken(project) - undisturbed.steps
    try:
        outcome = read_outcome(project, store)
    except (OSError, AssertionError, ValueError, KeyError) as error:
        return Found(happened, lost, [f"no comparable result: {type(error).__name__}: {error}"])
    faults = [
        f"another {name}"
        for name, ours, theirs in zip(Outcome._fields, outcome, undisturbed.outcome, strict=True)
        if ours != theirs
    ]
    faults += [f"left behind: {path}" for path in leftovers(project)]
    return Found(happened, lost, faults)


def _only(files: Iterator[Path]) -> Path:
    return max(files, key=lambda file: file.stat().st_mtime)


def _truncate(pattern: str) -> Callable[[Path], str]:
    def half(project: Path) -> str:
        file = _only(project.glob(pattern))
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return str(file.relative_to(project))

    return half


def _flip(pattern: str) -> Callable[[Path], str]:
    def flip(project: Path) -> str:
        file = _only(project.glob(pattern))
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        return str(file.relative_to(project))

    return flip


def _append(pattern: str) -> Callable[[Path], str]:
    def append(project: Path) -> str:
        file = _only(project.glob(pattern))
        with file.open("ab") as content:
            content.write(b'{"kind": "metr')
        return str(file.relative_to(project))

    return append


DAMAGES = {
    "newest state: a bit flipped": _flip("data/06_models/*/*/s0/*/resume/*/optimizer.pt"),
    "newest state: weights cut in half": _truncate(
        "data/06_models/*/*/s0/*/resume/*/model.safetensors"
    ),
    "journal: a torn last line": _append("data/06_models/*/*/s0/*/journal.jsonl"),
    "examples: cut in half": _truncate("data/03_primary/counting/train.arrow"),
}
DAMAGES_AFTER = {
    "predictions: a bit flipped": _flip("data/07_model_output/*/*/s0/counting/*.parquet"),
    "checkpoint: weights cut in half": _truncate(
        "data/06_models/*/*/s0/*/update-000005/model.safetensors"
    ),
    "manifest of a cell: cut in half": _truncate("data/06_models/*/*/s0/*/manifest.json"),
    "manifest in the catalog: cut in half": _truncate("data/06_models/*/*/s0.json"),
}
