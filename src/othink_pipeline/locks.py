"""Locks between processes, each on a file: the system releases one when its holder dies.

They are POSIX record locks: a process forked by the holder (a data worker) does not hold them on,
and they work on NFS. Two of their traps are dealt with here: they do not keep threads of one
process apart, and a process loses one by closing *any* descriptor of its file: nothing else may
open a lock file while it is held. A lock file stays behind; whoever deletes it while others wait
for it parts them from those that come later.
"""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from othink_pipeline.validation import ConfigurationError

_turns: dict[Path, threading.RLock] = {}
"""Lock file -> whose turn it is among the threads of this process."""

_holders: dict[Path, str] = {}
"""Lock file -> what stands in it, of those that this process holds."""


def _forget() -> None:
    _turns.clear()
    _holders.clear()


os.register_at_fork(after_in_child=_forget)  # a forked process holds nothing


@contextmanager
def lock(file: Path, busy: Callable[[str], None]) -> Iterator[None]:
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
    turn = _turn(file)
    told = not turn.acquire(blocking=False)
    if told:
        busy(_holders.get(file, ""))
        turn.acquire()
    try:
        if file in _holders:
            raise RuntimeError(f"{file}: this thread holds this lock already")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise _unlockable(file, error) from error
        try:
            if not _try(file, descriptor):
                if not told:
                    busy(os.pread(descriptor, 500, 0).decode(errors="replace").strip())
                fcntl.lockf(descriptor, fcntl.LOCK_EX)
            since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            holder, process = f"{socket.gethostname()} {os.getpid()} {since}", os.getpid()
            _holders[file] = holder
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{holder}\n".encode(), 0)
            try:
                yield
            finally:
                _holders.pop(file, None)
                if os.getpid() == process:  # else a fork of the holder, leaving the same block
                    os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)
    finally:
        turn.release()


def is_locked(file: Path) -> bool:
    """Whether somebody holds ``file``, this process included.

    Raises:
        ConfigurationError: the file cannot be opened, or its file system has no locks.
    """
    file = file.resolve()
    turn = _turn(file)
    if not turn.acquire(blocking=False):
        return True
    try:
        if file in _holders:  # opening and closing it here would release it
            return True
        try:
            descriptor = os.open(file, os.O_RDWR)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unlockable(file, error) from error
        try:
            return not _try(file, descriptor)
        finally:
            os.close(descriptor)
    finally:
        turn.release()


def _turn(file: Path) -> threading.RLock:
    return _turns.setdefault(file, threading.RLock())


def _try(file: Path, descriptor: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows either
        return False
    except OSError as error:
        raise _unlockable(file, error) from error
    return True


def _unlockable(file: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"{file}: cannot be locked ({error.strerror}). The data folder must be writable, on a file "
        "system with locks: a local disk, or NFS with its lock service."
    )
