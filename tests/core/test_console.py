"""Colours on a terminal, none elsewhere."""

import io
import logging
from collections.abc import Iterator

import pytest

from othink_pipeline.core.console import colour_levels
from tests.support.terminal import InMemory


@pytest.fixture(autouse=True)
def names() -> Iterator[None]:
    """The levels have their own names again."""
    yield
    for name in ("WARNING", "ERROR"):
        logging.addLevelName(getattr(logging, name), name)


@pytest.mark.parametrize(
    ("stream", "no_color", "term", "shown"),
    [
        (InMemory(), "", "xterm", "\x1b[31mERROR  \x1b[0m full"),
        (InMemory(), "1", "xterm", "ERROR   full"),
        (InMemory(), "", "dumb", "ERROR   full"),
        (io.StringIO(), "", "xterm", "ERROR   full"),
    ],
)
def test_errors_are_red_where_a_terminal_shows_it(
    stream: io.StringIO, no_color: str, term: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", term)
    for _ in range(2):  # each context of a notebook
        colour_levels()
    record = logging.LogRecord("a", logging.ERROR, "", 0, "full", None, None)
    assert logging.Formatter("%(levelname)-7s %(message)s").format(record) == shown
    assert logging.getLevelName("ERROR") == logging.ERROR
