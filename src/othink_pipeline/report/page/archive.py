"""All predictions for the page's script: JSON, compressed, as text that cannot end its element."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import pandas as pd

from othink_pipeline.core.blocks import BASE
from othink_pipeline.report.page.items import Item
from othink_pipeline.report.parameters import KnownMethods

MAX_CHARS = 4_000
"""Of each part of a completion: what is longer loses its middle."""
MAX_SAMPLE_CHARS = 1_000
"""Of a sampled completion: there are several to each answer."""
_THINKING = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)
MODEL = ["train_task", "method", "seed", "base_model"]


def pack_predictions(predictions: pd.DataFrame, items: Sequence[Item], known: KnownMethods) -> str:
    """Base64 of gzipped JSON.

    The object has ``models`` ({name, trained_on, method, seed}), ``items`` (the fields of ``Item``)
    and ``answers``: for each model and task {model, first, verdicts, texts, samples}, where item
    ``first`` + k has the k-th verdict (r right, w wrong, u unreadable, - not there), the k-th text,
    thinking and the rest, and the k-th samples, [verdict, text] each; no list of samples where
    nothing was sampled. The items of a task stand together.

    Args:
        predictions: of all models, in report order.
        items: the test examples, task by task.
    """
    table = predictions[MODEL].drop_duplicates()
    models = [_plain(model) for model in table.itertuples(index=False, name=None)]
    places = {model: place for place, model in enumerate(models)}
    first: dict[str, int] = {}
    for place, item in enumerate(items):
        first.setdefault(item.task, place)
    ids = {
        task: [item.example_id for item in of_task]
        for task, of_task in groupby(items, key=lambda item: item.task)
    }
    answers = []
    for (*model, task), rows in predictions.groupby(
        [*MODEL, "eval_task"], dropna=False, sort=False
    ):
        found = rows.set_index("example_id").reindex(ids[str(task)])
        answers.append(
            {
                "model": places[_plain(model)],
                "first": first[str(task)],
                "verdicts": "".join(_verdicts(found)),
                "texts": [_parts(text) for text in found["completion"]],
                "samples": _samples(found),
            }
        )
    content = {
        "models": [
            {"name": name, **_described(model, known)}
            for name, model in zip(model_names(table, known), models, strict=True)
        ],
        "items": [item._asdict() for item in items],
        "answers": answers,
    }
    packed = gzip.compress(json.dumps(content, ensure_ascii=False).encode(), mtime=0)
    return base64.b64encode(packed).decode()


def model_names(models: pd.DataFrame, known: KnownMethods) -> list[str]:
    """What to call each model: its method, its task and, where there are several, its seed.

    Args:
        models: columns train_task, method, seed, base_model; each row once.
    """
    has_seeds = models["seed"].nunique() > 1
    has_bases = (models["method"] == BASE).sum() > 1
    names = []
    for train_task, method, seed, base_model in models[MODEL].to_numpy():
        name = known.name(train_task, method)
        if method == BASE:
            names.append(f"{name} {base_model}" if has_bases else name)
        else:
            names.append(f"{name}, seed {seed}" if has_seeds else name)
    return names


def split_thinking(completion: str) -> tuple[str, str]:
    """What stands in the think block that a completion begins with, and the rest."""
    match = _THINKING.fullmatch(completion)
    return (match[1].strip(), match[2]) if match else ("", completion)


def _parts(completion: Any) -> list[str]:
    if not isinstance(completion, str):  # this model has no answer to it
        return ["", ""]
    return [_shorten(part) for part in split_thinking(completion)]


def _samples(rows: pd.DataFrame) -> list[list[list[str]]]:
    if "sampled_completions" not in rows:
        return []
    both: Iterable[tuple[Any, Any]] = zip(
        rows["sampled_completions"].tolist(), rows["sampled_correct"].tolist(), strict=True
    )
    return [
        [
            ["r" if right else "w", _shorten(text, MAX_SAMPLE_CHARS)]
            for text, right in zip(texts, verdicts, strict=True)
        ]
        if isinstance(texts, Iterable)  # else this model has no answer to it
        else []
        for texts, verdicts in both
    ]


def _shorten(text: str, limit: int = MAX_CHARS) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]} … [{len(text) - limit:,} characters] … {text[-half:]}"


def _verdicts(rows: pd.DataFrame) -> list[str]:
    right, unreadable = rows["correct"].eq(True), rows["unparseable"].eq(True)
    letters = pd.Series("w", index=rows.index).mask(unreadable, "u").mask(right, "r")
    return letters.mask(rows["correct"].isna(), "-").tolist()


def _plain(model: Iterable[Any]) -> tuple[Any, ...]:
    """What names a model, as JSON can hold it."""
    return tuple(None if pd.isna(part) else part for part in model)


def _described(model: tuple[Any, ...], known: KnownMethods) -> dict[str, Any]:
    train_task, method, seed, _ = model
    if method == BASE:
        return {"trained_on": "nothing", "method": "base model", "seed": None}
    return {"trained_on": train_task, "method": known.label(method), "seed": int(seed)}
