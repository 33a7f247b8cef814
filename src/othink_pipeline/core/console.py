"""Colours, where a person looks at a terminal that shows them; plain text elsewhere."""

from __future__ import annotations

import logging
import os
import sys

import click

_COLOURS = {logging.WARNING: "yellow", logging.ERROR: "red"}


def has_colours() -> bool:
    """Whether stderr is a terminal whose user wants colours (https://no-color.org)."""
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and sys.stderr.isatty()


def colour_levels() -> None:
    """Let the log's warnings and errors stand out, by the names of their levels.

    Kedro takes no formatter of a project's own (``conf/logging.yml``).
    """
    for level, colour in _COLOURS.items():
        name = logging.getLevelName(level)
        if has_colours() and name.isalpha():
            logging.addLevelName(level, click.style(f"{name:7}", fg=colour))
