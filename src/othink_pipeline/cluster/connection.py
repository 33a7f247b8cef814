"""A Ray to run on: this machine's own or one that is there, checked before anything is trained."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from othink_pipeline.cells.parameters import Cluster
from othink_pipeline.cluster import surroundings
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.locks import lock

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 100 * 2**20
"""Manifests and tables pass through it; weights do not."""
ANSWER_S = 3.0
"""How long a Ray that is there takes to answer at most."""
CHECK_S = 120.0
"""How long its machines may take to start a process and to be checked."""
VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_COLOR_PREFIX": "0",  # else escape codes stand in a log that is a file
    "RAY_DEDUP_LOGS": "0",  # the lines of two cells that are alike are two lines
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # below `uv run` it would set up environments anew
}


def check_installed() -> None:
    """Check that there is Ray, without importing it.

    Raises:
        ConfigurationError: there is not.
    """
    if find_spec("ray") is None:
        raise ConfigurationError(
            "--runner: RayRunner needs Ray, which is not installed. Install it: pip install "
            "'othink_pipeline[ray]' (in a clone: pip install -e '.[ray]'), or leave --runner out."
        )


def connect(
    cluster: Cluster, modules: Sequence[str], folders: Sequence[Path], needed: Sequence[Path] = ()
) -> None:
    """Connect this process to Ray, unless it is; start one where no address is given.

    Args:
        modules: those of the nodes' functions.
        folders: what all machines share, beside the project, which is the working folder.
        needed: folders that all machines must see, and only read.

    Raises:
        ConfigurationError: it does not answer, is of another version, has no machine that is large
            enough; or a machine that is not fit for this run.
    """
    check_installed()
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    _init(cluster)
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        faults = find_faults(cluster, [node["Resources"] for node in alive])
        if not faults and cluster.address is not None:  # else it is this machine's own
            node_ids = [node["NodeID"] for node in alive]
            faults = _check_machines(node_ids, modules, folders, needed)
        if faults:
            raise ConfigurationError("\n".join(faults))
    except BaseException:
        ray.shutdown()
        raise
    there = ray.cluster_resources()
    logger.info("Ray: machines: %d, %s", len(alive), _describe(there, ("CPU", "GPU")))


def disconnect() -> None:
    """Disconnect this process; a Ray of its own ends with that."""
    import ray

    ray.shutdown()


def count_at_once(cluster: Cluster) -> int:
    """How many cells the Ray that this process is connected to trains at the same time at most."""
    import ray

    return cluster.trained_at_once(ray.cluster_resources())


def find_faults(cluster: Cluster, machines: Sequence[Mapping[str, float]]) -> list[str]:
    """What is asked of a Ray that its machines do not have.

    Args:
        machines: the resources of each.
    """
    faults = []
    for kind in ("train", "evaluate"):
        demand = getattr(cluster, kind)
        asked = cluster.train.machines if kind == "train" else 1
        found = sum(_fits(demand.resources, machine) for machine in machines)
        if found < asked:
            on = f" on each of {asked} machines" if asked > 1 else ""
            faults.append(
                f"cluster.{kind} asks for {_describe(demand.resources, demand.resources)}{on}. "
                f"Machines that have it: {found}. There are: "
                f"{'; '.join(_describe(machine, demand.resources) for machine in machines)}. "
                "Ask for less, or start a machine that has it."
            )
        gpus = sum(machine.get("GPU", 0) for machine in machines)
        if gpus and not demand.gpus:
            right = "to compute.num_processes / machines" if kind == "train" else "to 1"
            faults.append(
                f"cluster.{kind}.gpus = 0, and there are {gpus:g} GPUs, which all tasks would see. "
                f"Set it {right} (where that is 1, a part of 1 lets several tasks share one), or "
                "hide them (CUDA_VISIBLE_DEVICES=)."
            )
    return faults


def _fits(demand: Mapping[str, float], machine: Mapping[str, float]) -> bool:
    return all(machine.get(name, 0) >= amount for name, amount in demand.items())


def _describe(resources: Mapping[str, float], names: Iterable[str]) -> str:
    """``8 CPU, 1 GPU``: what there is of what is named."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in names)


def _init(cluster: Cluster) -> None:
    import ray

    own: dict[str, Any] = {
        "address": "local",  # nothing else keeps it from joining a Ray that happens to be there
        "num_cpus": cluster.workers
        and cluster.workers * max(cluster.train.cpus, cluster.evaluate.cpus),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    if cluster.address is not None:
        _check_answer(cluster.address)
        own = {"address": cluster.address}
        if path := os.environ.get("PYTHONPATH"):  # of the rest only workers themselves are told
            own["runtime_env"] = {"env_vars": {"PYTHONPATH": path}}
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**own, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        if cluster.address is None:
            raise
        said = " ".join(str(error).split())
        raise ConfigurationError(
            f"cluster.address = {cluster.address!r}: cannot connect ({said}). Start the run on a "
            "machine of that Ray, with its token and the same versions of Ray and Python."
        ) from None
    finally:
        signal.signal(signal.SIGTERM, handler)  # Ray takes it, and would abort


def _check_answer(address: str) -> None:
    """Ray itself tries for a minute."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise ConfigurationError(
            f"cluster.address = {address!r}: does not answer ({error}). Start Ray there (ray start "
            f"--head --port={port}), or set cluster.address: null for one on this machine."
        ) from None


def _check_machines(
    node_ids: Sequence[str],
    modules: Sequence[str],
    folders: Sequence[Path],
    needed: Sequence[Path],
) -> list[str]:
    """Let each machine look at the project, its code and libraries, and at the shared folders."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    around = pickle.dumps(surroundings.describe_surroundings(modules))
    marks = [folder.absolute() / f".shared-{uuid4().hex}.lock" for folder in folders]
    check = ray.remote(surroundings.check_node)
    try:
        with ExitStack() as held:
            for mark in marks:
                held.enter_context(lock(mark))
            tasks = [
                check.options(
                    name="check_machine",
                    num_cpus=0,
                    max_retries=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
                ).remote(around, [str(mark) for mark in marks], [str(path) for path in needed])
                for node_id in node_ids
            ]
            found = ray.get(tasks, timeout=CHECK_S)
    except ray.exceptions.RayError as error:
        # A traceback of the machine's: what it says in the end is the cause.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return [
            f"cluster.address: a machine cannot run the project's code ({lines[-1].strip()}). "
            "Start Ray there with the driver's .venv, in the shared folder."
        ]
    finally:
        for mark in marks:
            with suppress(OSError):  # of a folder that takes no files the fault is told
                mark.unlink()
    return sorted({fault for fault in found if fault})
