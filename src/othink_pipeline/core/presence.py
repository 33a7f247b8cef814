"""Who is at work in a data folder: runs with other parameters would mix their results there.

Cells are kept apart by their keys, but the catalog has one place for each cell's manifest, and the
report one for all. Runs with the same parameters write the same there, and may share the work.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.locks import is_locked, lock, say_busy


@contextmanager
def at_work(folder: Path, parameters: str) -> Iterator[None]:
    """Be at work in ``folder`` while the block lasts, or while the process lives.

    Args:
        folder: where the marks of those at work are kept.
        parameters: a content key of the parameters.

    Raises:
        ConfigurationError: somebody is at work there with other parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Two containers may have one host name, and in both a process of the same number.
    mark = folder / f"{parameters}-{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}.lock"
    busy = say_busy(f"{folder}: another run looks around there")
    with lock(folder / "door.lock", busy):  # held for as long as it takes to look around
        for other in folder.glob("*-*.lock"):
            if not is_locked(other):
                other.unlink(missing_ok=True)  # nobody waits for a mark, and its process is gone
            elif not other.name.startswith(f"{parameters}-"):
                host, process, _ = other.stem.partition("-")[2].rsplit("-", 2)
                raise ConfigurationError(
                    f"{folder.parent}: another run (process {process} on {host}) is at work there "
                    "with other parameters, and the results would mix. Wait until it is done (of a "
                    "notebook that was interrupted: restart its kernel), or give this run an "
                    "environment with a data folder of its own: "
                    "conf/<name>/globals.yml: 'data: data/<name>', then --env=<name>"
                )
        holding = ExitStack()
        holding.enter_context(lock(mark))
    with holding:
        yield
    mark.unlink(missing_ok=True)
