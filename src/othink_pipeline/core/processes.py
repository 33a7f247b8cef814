"""Which process is at work, said so that another one can tell whether it still is.

A clock may be set, and several machines or containers may bear one name: what counts is the boot of
the system, the name space that process ids belong to, and the ticks since that boot.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_MACHINE_ITSELF = "pid:[4026531836]"
"""The name space of processes that are in no container: a constant of Linux."""

HIDDEN = "hidden"
"""When a process began that lives, but of which the system tells nothing: another user's."""


def process_space() -> str:
    """Within which process ids tell processes apart: machine, boot, name space; else the host."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return socket.gethostname()
    machine = Path("/etc/machine-id")
    return f"{machine.read_text().strip() if machine.exists() else ''} {boot} {space}"


def process_start(pid: int) -> str | None:
    """When a process of this space began, or HIDDEN; None where there is none, or it has ended."""
    if not Path("/proc/self/stat").exists():
        try:
            return str(psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return HIDDEN if _takes_signals(pid) else None  # /proc mounted with hidepid
    state, *fields = stat.rpartition(")")[2].split()  # the name before it may hold anything
    return None if state in "ZX" else fields[18]


def _takes_signals(pid: int) -> bool:
    """Whether there is a process, of whatever user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def lives(pid: int, space: str, start: str) -> bool:
    """Whether a process lives; one that cannot be told of (another user's, another machine's) does.

    Args:
        space, start: what ``process_space`` and ``process_start`` said in it.
    """
    here = process_space()
    if space == here:
        return process_start(pid) in (start, HIDDEN)
    machine = here.partition(" ")[0]
    rebooted = space.startswith(f"{machine} ") and space.endswith(_MACHINE_ITSELF)
    return not (machine and rebooted and here.endswith(_MACHINE_ITSELF))
