"""A few answers of a model beside what was asked, to be read: the same examples in every cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from PIL import Image, ImageOps

from othink_pipeline.data.examples import read_examples
from othink_pipeline.data.manifests import Examples
from othink_pipeline.data.pictures import decode

SAMPLES = 48
"""Of all tasks together."""
PICTURE_PIXELS = 112
"""Of the longer side of a picture."""
MARKS = {True: "✓", False: "✗"}


def sample_answers(
    predictions: Mapping[str, pd.DataFrame], examples: Mapping[str, Examples]
) -> Any:
    """A table of answers: as many of each task, and of each of its question forms in turn.

    Args:
        predictions: by task, a row for each test example.
        examples: by task.

    Returns:
        Columns question (with the example's id and the right answer), answer (with its verdict),
        picture, task, form, tokens.
    """
    each = SAMPLES // len(predictions)
    tables = [
        _sample(table, examples[task], each).assign(task=task)
        for task, table in predictions.items()
    ]
    return pd.concat(tables, ignore_index=True)[
        ["question", "answer", "picture", "task", "form", "tokens"]
    ]


def _sample(predictions: pd.DataFrame, examples: Examples, size: int) -> pd.DataFrame:
    import datasets  # seconds, and `kedro registry list` comes by here

    in_turn = predictions.groupby("form").cumcount().sort_values(kind="stable").index[:size]
    chosen = predictions.loc[in_turn].reset_index(drop=True)
    tests = read_examples(examples.splits["test"].path)
    tests = tests.cast_column("image", datasets.Image(decode=False))
    places = {example: place for place, example in enumerate(tests["id"])}
    asked = [tests[places[example]] for example in chosen["example_id"]]
    shown = asked
    if "image_of" in chosen:
        shown = [tests[places[example]] for example in chosen["image_of"]]
    return chosen.assign(
        question=[f"{row['id']}\n{row['question']}\nright: {row['answer']}" for row in asked],
        answer=[
            f"{MARKS[bool(correct)]} {completion}"
            for correct, completion in zip(chosen["correct"], chosen["completion"], strict=True)
        ],
        picture=pd.Series([_small(row["image"]["bytes"]) for row in shown], dtype=object),
        tokens=chosen["completion_tokens"],
    )


def _small(picture: bytes) -> Image.Image:
    return ImageOps.contain(decode(picture), (PICTURE_PIXELS, PICTURE_PIXELS))
