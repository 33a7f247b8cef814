"""A process that the system hides is no dead one."""

import os
from pathlib import Path

import pytest

from othink_pipeline.core.processes import lives, process_space, process_start


@pytest.mark.parametrize("hides", [FileNotFoundError, PermissionError])  # hidepid=2, hidepid=1
@pytest.mark.parametrize(
    ("signalled", "alive"), [(PermissionError, True), (None, True), (ProcessLookupError, False)]
)
def test_of_a_hidden_process_a_signal_says_whether_it_lives(
    hides: type[OSError],
    signalled: type[OSError] | None,
    alive: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, start, read = os.getpid(), str(process_start(os.getpid())), Path.read_text
    another = own + 1

    def read_text(path: Path) -> str:
        if path == Path(f"/proc/{another}/stat"):
            raise hides
        return read(path)

    def kill(pid: int, signal: int) -> None:
        assert (pid, signal) == (another, 0)
        if signalled is not None:
            raise signalled

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "kill", kill)
    assert lives(another, process_space(), start) == alive
    assert lives(own, process_space(), start)
    assert not lives(own, process_space(), "1"), "its number belongs to another one now"
