"""Of a row what an example is made of: its columns' values, spelt as their types mean them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, NamedTuple

import numpy as np

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.data.parameters import Columns
from othink_pipeline.data.pictures import UnusableError, find_pictures, shown
from othink_pipeline.scoring.golds import answer_text, unwrap


class SourceRow(NamedTuple):
    """A row of a data set as it came: what an example is made of, not yet checked.

    Attributes:
        place: where it stands, for people: ``row 7``, counted from 0, or ``line 8``, from 1.
        images: the pictures' bytes, not decoded.
        fault: why it cannot be used; empty where nothing is known of.
    """

    place: str
    question: Any
    answer: Any
    steps: Any
    images: tuple[bytes, ...]
    fault: str = ""


def column_names(columns: Columns) -> list[str]:
    """All columns that are named, dotted ones as they are."""
    options = columns.options or ()
    named = [columns.image, columns.question, columns.answer, columns.steps]
    named += [options] if isinstance(options, str) else list(options)
    return [name for name in named if name is not None]


def top_level(names: Iterable[str], there: Sequence[str]) -> list[str]:
    """The columns of a table that hold these."""
    return list(dict.fromkeys(n if n in there else n.partition(".")[0] for n in names))


def check_columns(columns: Columns, there: Sequence[str], key: str, where: str) -> None:
    """Check that a table or row has what is named.

    Raises:
        ConfigurationError: with the key, the column and those that there are.
    """
    for name, named in columns:
        for column in [named] if isinstance(named, str) else named or ():
            if column not in there and column.partition(".")[0] not in there:
                raise ConfigurationError(
                    f"{key}.columns.{name} = {column!r}: no such column in {where}. "
                    f"There are: {', '.join(sorted(there))}."
                )


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """A column's value, also of a nested one as ``reward_model.ground_truth`` or ``prompt.0``.

    None where something on the way is missing.
    """
    if column in row:
        return row[column]
    value: Any = row
    for part in column.split("."):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def read_row(
    place: str, row: Mapping[str, Any], columns: Columns, folder: Path | None
) -> SourceRow:
    """What an example is made of.

    Args:
        folder: that the pictures' paths start from; None: paths lead nowhere.
    """
    question = value_of(row, columns.question)
    steps = "" if columns.steps is None else value_of(row, columns.steps)
    steps = unwrap(steps, "think") if isinstance(steps, str) else steps
    answer, fault = value_of(row, columns.answer), ""
    images: tuple[bytes, ...] = ()
    try:
        images = find_pictures(value_of(row, columns.image), folder)
        if columns.options is not None:
            options = _options(row, columns.options)
            answer = _option_text(answer, options)
            lines = "\n".join(f"{letter}. {text}" for letter, text in options.items())
            question = f"{question}\n{lines}" if isinstance(question, str) else question
    except UnusableError as error:
        fault = str(error)
    return SourceRow(place, question, answer_text(answer), steps, images, fault)


def spell(value: Any, feature: Any) -> Any:
    """A value by its column's type: a label's name, and no more digits than the type has."""
    from datasets import ClassLabel, Value

    if value is None:
        return None
    if isinstance(feature, ClassLabel):
        return feature.names[value] if 0 <= value < len(feature.names) else None
    if isinstance(feature, Value) and feature.dtype in ("float16", "float32"):
        return np.dtype(feature.dtype).type(value)
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {name: spell(each, feature.get(name)) for name, each in value.items()}
    if isinstance(value, list) and hasattr(feature, "feature"):
        return [spell(each, feature.feature) for each in value]
    return value


def _options(row: Mapping[str, Any], columns: str | Sequence[str]) -> dict[str, str]:
    """Letter -> text of a question's options; empty ones at the end are none."""
    if isinstance(columns, str):
        values = value_of(row, columns)
    else:
        values = [value_of(row, column) for column in columns]
    if not isinstance(values, list):
        raise UnusableError(f"the options are {type(values).__name__}, not a list")
    texts = [answer_text(value) for value in values]
    while texts and texts[-1] in (None, ""):
        texts.pop()
    if not 1 < len(texts) <= len(ascii_uppercase):
        raise UnusableError(f"{len(texts)} options: 2 to {len(ascii_uppercase)} are asked")
    if not all(isinstance(text, str) for text in texts):
        raise UnusableError(f"the options {shown(texts)} are not all texts")
    return dict(zip(ascii_uppercase, texts, strict=False))


def _option_text(answer: Any, options: Mapping[str, str]) -> str:
    """The right option as ``B. text``, given by letter, by text, or as a number: its place from 0.

    Raises:
        UnusableError: it is none of them, or can be meant in two ways.
    """
    letters = list(options)
    text = answer_text(answer)
    is_whole = isinstance(answer, int | np.integer) and not isinstance(answer, bool)
    # A column of whole numbers with a hole in it holds floats; so does one of values.
    is_number = is_whole or (isinstance(answer, float | np.floating) and str(text).isdecimal())
    meant = letters[int(answer) :][:1] if is_number and answer >= 0 else []
    hint = ""
    if not is_whole:
        plain = text.strip("(). ").upper() if isinstance(text, str) else ""
        meant += [letter for letter in letters if letter == plain]
        meant += [letter for letter, option in options.items() if option == text]
        meant = list(dict.fromkeys(meant))
        if not meant and not is_number and plain.isdecimal():
            hint = "; a place, counted from 0, is a number and no text"
    if len(meant) != 1:
        what = "none of the options" if not meant else f"options {' and '.join(meant)}"
        where = f"{letters[0]} to {letters[-1]}{hint}"
        raise UnusableError(f"the answer {shown(answer)} is {what} {where}")
    return f"{meant[0]}. {options[meant[0]]}"
