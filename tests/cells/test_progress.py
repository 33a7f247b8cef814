"""A line that lives on a terminal, and nothing of it where there is none."""

from __future__ import annotations

import io
import logging
import re
from typing import TextIO

import pytest

from othink_pipeline.cells import progress
from othink_pipeline.core.units import describe_seconds
from tests.support.terminal import COLOURS, InMemory, Terminal


def train(monkeypatch: pytest.MonkeyPatch, stream: TextIO, is_shown: bool = True) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    with progress.show_progress("counting.sft_steps.s0", 48, is_shown) as shown:
        shown.validated({"counting": 0.25, "geometry": 0.125})
        for update in (47, 48):  # it goes on from an earlier process's update
            shown.update(update, {"train/reward": 0.5, "train/loss": 7.0})
        shown.validated({"counting": 0.5, "geometry": 0.125})


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("no_color", ["", "1"])
def test_a_terminal_has_a_live_line_that_fits(
    monkeypatch: pytest.MonkeyPatch, columns: int, no_color: str
) -> None:
    monkeypatch.setattr(progress.tqdm, "monitor_interval", 0)
    monkeypatch.setenv(progress.LEFT_VARIABLE, "2900")
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(columns)
    with open(terminal.path, "w") as stream:
        train(monkeypatch, stream)
    said = terminal.read()
    plain = COLOURS.sub("", said)
    assert (said == plain) is bool(no_color)
    assert "\n" not in plain
    seen = plain.split("\r")
    assert max(map(len, seen)) == columns - 1  # in the last one a terminal would wrap
    whole = r"counting.sft_steps.s0 █+ 48/48  00:00 left, all 48 min, val 50/12 %  reward 0.50"
    assert any(re.fullmatch(whole, line) for line in seen), seen
    assert seen[-2].isspace() and not seen[-1]  # it is gone


def test_the_time_left_is_told_by_what_was_trained_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the loading and the scoring before it, nor by what an earlier process trained."""
    now = [0.0]
    monkeypatch.setattr(progress._Line, "monitor_interval", 0)
    monkeypatch.setenv(progress.LEFT_VARIABLE, "1000")
    monkeypatch.setattr("sys.stderr", InMemory())
    with progress.show_progress("a", 48, True) as shown:
        bar = shown._bar
        bar._time = lambda: now[0]
        for update, seconds in ((40, 300.0), (41, 330.0), (42, 360.0)):
            now[0] = seconds
            shown.update(update, {})
        assert bar.format_dict["grid"] == f", all {describe_seconds(6 * 30 + 1000)}"
        assert "03:00 left" in str(bar)


def test_a_terminal_without_a_size_has_the_lines_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal(0)
    with open(terminal.path, "w") as stream:
        monkeypatch.setattr("sys.stderr", stream)
        with progress.show_progress("a", 4, True):
            assert logging.getLogger(progress.LINES).level == logging.NOTSET
    assert terminal.read() == ""


@pytest.mark.parametrize(("stream", "is_shown"), [(io.StringIO(), True), (InMemory(), False)])
def test_elsewhere_there_is_no_line(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, is_shown: bool
) -> None:
    train(monkeypatch, stream, is_shown)
    assert stream.getvalue() == ""


def test_the_log_says_it_where_no_line_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.tqdm, "monitor_interval", 0)
    line = logging.getLogger(progress.LINES)
    logging.getLogger("othink_pipeline").setLevel(logging.INFO)
    for stream, is_enabled in ((io.StringIO(), True), (InMemory(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        with progress.show_progress("a", 4, True):
            assert line.isEnabledFor(logging.INFO) is is_enabled
        assert line.isEnabledFor(logging.INFO)
