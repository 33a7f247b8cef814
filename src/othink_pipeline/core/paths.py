"""Paths in parameters: relative ones stay inside the project."""

from __future__ import annotations

from os.path import normpath
from pathlib import PurePath


def check_path(value: str) -> str:
    """``value`` itself: an absolute path, which is meant, or one that stays in the project.

    Raises:
        ValueError: a relative path that climbs out of the project, or no path at all.
    """
    if not value.strip() or "\0" in value:
        raise ValueError("must be a path: a folder in the project, or an absolute path")
    if value.startswith("~"):
        raise ValueError("must be a path without ~, which nobody expands: write it out")
    if PurePath(normpath(value)).parts[:1] == ("..",):
        raise ValueError(
            "must not climb out of the project with '..'; for a folder elsewhere write its "
            "absolute path"
        )
    return value
