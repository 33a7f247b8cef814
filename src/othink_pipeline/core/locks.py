"""Locks between processes, each on a file: the system releases one when its holder dies.

They are ``filelock``'s, which also keep threads of one process apart, and which a process forked
by the holder (a data worker) does not hold on; what is added is who holds one. A lock file stays
behind; whoever deletes it while others wait for it parts them from those that come later.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from othink_pipeline.core.blocks import ConfigurationError

logger = logging.getLogger(__name__)


@contextmanager
def lock(file: Path, busy: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Hold ``file`` against all other processes and threads; wait until it is free.

    Args:
        file: made when missing, with the folders above it; says who holds it, for humans.
        busy: called once when it has to wait, with "host pid since" of the holder; what it
            raises ends the wait.

    Raises:
        ConfigurationError: the file cannot be made, or its file system has no locks.
        RuntimeError: this thread holds it already.
    """
    file = file.resolve()
    told = False

    def tell() -> bool:
        """Called at each vain try; False: go on trying."""
        nonlocal told
        if not told:
            told = True
            busy(file.read_text(errors="replace").strip())
        return False

    # A soft lock, a mere file, would outlive a killed holder.
    held = FileLock(file, fallback_to_soft=False, on_acquired=_sign)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(cancel_check=tell)
    except OSError as error:
        raise _unlockable(file, error) from error
    try:
        yield
    finally:
        if held.is_locked:  # else this is a fork of the holder, leaving the same block
            with suppress(FileNotFoundError):  # deleted by hand
                os.truncate(file, 0)
            held.release()


def say_busy(what: str) -> Callable[[str], None]:
    """For ``lock``: a line in the log with what the holder does, and who it is."""
    return lambda holder: logger.info("%s (%s); waiting until it is done", what, holder)


def is_locked(file: Path) -> bool:
    """Whether somebody holds ``file``, this process included.

    Raises:
        ConfigurationError: the file cannot be opened, or its file system has no locks.
    """
    if not file.exists():  # to ask must not make it
        return False
    try:
        with FileLock(file.resolve(), blocking=False, fallback_to_soft=False):
            return False
    except Timeout:
        return True
    except OSError as error:
        raise _unlockable(file, error) from error


def _sign(descriptor: int) -> None:
    """Write into a lock's file who holds it from now on."""
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{socket.gethostname()} {os.getpid()} {since}\n".encode(), 0)


def _unlockable(file: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{file}: cannot be locked ({error.strerror}). The data folder must be writable, on a file "
        "system with locks: a local disk, or NFS with its lock service."
    )
