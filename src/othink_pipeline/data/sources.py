"""Read data sets: a hub's, a folder's, or a JSON file with pictures beside it.

Nothing is decoded here, and no more than a few rows are in memory at a time, but for those of a
JSON array.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.data.columns import (
    SourceRow,
    check_columns,
    column_names,
    read_row,
    spell,
    top_level,
)
from othink_pipeline.data.parameters import Columns, Folder, Hub, Jsonl, SplitSource

if TYPE_CHECKING:
    from datasets import Dataset

BATCH_ROWS = 16
"""So many rows of a table are read at a time."""

_PART = re.compile(r"([0-9]+)(?:-of-([0-9]+)(?:-[0-9a-f]+)?)?")
"""Of a part of a split the name between ``train-`` and ``.parquet``."""


class SourceRows(NamedTuple):
    """A source's rows, as often as they are wanted, and what it is, for the manifest."""

    read: Callable[[], Iterator[SourceRow]]
    facts: dict[str, Any]


def read_source(split: SplitSource, key: str) -> SourceRows:
    """Open a source.

    Args:
        key: where it stands in the parameters, for messages.

    Raises:
        ConfigurationError: it is not there as a whole, not of that kind, or lacks a column; of a
            JSON file also as it is read.
    """
    source, facts = split.source, split.source.model_dump(exclude_none=True)
    if isinstance(source, Hub):
        from othink_pipeline.core.hub import load_hub_dataset

        table, folder = load_hub_dataset(source.id, source.revision, source.split, source.subset)
        facts["commit"] = folder.name
        return SourceRows(_read_table(table, split.columns, folder, key), facts)
    check_there(source, key)
    if isinstance(source, Jsonl):
        return SourceRows(partial(_read_json, source, split.columns, key), facts)
    folder = Path(source.path)
    table = _load_saved(source, key)
    if table is not None:
        return SourceRows(_read_table(table, split.columns, folder, key), facts)
    return SourceRows(_read_parquet(find_parts(source, key), split.columns, folder, key), facts)


@contextmanager
def readable(where: str, key: str) -> Iterator[None]:
    """What a damaged data set makes its many readers raise, told as one error.

    Args:
        where: what is read.
        key: the split's, in the parameters.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = " ".join(str(error).split())
        raise ConfigurationError(
            f"{key}.source: {where} cannot be read: {fault} ({type(error).__name__}). If it is "
            "damaged or half there, download it again."
        ) from error


def check_there(source: Folder | Jsonl, key: str) -> None:
    """Check that file and folders are there.

    Raises:
        ConfigurationError: with the key that names one that is not.
    """
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


def find_saved(source: Folder, key: str) -> Path | None:
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


def _load_saved(source: Folder, key: str) -> Dataset | None:
    with readable(source.path, key):
        saved = find_saved(source, key)
    if saved is None:
        return None
    from datasets import Dataset

    with readable(str(saved), key):
        return Dataset.load_from_disk(str(saved))


def find_parts(source: Folder, key: str) -> list[Path]:
    """The parquet files of a split: ``train.parquet``, or all of ``train-00000-of-00003.parquet``.

    Raises:
        ConfigurationError: none, a part is missing, or a file that begins so and is no part of it.
    """
    folder, split = Path(source.path), source.split
    there = sorted(path for path in folder.iterdir() if path.suffix == ".parquet")
    whole = [path for path in there if path.stem == split]
    parts = [path for path in there if path.stem.startswith(f"{split}-")]
    found = [_PART.fullmatch(path.stem.removeprefix(f"{split}-")) for path in parts]
    named = f"{key}.source.split = {split!r}: in {folder} "
    strangers = [path.name for path, part in zip(parts, found, strict=True) if part is None]
    strangers += [path.name for path in parts if whole]
    if strangers:
        raise ConfigurationError(
            f"{named}{', '.join(strangers[:4])} may or may not belong to it. A split is "
            f"{split}.parquet, or {split}-00000-of-00003.parquet and so on, all of them: rename or "
            "move what is no part of it."
        )
    numbers = sorted(int(part[1]) for part in found if part)
    totals = {part[2] for part in found if part}
    if len(totals) > 1 or len(set(numbers)) < len(numbers):
        raise ConfigurationError(
            f"{named}are parts of several wholes: {', '.join(path.name for path in parts[:4])}. "
            "Leave those of one."
        )
    if numbers:
        total = next(iter(totals)) or numbers[-1] + 1
        first = 0 if totals != {None} else min(numbers[0], 1)
        if missing := sorted(set(range(first, int(total))) - set(numbers)):
            raise ConfigurationError(
                f"{named}{len(missing)} of its parts are missing, the first is number "
                f"{missing[0]}. Download all of them: a part must not pass for the whole."
            )
    if not whole + parts:
        listed = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise ConfigurationError(
            f"{key}.source.path = {source.path!r}: neither saved by datasets (save_to_disk) nor "
            f"are there files {split}.parquet or {split}-*.parquet. There are: {listed}."
        )
    return whole + parts


def _read_table(
    table: Dataset, columns: Columns, folder: Path | None, key: str
) -> Callable[[], Iterator[SourceRow]]:
    names = table.column_names
    check_columns(columns, names, key, "the data set")
    features = table.features
    undecoded = table.select_columns(top_level(column_names(columns), names)).with_format("arrow")

    def read() -> Iterator[SourceRow]:
        with readable("the data set", key):
            yield from _rows(undecoded.iter(BATCH_ROWS), features, columns, folder)

    return read


def _read_parquet(
    files: list[Path], columns: Columns, folder: Path, key: str
) -> Callable[[], Iterator[SourceRow]]:
    import pyarrow.parquet as pq
    from datasets import Features

    for file in files:
        with readable(str(file), key):
            schema = pq.read_schema(file)
            features = Features.from_arrow_schema(schema)
        check_columns(columns, schema.names, key, str(file))
    wanted = top_level(column_names(columns), schema.names)

    def batches() -> Iterator[Any]:
        for file in files:
            with readable(str(file), key), pq.ParquetFile(file) as content:
                yield from content.iter_batches(BATCH_ROWS, columns=wanted)

    return lambda: _rows(batches(), features, columns, folder)


def _rows(
    batches: Iterable[Any], features: Mapping[str, Any], columns: Columns, folder: Path | None
) -> Iterator[SourceRow]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            spelt = {name: spell(value, features[name]) for name, value in row.items()}
            yield read_row(f"row {number}", spelt, columns, folder)
            number += 1


def _read_json(source: Jsonl, columns: Columns, key: str) -> Iterator[SourceRow]:
    for place, row in read_objects(source, key):
        check_columns(columns, list(row), key, f"{source.file}, {place}")
        yield read_row(place, row, columns, Path(source.images))


def read_objects(source: Jsonl, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON file, lines or one array, each with its place."""
    with readable(source.file, key), Path(source.file).open("rb") as lines:
        start = lines.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")
        lines.seek(0)
        if start.startswith(b"["):
            rows = _parse(lines.read(), source.file)
            for number, row in enumerate(rows, start=1):
                place = f"item {number}"
                yield place, _check_object(row, source.file, place)
            return
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"line {number}"
                row = _parse(line, f"{source.file}, {place}")
                yield place, _check_object(row, source.file, place)


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{where}: no JSON ({error}). Each line must be a JSON object, or the whole file an "
            "array of them, in UTF-8."
        ) from None


def _check_object(row: Any, file: str, place: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ConfigurationError(f"{file}, {place}: {type(row).__name__}, not a JSON object.")
    return row
