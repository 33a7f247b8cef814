"""A line that lives on a terminal, and nothing of it where there is none."""

from __future__ import annotations

import io
import logging

import pytest

from othink_pipeline.cells import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def train(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, is_shown: bool = True) -> str:
    monkeypatch.setattr("sys.stderr", stream)
    with progress.show_progress("counting.grpo.s0", 4, is_shown) as shown:
        for update in (3, 4):  # it goes on from an earlier process's second update
            shown.update(update, {"train/reward": 0.5, "train/loss": 7.0})
            shown.validated({"counting": 0.25, "geometry": 0.125})
    return stream.getvalue()


def test_a_terminal_has_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.tqdm, "monitor_interval", 0)
    said = train(monkeypatch, Terminal())
    assert "counting.grpo.s0" in said
    assert "4/4, reward 0.50  validation 25/12 %" in said
    assert "loss" not in said  # RL's says nothing
    assert "\n" not in said.rstrip("\n")


@pytest.mark.parametrize(("stream", "is_shown"), [(io.StringIO(), True), (Terminal(), False)])
def test_elsewhere_there_is_no_line(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, is_shown: bool
) -> None:
    assert train(monkeypatch, stream, is_shown) == ""


def test_the_log_says_it_where_no_line_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.tqdm, "monitor_interval", 0)
    line = logging.getLogger(progress.LINES)
    logging.getLogger("othink_pipeline").setLevel(logging.INFO)
    for stream, is_enabled in ((io.StringIO(), True), (Terminal(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        with progress.show_progress("a", 4, True):
            assert line.isEnabledFor(logging.INFO) is is_enabled
        assert line.isEnabledFor(logging.INFO)
