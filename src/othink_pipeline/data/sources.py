"""Read data sets: a hub's, a folder's, or a file of JSON lines with pictures beside it.

Nothing is decoded here, and no more than a few rows are in memory at a time.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os.path import isabs, normpath
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.data.parameters import Columns, Folder, Hub, Jsonl, SplitSource

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_ROWS = 16
"""So many rows of a parquet file are read at a time."""


class SourceRow(NamedTuple):
    """A row of a data set as it came: what an example is made of, not yet checked.

    Attributes:
        place: where it stands, for people: ``row 7``, counted from 0, or ``line 8``, from 1.
        image: the picture's bytes, not decoded; or, as text, why there are none.
    """

    place: str
    question: Any
    answer: Any
    steps: Any
    image: bytes | str


class SourceRows(NamedTuple):
    """A source's rows, as often as they are wanted, and what it is, for the manifest."""

    read: Callable[[], Iterator[SourceRow]]
    facts: dict[str, Any]


def read_source(split: SplitSource, key: str) -> SourceRows:
    """Open a source.

    Args:
        key: where it stands in the parameters, for messages.

    Raises:
        ConfigurationError: it is not there, not of that kind, or lacks a column; of JSON lines
            also as they are read.
    """
    source, facts = split.source, split.source.model_dump()
    if isinstance(source, Hub):
        from othink_pipeline.core.hub import load_hub_dataset

        table, facts["commit"] = load_hub_dataset(source.id, source.revision, source.split)
        return SourceRows(_read_table(table, split.columns, None, key), facts)
    if isinstance(source, Jsonl):
        _check_there(source, key)
        return SourceRows(partial(_read_lines, source, split.columns, key), facts)
    _check_there(source, key)
    with _readable(source.path, key):
        saved = _find_saved(source, key)
    if saved is not None:
        from datasets import Dataset

        with _readable(str(saved), key):
            table = Dataset.load_from_disk(str(saved))
        return SourceRows(_read_table(table, split.columns, Path(source.path), key), facts)
    return SourceRows(_read_parquet(source, split.columns, key), facts)


def fingerprint(split: SplitSource, key: str) -> Any:
    """What a source holds, as far as that is quickly told: changes with it, JSON.

    Of local files their names, sizes and times of change: to read 14 GB at every start would take
    a minute. A hub's is its revision: a branch that moves on is noticed only as a commit is
    named, or the examples are made anew.

    Raises:
        ConfigurationError: there is no such file or folder.
    """
    source = split.source
    if isinstance(source, Hub):
        return None
    _check_there(source, key)
    if isinstance(source, Jsonl):
        return [_stat(Path(source.file)), *_list_files(Path(source.images))]
    return list(_list_files(Path(source.path)))


def answer_text(value: Any) -> Any:
    """A number or a text as the text of an answer, without its tag; other values as they are."""
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)  # tables make floats of whole columns for one missing number
    if isinstance(value, int | float):
        return str(value)
    return unwrap(value, "answer") if isinstance(value, str) else value


def unwrap(text: str, tag: str) -> str:
    """What stands in ``<tag>…</tag>`` where that is all of ``text``; else ``text``; stripped."""
    text = text.strip()
    opening, closing = f"<{tag}>", f"</{tag}>"
    whole = text.startswith(opening) and text.endswith(closing)
    if not whole or text.count(opening) != 1 or text.count(closing) != 1:
        return text
    return text[len(opening) : -len(closing)].strip()


@contextmanager
def _readable(where: str, key: str) -> Iterator[None]:
    """What a damaged data set makes its many readers raise, told as one error."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = " ".join(str(error).split())
        raise ConfigurationError(
            f"{key}.source: {where} cannot be read: {fault} ({type(error).__name__}). If it is "
            "damaged or half there, download it again."
        ) from error


def _check_there(source: Folder | Jsonl, key: str) -> None:
    if isinstance(source, Jsonl):
        wanted = {"file": Path(source.file).is_file(), "images": Path(source.images).is_dir()}
    else:
        wanted = {"path": Path(source.path).is_dir()}
    for name, there in wanted.items():
        if not there:
            what = "file" if name == "file" else "folder"
            raise ConfigurationError(
                f"{key}.source.{name} = {getattr(source, name)!r}: no such {what}. Download the "
                "data set, or name the place where it is."
            )


def _check_columns(columns: Columns, there: list[str], key: str, where: str) -> None:
    for name, column in columns:
        if column is not None and column not in there:
            raise ConfigurationError(
                f"{key}.columns.{name} = {column!r}: no such column in {where}. "
                f"There are: {', '.join(sorted(there))}."
            )


def _find_saved(source: Folder, key: str) -> Path | None:
    """The folder of a split that ``datasets`` saved; None where these are parquet files."""
    folder = Path(source.path)
    if (folder / "state.json").is_file():
        return folder
    splits = folder / "dataset_dict.json"
    if not splits.is_file():
        return None
    names: list[str] = json.loads(splits.read_text())["splits"]
    if source.split not in names:
        raise ConfigurationError(
            f"{key}.source.split = {source.split!r}: {folder} has no such split. "
            f"There are: {', '.join(names)}."
        )
    return folder / source.split


def _read_table(
    table: Dataset, columns: Columns, folder: Path | None, key: str
) -> Callable[[], Iterator[SourceRow]]:
    from datasets import Image

    _check_columns(columns, table.column_names, key, "the data set")
    wanted = [column for _, column in columns if column is not None]
    table = table.with_format(None).select_columns(wanted)
    if isinstance(table.features[columns.image], Image):
        table = table.cast_column(columns.image, Image(decode=False))

    def read() -> Iterator[SourceRow]:
        with _readable("the data set", key):
            for number, row in enumerate(table):
                yield _row(f"row {number}", row, columns, folder)

    return read


def _read_parquet(source: Folder, columns: Columns, key: str) -> Callable[[], Iterator[SourceRow]]:
    import pyarrow.parquet as pq

    folder = Path(source.path)
    names = (f"{source.split}.parquet", f"{source.split}-*.parquet")
    files = sorted(file for name in names for file in folder.glob(name))
    if not files:
        found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ConfigurationError(
            f"{key}.source.path = {source.path!r}: neither saved by datasets (save_to_disk) nor "
            f"are there files {source.split}.parquet or {source.split}-*.parquet. "
            f"There are: {found}."
        )
    for file in files:
        with _readable(str(file), key):
            names = pq.read_schema(file).names
        _check_columns(columns, names, key, str(file))
    wanted = [column for _, column in columns if column is not None]

    def read() -> Iterator[SourceRow]:
        number = 0
        for file in files:
            with _readable(str(file), key), pq.ParquetFile(file) as content:
                for batch in content.iter_batches(BATCH_ROWS, columns=wanted):
                    for row in batch.to_pylist():
                        yield _row(f"row {number}", row, columns, folder)
                        number += 1

    return read


def _read_lines(source: Jsonl, columns: Columns, key: str) -> Iterator[SourceRow]:
    folder = Path(source.images)
    with _readable(source.file, key), Path(source.file).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{source.file}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigurationError(
                    f"{where}: no JSON ({error}). Each line must be a JSON object."
                ) from None
            if not isinstance(row, dict):
                raise ConfigurationError(f"{where}: {type(row).__name__}, not a JSON object.")
            _check_columns(columns, list(row), key, where)
            yield _row(f"line {number}", row, columns, folder)


def _row(place: str, row: Mapping[str, Any], columns: Columns, folder: Path | None) -> SourceRow:
    steps = "" if columns.steps is None else row[columns.steps]
    return SourceRow(
        place,
        row[columns.question],
        answer_text(row[columns.answer]),
        unwrap(steps, "think") if isinstance(steps, str) else steps,
        _picture(row[columns.image], folder),
    )


def _picture(value: Any, folder: Path | None) -> bytes | str:
    """A picture's bytes, from the table or from a file below ``folder``; or why there are none."""
    if isinstance(value, Mapping):  # as `datasets` stores a picture
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        return f"no picture, but {type(value).__name__}"
    path = normpath(value)
    if folder is None or isabs(path) or re.match(r"\.\.(/|$)", path) or "\0" in path:
        return f"the picture {value!r} is not in the data set's folder"
    file = folder / path
    if not file.is_file():
        return f"the picture {str(file)!r} is not there"
    return file.read_bytes()


def _stat(file: Path) -> list[Any]:
    status = file.stat()
    return [file.name, status.st_size, status.st_mtime_ns]


def _list_files(folder: Path) -> Iterator[list[Any]]:
    """Path, size and time of change of every file below a folder, in the order of their paths."""
    for home, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            file = Path(home, name)
            if file.is_file() and not name.startswith("."):  # a file manager's .DS_Store
                yield [file.relative_to(folder).as_posix(), *_stat(file)[1:]]
