"""Ctrl-C, SIGTERM and SIGHUP: a run that is stopped says that it heard, and ends in order."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from typing import Any

_USUAL: dict[signal.Signals, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,  # the terminal is gone; `nohup` has it ignored
}
"""What Python does with the signals that stop a run."""


def stop_in_order() -> None:
    """Let a scheduler's SIGTERM (a time limit, `docker stop`) end a run the way Ctrl-C does.

    So does the SIGHUP of a connection that is lost.
    """
    # Python takes handlers from the main thread only; an embedding program's handler is its own.
    if threading.current_thread() is not threading.main_thread():
        return
    for number, usual in _USUAL.items():
        if signal.getsignal(number) is usual:
            signal.signal(number, _stop)


def stop_no_more() -> None:
    """Be deaf to them: what ends in order now takes seconds."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _USUAL:
        if signal.getsignal(number) is _stop:
            signal.signal(number, _ignore)


def stop_as_before() -> None:
    """Give the signals back."""
    for number, usual in _USUAL.items():
        if signal.getsignal(number) in (_stop, _ignore):
            signal.signal(number, usual)


def _stop(*_: object) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):  # a second one must not cut the clean-up
        if signal.getsignal(number) is _stop:
            signal.signal(number, _ignore)
    with suppress(OSError):  # not sys.stderr, in the midst of which the signal may have come
        os.write(2, b"\nstopping in order; what is finished or saved by now is kept ...\n")
    raise KeyboardInterrupt


def _ignore(*_: object) -> None:
    pass
