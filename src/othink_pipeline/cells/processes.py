"""Train a cell in several processes, of one machine or of more: torch elastic starts them.

None of them is ever started again, and their number stays: either would change the numbers. A
process ends with the run that started it, however that ends.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from multiprocessing import active_children, parent_process
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, NamedTuple

import click

from othink_pipeline.cells.accelerate_config import launcher_environment
from othink_pipeline.cells.job import CellJob, record_job, train_job
from othink_pipeline.cells.keys import JOURNAL, find_finished, training_key
from othink_pipeline.cells.manifests import Training
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import read_json
from othink_pipeline.tracking.journal import Journal
from othink_pipeline.tracking.recorder import TrackingRefusedError, TrackingUnavailableError
from othink_pipeline.training.health import TrainingFault

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

logger = logging.getLogger(__name__)

FAILURE = "failure.json"
"""File in a cell's folder: why the first of its processes failed."""
GRACE_S = 15
"""How long a process has to end by itself: longer than the last records take."""
JOIN_S = 300
"""How long the machines of a training wait for each other before it begins."""
START_METHOD = "spawn"
"""Of multiprocessing: processes read the environment that there is when they are started."""
SETTLE_S = 2.0
"""How long a process that has failed stays: long enough for a partner's death to be seen first."""

GIVE_UP = signal.SIGURG
"""What ends the processes of this machine, sent to the one that started them. Ctrl-C and SIGTERM
stay with the handlers of the run, which raise KeyboardInterrupt: it ends the processes, too."""

_TOLD = (ConfigurationError, TrainingFault, TrackingRefusedError, TrackingUnavailableError)


class ProcessFailedError(click.ClickException):
    """A process of a training failed; its log lines, traceback included, have been shown."""


class ProcessKilledError(ProcessFailedError):
    """A process of a training was ended by a signal."""


class MachineLostError(Exception):
    """A machine, or a process, of a training is gone; the others have ended, and it can go on."""


class Share(NamedTuple):
    """Which part of a training's processes runs on this machine."""

    machines: int = 1
    number: int = 0
    """Of this one."""
    address: str = "127.0.0.1"
    """By which the others reach this one."""
    endpoint: str = "127.0.0.1:0"
    """Address and port, of machine 0, where all find each other."""


def train_here(job: CellJob, run_id: str, share: Share | None = None) -> None:
    """Run this machine's processes of a training to their end.

    Args:
        share: None: all of them.

    Raises:
        ConfigurationError, TrainingFault, TrackingRefusedError, TrackingUnavailableError: raised
            in one of them, on whichever machine.
        ProcessFailedError: one of them failed otherwise, or one of this machine was killed.
        MachineLostError: somebody has sent ``GIVE_UP``.
    """
    share = share or Share()
    if several := share.machines > 1:  # a thread (Kedro's ThreadRunner) may not, and need not
        signal.signal(GIVE_UP, _give_up)  # elastic takes it when the processes begin
    import mlflow
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from othink_pipeline.models.load import release_memory

    count = job.settings.compute.num_processes
    release_memory()
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):  # say it in more words
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=share.machines,
        max_nodes=share.machines,
        nproc_per_node=count // share.machines,
        run_id=job.key,
        rdzv_backend="c10d",
        rdzv_endpoint=share.endpoint,
        rdzv_configs={"is_host": share.number == 0, "join_timeout": JOIN_S},
        local_addr=share.address,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # else it leaves folders in /tmp
        max_restarts=0,
        start_method=START_METHOD,
        shutdown_timeout=GRACE_S,
        signals_to_handle=GIVE_UP.name,
    )
    others = active_children()
    try:
        elastic_launch(config, work)(job, run_id, mlflow.get_tracking_uri())
    except ChildFailedError as error:
        raise _reason(job, error, count) from None
    except SignalException:
        raise MachineLostError(job.name) from None
    finally:
        if several:
            signal.signal(GIVE_UP, signal.SIG_DFL)
        for process in active_children():  # after an interrupt at their start, or a second one
            if process not in others:
                process.kill()
                process.join()


def _give_up(*_: object) -> None:
    raise MachineLostError("while the machines were waiting for each other")


train_on: ContextVar[Callable[[CellJob, str], None]] = ContextVar("train_on", default=train_here)
"""Who runs the processes of a training: this machine, unless somebody has several."""


def train_in_processes(job: CellJob, run_id: str) -> Training:
    """Train a cell in ``compute.num_processes`` processes; returns its manifest.

    Raises:
        ConfigurationError, TrainingFault, TrackingRefusedError, TrackingUnavailableError,
        ProcessFailedError, MachineLostError: as ``train_here``.
    """
    folder = Path(job.folder)
    (folder / FAILURE).unlink(missing_ok=True)
    train_on.get()(job, run_id)
    manifest = find_finished(folder, job.settings.health, whole=False)
    if manifest is None:
        raise ProcessFailedError(f"{folder}: the processes ended well and left no manifest")
    return manifest


def work(job: CellJob, run_id: str, tracking_uri: str) -> None:
    """Train a cell as one of its processes.

    What goes wrong first in any of them is kept in the cell's folder.
    """
    os.setpgid(0, 0)  # Ctrl-C is for the run, which ends its processes in order
    Thread(target=_end_with_run, daemon=True, name="run").start()
    rank = int(os.environ["RANK"])
    # Kedro, which is imported on the way, may have set up tracebacks that take minutes for the
    # locals of a training.
    prefix = f"process {rank}: " if rank else ""
    logging.basicConfig(
        format=f"%(asctime)s %(levelname)-7s {prefix}%(message)s",
        datefmt="%H:%M:%S",
        level=logging.WARNING,
        force=True,
    )
    logging.getLogger("othink_pipeline").setLevel(logging.WARNING if rank else logging.INFO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # records are delivered at the end
    try:
        _train(job, rank, run_id, tracking_uri)
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is about to be said is wanted
        message = error.message if isinstance(error, click.ClickException) else str(error)
        said = {"rank": rank, "kind": type(error).__name__, "message": message}
        # The first one knows the cause: the others lose their connection to it.
        with suppress(FileExistsError), Path(job.folder, FAILURE).open("x") as file:
            json.dump(said, file)
        logger.error("failed", exc_info=error)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SETTLE_S)
        raise


def _train(job: CellJob, rank: int, run_id: str, tracking_uri: str) -> None:
    """Train as process ``rank``.

    Raises:
        ConfigurationError: the code is no longer that of the run.
    """
    import mlflow
    import torch
    import torch.distributed as dist

    key = training_key(job.cell, job.parameters, job.base_model.digest, job.examples, job.settings)
    if key != job.key:
        raise ConfigurationError(
            "the code in src/othink_pipeline, or the file compute.launcher, was edited after this "
            "run began. Run it again: what is finished is reused, the rest is made with what is "
            "there now."
        )
    mlflow.set_tracking_uri(tracking_uri)
    os.environ.update(launcher_environment(job.settings.compute))
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    share = max(1, threads // int(os.environ["LOCAL_WORLD_SIZE"]))
    os.environ["OMP_NUM_THREADS"] = str(share)  # else Accelerate takes a number of its own
    torch.set_num_threads(share)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if rank:
        train_job(job, None)
    else:
        record_job(job, run_id, Journal(Path(job.folder, JOURNAL)), None)
    if dist.is_initialized():
        dist.destroy_process_group()


def _end_with_run() -> None:
    """End this process, with all that it has started, as soon as the run is gone.

    Torch's own SIGINT does not end one that waits for a GPU.
    """
    run = parent_process()
    if run is not None:
        run.join()
        os.killpg(0, signal.SIGKILL)


def first_failure(job: CellJob) -> click.ClickException | None:
    """What the first process to fail said, on whichever machine; None where none said anything."""
    said = read_json(Path(job.folder, FAILURE))
    if said is None:
        return None
    for kind in _TOLD:
        if said["kind"] == kind.__name__:
            return kind(said["message"])
    count = job.settings.compute.num_processes
    return ProcessFailedError(
        f"process {said['rank']} of {count}: {said['kind']}: {said['message']}"
    )


def _reason(job: CellJob, error: ChildFailedError, count: int) -> click.ClickException:
    """Why a training failed: what its first process to fail said, or which signal ended one."""
    said = first_failure(job)
    rank, failure = error.get_first_failure()
    code = failure.exitcode
    # A process whose partner has failed may abort.
    if code < 0 and (code != -signal.SIGABRT or said is None):
        hint = " (is the memory full?)" if code == -signal.SIGKILL else ""
        name = signal.Signals(-code).name
        return ProcessKilledError(f"process {rank} of {count} was ended by {name}{hint}")
    return said or ProcessFailedError(f"process {rank} of {count} ended with exit code {code}")
