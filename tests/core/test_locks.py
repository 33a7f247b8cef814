"""Locks with real processes: killed holders, forked workers, threads, Ctrl-C."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import gethostname

import pytest

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.locks import is_locked, lock

HEADER = """
import os, signal, sys
from pathlib import Path
from othink_pipeline.core.locks import is_locked, lock

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
file = Path(sys.argv[1])
def busy(holder): print("busy", holder, flush=True)
"""
HOLD = """
with lock(file, busy):
    print("held", flush=True)
    sys.stdin.read()
print("free", flush=True)
"""
Process = subprocess.Popen[str]
Start = Callable[[str], Process]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cell" / "0123456789abcdef.lock"


@pytest.fixture
def start(file: Path) -> Iterator[Start]:
    """Starts processes that run a script on ``file``."""
    started: list[Process] = []

    def _start(script: str) -> Process:
        command = [sys.executable, "-c", HEADER + script, str(file)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        started.append(process)
        return process

    yield _start
    for process in started:
        process.kill()
        process.communicate()


def line(process: Process) -> str:
    """The next line that a process prints; empty when it has ended."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def never(holder: str) -> None:
    raise AssertionError(f"has to wait for {holder!r}")


class BusyError(Exception):
    pass


def give_up(holder: str) -> None:
    raise BusyError(holder)


def probe(file: Path) -> bool:
    """Whether another process finds the file locked."""
    script = f"{HEADER}print(is_locked(file))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, check=True
    )
    return {"True": True, "False": False}[done.stdout.strip()]


def test_a_lock_keeps_other_processes_out_until_it_is_left(file: Path, start: Start) -> None:
    assert not is_locked(file)
    assert not file.exists(), "to ask must not make files"
    holder = start(HOLD)
    assert line(holder) == "held"
    assert is_locked(file)
    for _ in range(2):  # neither to ask nor to give up changes anything for the holder
        with pytest.raises(BusyError) as told, lock(file, give_up):
            raise AssertionError("two hold one lock")
        host, pid, *since = str(told.value).split()
        assert (host, int(pid), len(since)) == (gethostname(), holder.pid, 2)
    assert is_locked(file)
    holder.communicate()
    assert not is_locked(file)
    assert file.read_text() == ""
    with lock(file, never):
        assert probe(file)
        assert file.read_text().split()[:2] == [gethostname(), str(os.getpid())]
    assert not probe(file)


def test_a_killed_holder_leaves_no_lock(file: Path, start: Start) -> None:
    holder = start(HOLD)
    assert line(holder) == "held"
    waiter = start(HOLD)
    assert line(waiter).startswith(f"busy {gethostname()} {holder.pid} ")
    os.kill(holder.pid, signal.SIGKILL)
    assert line(waiter) == "held", "told more than once, or not let in"
    assert file.read_text().split()[1] == str(waiter.pid)
    waiter.kill()
    waiter.wait()
    assert file.read_text().split()[1] == str(waiter.pid), "nobody was left to empty it"
    assert not is_locked(file)
    with lock(file, never):
        pass


def test_a_forked_worker_does_not_hold_the_lock_on(file: Path, start: Start) -> None:
    holder = start(
        """
with lock(file, busy):
    if (child := os.fork()) == 0:
        print(os.getpid(), flush=True)  # it has let go of what it was born with
        sys.stdin.read()  # outlives its parent
        os._exit(0)
    os.waitpid(child, 0)
"""
    )
    child = int(line(holder))
    try:
        assert is_locked(file)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)  # it is still there
        assert not is_locked(file)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_worker_neither_takes_nor_breaks_the_lock(file: Path, start: Start) -> None:
    holder = start(
        """
class Left(Exception): pass
def leave(holder): raise Left
with lock(file, busy):
    if os.fork() == 0:
        found = is_locked(file)
        try:
            with lock(file, leave):
                print("two hold one lock", flush=True)
        except Left:
            print(found, flush=True)
        sys.exit()  # leaves the parent's block as well
    os.wait()
    print("alone", flush=True)
    sys.stdin.read()
"""
    )
    assert [line(holder), line(holder)] == ["True", "alone"]
    assert is_locked(file)
    assert file.read_text().split()[1] == str(holder.pid)


def test_threads_of_one_process_wait_for_one_another(file: Path) -> None:
    told: list[str] = []
    waits, inside = threading.Event(), threading.Event()

    def busy(holder: str) -> None:
        told.append(holder)
        waits.set()

    def second() -> None:
        with lock(file, busy):
            inside.set()

    thread = threading.Thread(target=second)
    with lock(file, never):
        thread.start()
        assert waits.wait(10)
        assert not inside.wait(0.2)
        assert probe(file)
    thread.join(10)
    assert inside.is_set()
    assert [text.split()[:2] for text in told] == [[gethostname(), str(os.getpid())]]
    assert not is_locked(file)


def test_to_take_a_lock_twice_is_an_error_and_keeps_it(file: Path) -> None:
    alias = file.parent / ".." / file.parent.name / file.name
    with lock(file, never):
        with pytest.raises(RuntimeError, match="already"), lock(alias, never):
            pass
        assert is_locked(alias)
        assert probe(file)
    with lock(file, never):
        pass


def test_a_killed_holders_longer_name_does_not_shine_through(file: Path) -> None:
    file.parent.mkdir()
    file.write_text("a-host-with-a-long-name 1234567 " * 9)
    with lock(file, never):
        assert file.read_text().count(" ") == 3


def test_an_error_frees_the_lock(file: Path) -> None:
    with pytest.raises(ZeroDivisionError), lock(file, never):
        _ = 1 / 0
    assert not probe(file)
    with lock(file, never):
        pass


def test_an_interrupt_ends_the_wait(file: Path, start: Start) -> None:
    with lock(file, never):
        waiter = start(HOLD)
        assert line(waiter).startswith("busy ")
        waiter.send_signal(signal.SIGINT)
        _, errors = waiter.communicate(timeout=10)
        assert waiter.returncode == -signal.SIGINT
        assert "KeyboardInterrupt" in errors


def test_no_two_processes_are_ever_inside_together(file: Path, start: Start) -> None:
    count = file.with_name("count")
    file.parent.mkdir()
    count.write_text("0")
    adders = [
        start(
            """
count = file.with_name("count")
sys.stdin.readline()
for _ in range(100):
    with lock(file, lambda holder: None):
        count.write_text(str(int(count.read_text()) + 1))
"""
        )
        for _ in range(3)
    ]
    for adder in adders:
        assert adder.stdin is not None
        adder.stdin.write("\n")
        adder.stdin.flush()
    assert [adder.wait(30) for adder in adders] == [0, 0, 0]
    assert count.read_text() == "300"


def test_what_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for file in (tmp_path / "file" / "x.lock", tmp_path / "folder"):
        with pytest.raises(ConfigurationError, match="cannot be locked") as error:  # noqa: SIM117
            with lock(file, never):
                pass
        assert str(file) in error.value.message
