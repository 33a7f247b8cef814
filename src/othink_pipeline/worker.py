"""One process of a cell's training: ``python -m othink_pipeline.worker JOBFILE``.

Started by ``processes.py`` alone, from whose environment it knows which process it is.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread

import click

from othink_pipeline.cell_job import CellJob, record_job, train_job
from othink_pipeline.cells import training_key
from othink_pipeline.journal import Journal
from othink_pipeline.launchers import launcher_environment
from othink_pipeline.processes import FAILURE
from othink_pipeline.validation import ConfigurationError

logger = logging.getLogger("othink_pipeline.worker")


def main(job_file: Path) -> None:
    """Train; what goes wrong first in any of the processes is kept beside the job's file."""
    end_with_parent()
    rank = int(os.environ["RANK"])
    # Kedro, which is imported on the way, has set up a logging and tracebacks of its own; these
    # take minutes for the locals of a training.
    sys.excepthook = sys.__excepthook__
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING, force=True)
    logging.getLogger("othink_pipeline").setLevel(logging.WARNING if rank else logging.INFO)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # records are delivered at the end
    try:
        run(CellJob.model_validate_json(job_file.read_text()), rank)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGTERM)
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is about to be said is wanted
        message = error.message if isinstance(error, click.ClickException) else str(error)
        said = {"rank": rank, "kind": type(error).__name__, "message": message}
        # The first one knows the cause: the others lose their connection to it.
        with suppress(FileExistsError), (job_file.parent / FAILURE).open("x") as file:
            json.dump(said, file)
        logger.error("failed", exc_info=error)
        sys.exit(1)


def run(job: CellJob, rank: int) -> None:
    """Train a cell as one of its processes.

    Raises:
        ConfigurationError: the code is no longer that of the process that started this one.
    """
    import torch
    import torch.distributed as dist

    key = training_key(
        *(job.cell, job.parameters, job.base_model["digest"], job.examples),
        *(job.evaluation, job.model, job.compute),
    )
    if key != job.key:
        raise ConfigurationError(
            "the code in src/othink_pipeline, or the file compute.launcher, was edited after this "
            "run began. Run it again: what is finished is reused, the rest is made with what is "
            "there now."
        )
    os.environ.update(launcher_environment(job.compute))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if rank:
        train_job(job, None, None)
    else:
        record_job(job, Journal(Path(job.folder, "journal.jsonl")), None)
    if dist.is_initialized():
        dist.destroy_process_group()


def end_with_parent() -> None:
    """End this process, with all that it has started, as soon as the one that started it is gone.

    The pipe from there is at its end then, be it by SIGKILL.
    """

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.killpg(os.getpgid(0), signal.SIGKILL)

    Thread(target=watch, daemon=True, name="parent").start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
