"""Train a cell in several processes of this machine, and hear how each of them ended.

A process that trains (``worker.py``) ends with the run that started it, however that ends: it
reads from a pipe that closes then.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from othink_pipeline.cell_job import CellJob
from othink_pipeline.cells import find_finished
from othink_pipeline.health import TrainingFault
from othink_pipeline.recording import TrackingRefusedError, TrackingUnavailableError
from othink_pipeline.reuse import publish_file, read_json
from othink_pipeline.validation import ConfigurationError

logger = logging.getLogger(__name__)

WORKER = ("-m", "othink_pipeline.worker")
"""What Python is told to run."""
JOB, FAILURE = "job.json", "failure.json"
"""Files in a cell's folder: what the processes are to do, and why the first one failed."""
GRACE_S = 15.0
"""How long a process has to end by itself: longer than the last records take."""

_TOLD = (ConfigurationError, TrainingFault, TrackingRefusedError, TrackingUnavailableError)
_LEVELS = logging.getLevelNamesMapping()


class ProcessFailedError(click.ClickException):
    """A process of a training failed; its log lines, traceback included, have been shown."""


def train_in_processes(job: CellJob) -> dict[str, Any]:
    """Train a cell in ``compute.num_processes`` processes; returns its manifest.

    Raises:
        ConfigurationError, TrainingFault, TrackingRefusedError, TrackingUnavailableError: raised
            in one of them.
        ProcessFailedError: one of them failed otherwise, or was killed.
    """
    folder = Path(job.folder)
    (folder / FAILURE).unlink(missing_ok=True)
    with publish_file(folder / JOB) as scratch:
        scratch.write_text(job.model_dump_json())
    from othink_pipeline.models import release_memory

    release_memory()
    count = job.compute.num_processes
    with _store() as address:
        processes: list[subprocess.Popen[str]] = []
        try:
            for rank in range(count):
                processes.append(_start(rank, count, folder / JOB, address))
            ended = _wait_for_all(processes)
        finally:
            _end(processes)
    if any(ended):
        raise _reason(folder / FAILURE, ended)
    manifest = find_finished(folder, job.health, whole=False)
    if manifest is None:
        raise ProcessFailedError(f"{folder}: the processes ended well and left no manifest")
    return manifest


@contextmanager
def _store() -> Iterator[tuple[str, int]]:
    """Where the processes find each other: served by this one, at a port that it holds already."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host = "127.0.0.1"
    store = TCPStore(host, 0, is_master=True, wait_for_workers=False)
    yield host, store.port


def _start(
    rank: int, count: int, job_file: Path, address: tuple[str, int]
) -> subprocess.Popen[str]:
    import mlflow

    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    package = Path(__file__).parents[1]  # a Kedro project's need not be installed
    path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "OMP_NUM_THREADS": str(max(1, threads // count)),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": address[0],
        "MASTER_PORT": str(address[1]),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is there: no process is to serve it
    }
    return subprocess.Popen(
        [sys.executable, *WORKER, str(job_file)],
        env=environment,
        stdin=subprocess.PIPE,  # never written to: see `worker.end_with_parent`
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        process_group=0,  # Ctrl-C is for the run, which ends the others in order
    )


def _wait_for_all(processes: Sequence[subprocess.Popen[str]]) -> list[int]:
    """Exit codes once all have ended, or one has failed: 0 then for those still at work."""
    pool = ThreadPoolExecutor(len(processes))
    waiting: set[Future[int]] = {
        pool.submit(_follow, process, rank) for rank, process in enumerate(processes)
    }
    pool.shutdown(wait=False)
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        if any(future.result() for future in done):
            break
    return [process.poll() or 0 for process in processes]


def _follow(process: subprocess.Popen[str], rank: int) -> int:
    """Hand the log of a process on, line by line, until it ends; returns its exit code."""
    level = logging.INFO
    for line in process.stderr or ():
        name, _, text = line.rstrip().partition(" ")
        if name in _LEVELS:
            level = _LEVELS[name]
        else:  # the lines of a traceback follow its record
            text = line.rstrip()
        if text:
            logger.log(level, "%s%s", f"process {rank}: " if rank else "", text)
    return process.wait()


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """End those that are still at work, with all that they have started."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin:
            process.stdin.close()


def _reason(file: Path, ended: Sequence[int]) -> click.ClickException:
    """Why a training failed: what its first process to fail said, or which signal ended one."""
    said = read_json(file)
    killed = [(rank, -code) for rank, code in enumerate(ended) if code < 0]
    for rank, number in killed:
        # The others then fail as well. A process whose partner has failed may abort, too.
        if number != signal.SIGABRT or said is None:
            name = signal.Signals(number).name
            hint = " (is the memory full?)" if number == signal.SIGKILL else ""
            return ProcessFailedError(f"process {rank} of {len(ended)} was ended by {name}{hint}")
    if said is None:
        rank, code = next((rank, code) for rank, code in enumerate(ended) if code)
        return ProcessFailedError(f"process {rank} of {len(ended)} ended with exit code {code}")
    for kind in _TOLD:
        if said["kind"] == kind.__name__:
            return kind(said["message"])
    return ProcessFailedError(
        f"process {said['rank']} of {len(ended)}: {said['kind']}: {said['message']}"
    )
