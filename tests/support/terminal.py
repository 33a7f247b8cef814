"""A terminal of some width, and what is written to it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import struct
import termios
import threading
from pathlib import Path

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class InMemory(io.StringIO):
    """One that only says that it is a terminal."""

    def isatty(self) -> bool:
        return True


class Terminal:
    """What a person would look at: ``path`` is the file that commands write to."""

    def __init__(self, columns: int) -> None:
        self._screen, self._ours = pty.openpty()
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.path = Path(os.ttyname(self._ours))
        self._shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)  # it holds few lines
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self._screen, 4096):
                self._shown += part
        except OSError:  # how Linux tells that nobody writes any more
            pass

    def read(self) -> str:
        """All that was written, when every command has ended."""
        os.close(self._ours)
        self._reader.join()
        os.close(self._screen)
        return self._shown.decode()
