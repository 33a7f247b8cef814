"""Kedro's data sets of files that other runs may read: each is replaced at once.

Kedro's own empty their file before they write it, and several runs may share the work on a grid.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from kedro_datasets import pandas, text


class Published:
    """Stands before a data set of one local file: who reads finds the former or the new one."""

    def save(self, data: Any) -> None:
        """Write a file of another name beside it, and put that in its place."""
        dataset: Any = self
        # Remote files cannot be renamed, and a version has a place of its own.
        if dataset._protocol != "file" or dataset._version:
            super().save.__wrapped__(self, data)  # type: ignore[misc]
            return
        file = Path(dataset._filepath)
        scratch = file.with_name(f".{file.name}.{uuid4().hex[:8]}.new")
        part = dataset._copy(_filepath=PurePosixPath(scratch))
        its_own: Any = super(Published, part)
        try:
            its_own.save.__wrapped__(part, data)  # Kedro logs one save, not two
            os.replace(scratch, file)
        finally:
            scratch.unlink(missing_ok=True)


class CSVDataset(Published, pandas.CSVDataset):  # type: ignore[misc]  # it is not typed
    """A table of text."""


class ParquetDataset(Published, pandas.ParquetDataset):  # type: ignore[misc]
    """A table of columns."""


class TextDataset(Published, text.TextDataset):  # type: ignore[misc]
    """A text."""
