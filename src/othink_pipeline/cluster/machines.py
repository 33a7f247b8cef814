"""The training of a cell in several processes, on one machine or more.

Its task is on the first of them, others are on the rest.
"""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import Thread
from typing import Any

from othink_pipeline.cells.job import CellJob
from othink_pipeline.cells.processes import (
    GIVE_UP,
    GRACE_S,
    MachineLostError,
    ProcessFailedError,
    ProcessKilledError,
    Share,
    first_failure,
    train_here,
    train_on,
)
from othink_pipeline.cluster.share import BadEnd, run_share

END_S = 4.0 * GRACE_S
"""How long the other machines have to end once the first one's processes have."""


@contextmanager
def on_machines(machines: int, surroundings: bytes, threads: int) -> Iterator[None]:
    """Let trainings of this task run on all machines of its placement group.

    Args:
        machines: 1: this one; there is no group.
        surroundings, threads: as of ``worker.run_node``.
    """
    train = partial(_train_together, machines, surroundings, threads)
    token = train_on.set(partial(_train, train_here if machines == 1 else train))
    try:
        yield
    finally:
        train_on.reset(token)


def _train(train: Callable[[CellJob, str], None], job: CellJob, run_id: str) -> None:
    """Run a training's processes; one that is killed is a worker that dies.

    Raises:
        MachineLostError: of a process, too: the memory may be full.
    """
    try:
        train(job, run_id)
    except ProcessKilledError as error:
        raise MachineLostError(error.message) from None


def _train_together(
    machines: int, surroundings: bytes, threads: int, job: CellJob, run_id: str
) -> None:
    """Run a training's processes to their end.

    Raises:
        MachineLostError: another machine is gone.
        Exception: as ``train_here``, of whichever machine.
    """
    import ray
    from ray.util import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    with socket.create_server((ray.util.get_node_ip_address(), 0)) as free:
        address, port = free.getsockname()
    shares = [Share(machines, n, address, f"{address}:{port}") for n in range(machines)]
    assigned = dict(ray.get_runtime_context().get_assigned_resources())
    cpus, gpus = assigned.pop("CPU", 0), assigned.pop("GPU", 0)
    remote = ray.remote(num_gpus=gpus)(run_share)  # as of ``RayPool``: not in ``options`` alone
    group = get_current_placement_group()
    assert group is not None  # ``RayPool`` has put this task into it
    others = [
        remote.options(
            name=f"{job.cell.name}, machine {share.number + 1} of {machines}",
            num_cpus=cpus,
            resources=assigned or None,
            max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, share.number),
        ).remote(pickle.dumps((job, run_id, share)), surroundings, threads)
        for share in shares[1:]
    ]
    watch = _Watch(others)
    watch.start()
    failed: Exception | None = None
    try:
        try:
            train_here(job, run_id, shares[0])
        except Exception as error:
            failed = error
        watch.join(END_S)
    finally:
        for other in others:  # that has not ended; it has to, where this task is interrupted
            ray.cancel(other)
    if failed is None:
        return
    if watch.error:
        raise watch.error
    if watch.bad_end and watch.bad_end.killed:
        raise ProcessKilledError(watch.bad_end.message)
    if watch.bad_end and isinstance(failed, MachineLostError):  # this one has given up for it
        raise first_failure(job) or ProcessFailedError(watch.bad_end.message)
    raise failed


class _Watch(Thread):
    """Waits for the other machines, and lets this one give up where one is gone or has failed."""

    def __init__(self, others: Sequence[Any]) -> None:
        super().__init__(daemon=True, name="other machines")
        self._others = list(others)
        self.bad_end: BadEnd | None = None
        """How a share failed."""
        self.error: Exception | None = None
        """What became of a machine."""

    def run(self) -> None:
        import ray

        while self._others:
            (done,), self._others = ray.wait(self._others)
            try:
                self.bad_end = ray.get(done)
            except ray.exceptions.RayTaskError as error:  # before its processes began
                self.error = ProcessFailedError(f"another machine: {error.cause}")
            except ray.exceptions.RayError as error:
                self.error = MachineLostError(f"another machine: {type(error).__name__}")
            if self.error or self.bad_end:
                os.kill(os.getpid(), GIVE_UP)
                return
