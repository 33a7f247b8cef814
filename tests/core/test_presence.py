"""Runs with other parameters do not meet in one data folder; a dead one is not in the way."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from socket import gethostname

import pytest

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.presence import at_work

AT_WORK = """
import sys
from pathlib import Path
from othink_pipeline.core.presence import at_work
with at_work(Path(sys.argv[1]), sys.argv[2]):
    print("at work", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> subprocess.Popen[str]:
    """Another process that is at work in ``tmp_path / "marks"`` with parameters "a"."""
    process = subprocess.Popen(
        [sys.executable, "-c", AT_WORK, str(tmp_path / "marks"), "a"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "at work\n"
    return process


def test_the_same_parameters_share_a_folder_and_others_do_not(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    with at_work(marks, "a"):
        pass
    told = rf"process {other.pid} on {gethostname()}.*--env=<name>"
    refused = pytest.raises(ConfigurationError, match=told)
    with refused, at_work(marks, "b"):
        raise AssertionError("it was let in")
    other.communicate("")  # it ends in order
    with at_work(marks, "b"):
        mark, _ = sorted(mark.name for mark in marks.iterdir())
        assert mark.startswith(f"b-{gethostname()}-{os.getpid()}-")
    assert [mark.name for mark in marks.iterdir()] == ["door.lock"]


def test_the_mark_of_a_killed_process_is_swept(
    other: subprocess.Popen[str], tmp_path: Path
) -> None:
    other.send_signal(signal.SIGKILL)
    other.communicate()
    marks = tmp_path / "marks"
    pattern = f"a-{gethostname()}-{other.pid}-*.lock"
    assert len(list(marks.glob(pattern))) == 1
    with at_work(marks, "b"):
        assert not list(marks.glob(pattern))


def test_two_with_one_host_name_and_number_share_a_folder(tmp_path: Path) -> None:
    """As in two containers: neither waits for the other's mark."""
    with at_work(tmp_path, "a"), at_work(tmp_path, "a"):
        assert len(list(tmp_path.glob("a-*.lock"))) == 2


def test_a_run_of_this_process_counts_too(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigurationError, match="other parameters")
    with at_work(tmp_path, "a"), refused, at_work(tmp_path, "b"):
        raise AssertionError("it was let in")
