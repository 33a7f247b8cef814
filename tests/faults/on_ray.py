"""Faults of runs on Ray: a worker, a machine or the driver is lost on the way."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.faults.project import ON_RAY, run
from tests.faults.scenarios import Found, Undisturbed, compare

MIDDLE: dict[str, Any] = {"point": "optimizer step", "call": 3, "after": False, "signal": 9}
"""In the third update of the first cell of a worker."""
GONE_S = 30
"""How long workers may outlive their driver."""


def list_scenarios(undisturbed: Undisturbed) -> dict[str, Callable[[Path], Found]]:
    """Every scenario by name, to be called with a fresh project."""
    named: dict[str, Callable[[Path], Found]] = {}
    for point, call in {"generation": 2, "optimizer step": 3, "checkpoint write": 1}.items():
        wound = {**MIDDLE, "point": point, "call": call}
        named[f"on Ray, SIGKILL of a worker before {point} {call}"] = partial(
            lose_worker, wound=wound, undisturbed=undisturbed
        )
    named["on Ray, SIGKILL of a machine in an update"] = partial(
        lose_machine, undisturbed=undisturbed
    )
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        named[f"on Ray, {number.name} of the driver in an update"] = partial(
            lose_driver, number=number, undisturbed=undisturbed
        )
    return named


@contextmanager
def two_machines() -> Iterator[Any]:
    """A Ray of two machines with a core each."""
    from ray.cluster_utils import Cluster

    handler = signal.getsignal(signal.SIGTERM)  # Ray takes it and keeps it
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, handler)


def raylet_pid(cluster: Any) -> int:
    """Of the second machine: without it nothing runs there."""
    (raylet,) = next(iter(cluster.worker_nodes)).all_processes["raylet"]
    return int(raylet.process.pid)


def at(cluster: Any, **parameters: Any) -> str:
    """How a run is told of a Ray, and of what else is other."""
    parameters = {"cluster.address": cluster.address, **parameters}
    return "--params=" + ",".join(f"{key}={value}" for key, value in parameters.items())


def lose_worker(project: Path, wound: dict[str, Any], undisturbed: Undisturbed) -> Found:
    """A worker is killed; the run itself makes it good."""
    code = run(project, _once(project, wound), ON_RAY)
    return _hurt(project, compare(project, [code], "", undisturbed))


def lose_machine(project: Path, undisturbed: Undisturbed) -> Found:
    """Of two machines with a core each one loses its Ray; the run goes on with the other."""
    with two_machines() as cluster:
        wound = _once(project, {**MIDDLE, "pid": raylet_pid(cluster)})
        code = run(project, wound, ON_RAY, at(cluster))
    return _hurt(project, compare(project, [code], "", undisturbed))


def lose_driver(project: Path, number: signal.Signals, undisturbed: Undisturbed) -> Found:
    """The driver is ended; its workers go, too, and the same command goes on."""
    code = run(project, _once(project, {**MIDDLE, "pid": "driver", "signal": number}), ON_RAY)
    # Ray's own agents stay a minute longer, and compute nothing.
    workers = [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(project)
        and re.match("ray::(?!.*Agent)", " ".join(process.info["cmdline"] or ()))
    ]
    _, alive = psutil.wait_procs(workers, timeout=GONE_S)
    happened = f"exit code {code}; again: "
    found = compare(project, [run(project, None, ON_RAY)], happened, undisturbed)
    faults = [f"{len(alive)} workers outlived it"] if alive else []
    return _hurt(project, found._replace(faults=[*faults, *found.faults]))


def _once(project: Path, wound: dict[str, Any]) -> dict[str, Any]:
    return {**wound, "once": str(project / "struck")}


def _hurt(project: Path, found: Found) -> Found:
    if (project / "struck").exists():
        return found
    return found._replace(faults=["it was not hurt at all", *found.faults])
