"""Score a model on examples: completions in, one row of the predictions table each out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist

from othink_pipeline.models.generation import Decoding, complete
from othink_pipeline.scoring.kinds import AnswerKind
from othink_pipeline.scoring.strict import score

if TYPE_CHECKING:
    from datasets import Dataset


class Extras(NamedTuple):
    """What is asked for besides an answer to each example."""

    samples: int = 0
    """Further completions of each example, for pass@k and majority@k; they and their verdicts
    stand in the columns ``sampled_*``, lists of that many."""
    sample_temperature: float = 1.0
    """Of these, above 0."""
    shuffle_images: bool = False
    """Ask about another example's picture; its id is in the column ``image_of``. An answer that
    comes out as well without the right picture was not read off it."""
    seed: int = 0
    """Of the samples and of the shuffling. With another batch size the samples are others."""


def predict(
    model: Any,
    processor: Any,
    examples: Dataset,
    prompt: str,
    decoding: Decoding,
    answers: AnswerKind,
    extras: Extras = Extras(),  # noqa: B008 (a tuple: it cannot change)
) -> pd.DataFrame:
    """One row for each example: what was asked, what came back, and every verdict on it.

    The completion is kept, so that a better scorer can score it again without the model.

    Args:
        model, processor, examples, prompt: as for ``complete``.
        decoding: of the one completion that is judged.

    Raises:
        ValueError: too few examples to shuffle.
    """
    images = None
    if extras.shuffle_images:
        images = examples.select(derangement(len(examples), extras.seed))
    completions = complete(model, processor, examples, prompt, decoding, images)
    rows = []
    for example_id, form, gold, completion in zip(
        examples["id"], examples["form"], examples["answer"], completions, strict=True
    ):
        verdict = score(completion.text, gold, answers)
        rows.append(
            {
                "example_id": example_id,
                "form": form,
                "gold": gold,
                "completion": completion.text,
                "extracted": verdict.extracted,
                "correct": verdict.correct,
                "correct_any": verdict.correct_any,
                "format_ok": verdict.format_ok,
                "unparseable": verdict.unparseable,
                "thought": verdict.thought,
                "completion_tokens": completion.tokens,
            }
        )
    table = pd.DataFrame(rows)
    if images is not None:
        table["image_of"] = images["id"][:]
    if extras.samples:
        drawn = decoding._replace(temperature=extras.sample_temperature, samples=extras.samples)
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(extras.seed)
            sampled = complete(model, processor, examples, prompt, drawn, images)
        texts = [
            [completion.text for completion in sampled[start : start + extras.samples]]
            for start in range(0, len(sampled), extras.samples)
        ]
        table = table.join(_judge_samples(texts, table["gold"].tolist(), answers))
    return table


def predict_together(
    model: Any,
    processor: Any,
    examples: Dataset,
    prompt: str,
    decoding: Decoding,
    answers: AnswerKind,
) -> pd.DataFrame:
    """``predict``, shared out over the processes of a training; all of them get the whole table.

    Greedy completions do not depend on what else is in their batch, but for rounding. To be called
    on all processes; one that is alone does all by itself.
    """
    if not dist.is_initialized():
        return predict(model, processor, examples, prompt, decoding, answers)
    own = range(dist.get_rank(), len(examples), dist.get_world_size())
    part = examples.select(own)
    table = predict(model, processor, part, prompt, decoding, answers)
    table = table.set_index(pd.Index(own))
    tables: list[pd.DataFrame] = [table] * dist.get_world_size()
    dist.all_gather_object(tables, table)
    return pd.concat([part for part in tables if len(part)]).sort_index()


def derangement(items: int, seed: int) -> list[int]:
    """A random order in which nothing stays in its place: one cycle through all items.

    Raises:
        ValueError: fewer than 2 items.
    """
    if items < 2:
        raise ValueError(f"{items} examples: to give each another one's image takes at least 2")
    cycle = np.random.default_rng(seed).permutation(items)
    order = np.empty(items, dtype=np.int64)
    order[cycle] = np.roll(cycle, 1)
    return order.tolist()


def _judge_samples(texts: list[list[str]], golds: list[str], answers: AnswerKind) -> pd.DataFrame:
    """``texts``: [items x samples]. Columns of lists: the texts, right or not, normal forms."""
    verdicts = [
        [score(text, gold, answers) for text in group]
        for group, gold in zip(texts, golds, strict=True)
    ]
    return pd.DataFrame(
        {
            "sampled_completions": texts,
            "sampled_correct": [[verdict.correct for verdict in group] for group in verdicts],
            "sampled_answers": [[verdict.canonical for verdict in group] for group in verdicts],
        }
    )
