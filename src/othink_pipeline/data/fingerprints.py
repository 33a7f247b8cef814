"""What a data set holds, as far as that is quickly told: no picture is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from othink_pipeline.data.columns import top_level, value_of
from othink_pipeline.data.parameters import Hub, Jsonl, SplitSource
from othink_pipeline.data.pictures import find_file
from othink_pipeline.data.sources import (
    check_there,
    find_parts,
    find_saved,
    read_objects,
    readable,
)

BATCH_ROWS = 1024
"""So many rows of a parquet file are read at a time, their pictures left out."""

MAX_PATH_CHARACTERS = 1000
"""A longer text in a picture's column is a picture in base64."""


def fingerprint(split: SplitSource, key: str) -> Any:
    """What a source holds, as far as that is quickly told: changes with it, JSON.

    Of local files, those with pictures that are named in them included, their names, sizes and
    times of change: to read 14 GB at every start would take a minute. A hub's is its revision: a
    branch that moves on is noticed only as a commit is named, or the examples are made anew.

    Raises:
        ConfigurationError: there is no such file or folder.
    """
    source = split.source
    if isinstance(source, Hub):
        return None
    check_there(source, key)
    if isinstance(source, Jsonl):
        files, folder = [Path(source.file)], Path(source.images)
        rows = read_objects(source, key)
        named: Iterator[str] = (
            text for _, row in rows for text in _strings(value_of(row, split.columns.image))
        )
    else:
        folder = Path(source.path)
        with readable(source.path, key):
            saved = find_saved(source, key)
            files = sorted(saved.iterdir()) if saved else find_parts(source, key)
        files = [file for file in files if not file.name.startswith(".")]  # .DS_Store
        named = _texts_of_tables(saved, files, split.columns.image, key)
    paths = {text for text in named if len(text) <= MAX_PATH_CHARACTERS}
    pictures = {file for text in paths if (file := _find_existing(text, folder))}
    return [_stat(file) for file in [*files, *sorted(pictures)]]


def _strings(value: Any) -> Iterator[str]:
    """What may be paths in the value of a picture's column."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, each in value.items():
            if name != "bytes":
                yield from _strings(each)
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)


def _texts_of_tables(saved: Path | None, files: list[Path], column: str, key: str) -> Iterator[str]:
    """The same of tables, whose pictures themselves are not read."""
    import pyarrow.parquet as pq

    if saved:
        from datasets import Dataset

        with readable(str(saved), key):
            table = Dataset.load_from_disk(str(saved)).data
        if (top := _top(column, table.column_names)) is not None:
            for chunk in table.column(top).chunks:
                yield from _array_strings(chunk)
        return
    for file in files:
        with readable(str(file), key), pq.ParquetFile(file) as content:
            leaves = [content.schema.column(n) for n in range(len(content.schema))]
            texts = [leaf.path for leaf in leaves if leaf.logical_type.type == "STRING"]
            wanted = [p for p in texts if p.split(".")[0] == column.split(".")[0]]
            wanted = [p for p in wanted if not p.endswith(".bytes")]
            for batch in content.iter_batches(BATCH_ROWS, columns=wanted):
                for array in batch.columns:
                    yield from _array_strings(array)


def _top(column: str, there: list[str]) -> str | None:
    return next((name for name in top_level([column], there) if name in there), None)


def _array_strings(array: pa.Array) -> Iterator[str]:
    kind = array.type
    if pa.types.is_struct(kind):
        for field in kind:
            if field.name != "bytes":
                yield from _array_strings(array.field(field.name))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _array_strings(array.values)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield from (text.as_py() for text in array if text.is_valid)  # one at a time


def _find_existing(text: str, folder: Path) -> Path | None:
    """The file that a text names; None where there is none: it may be base64 as well."""
    file = find_file(text, folder)
    try:
        return file if file and file.is_file() else None
    except OSError:
        return None


def _stat(file: Path) -> list[Any]:
    status = file.stat()
    return [str(file), status.st_size, status.st_mtime_ns]
