"""What the trainers are fed: the same prompts in the same order for every method."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any

from othink_pipeline.models.prompts import Prompt, encode, render_prompt, user_message
from othink_pipeline.scoring.kinds import AnswerKind

if TYPE_CHECKING:
    from datasets import Dataset

    from othink_pipeline.training.parameters import SFT


def prompt_order(examples: int, prompts: int, seed: int) -> list[int]:
    """Rows of the train split in the order in which every method sees them.

    Each pass over the split is shuffled anew; ``seed`` alone decides the order.
    """
    rng = Random(seed)
    order: list[int] = []
    while len(order) < prompts:
        order += rng.sample(range(examples), examples)
    return order[:prompts]


def rl_rows(examples: Dataset, prompt: str, processor: Any) -> Dataset:
    """Columns ``prompt`` (one user message), ``answer`` and ``encoded``, for TRL and the rewards.

    Nothing is made before a batch is read. What repeats in a batch, as the prompts of GRPO's
    groups do, is decoded and goes through the processor once.
    """
    from datasets import Image

    columns = examples.select_columns(["question", "answer", "image"])
    undecoded = columns.cast_column("image", Image(decode=False))
    last: dict[Any, Prompt] = {}
    encode_rows = partial(_encode_rows, prompt=prompt, processor=processor, last=last)
    return undecoded.with_transform(encode_rows)


def _encode_rows(
    batch: dict[str, list[Any]], *, prompt: str, processor: Any, last: dict[Any, Prompt]
) -> dict[str, Any]:
    """Encode a batch; ``last`` holds that of the call before: TRL reads a batch again and again."""
    from datasets import Image

    keys = [
        (question, image["bytes"], image["path"])
        for question, image in zip(batch["question"], batch["image"], strict=True)
    ]
    once = [key for key in dict.fromkeys(keys) if key not in last]
    decoder = Image()
    texts = [render_prompt(processor, prompt, question) for question, _, _ in once]
    images = [[decoder.decode_example({"bytes": data, "path": path})] for _, data, path in once]
    made = dict(zip(once, encode(processor, texts, images), strict=True)) if once else {}
    encoded = {key: made.get(key) or last[key] for key in keys}
    last.clear()
    last.update(encoded)
    return {
        "prompt": [_user_turn(prompt, question) for question in batch["question"]],
        "answer": batch["answer"],
        "encoded": [encoded[key] for key in keys],
    }


def sft_rows(examples: Dataset, prompt: str, parameters: SFT, answers: AnswerKind) -> Dataset:
    """Columns ``prompt``, ``completion`` (one assistant message) and ``image``.

    Target ``answer`` is written as in the paper's data, ``<answer> n </answer>``; target ``steps``
    in the format that the prompt asks for. Of several accepted answers the first is taught.
    """
    target = {
        "answer": "<answer> {answer} </answer>",
        "steps": "<think>{steps}</think><answer>{answer}</answer>",
    }[parameters.target]
    completions = [
        [{"role": "assistant", "content": target.format(steps=steps, answer=answers.target(gold))}]
        for steps, gold in zip(examples["steps"], examples["answer"], strict=True)
    ]
    prompts = [_user_turn(prompt, question) for question in examples["question"]]
    rows = examples.select_columns("image").add_column("prompt", prompts)
    return rows.add_column("completion", completions)


def _user_turn(prompt: str, question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user_message(prompt, question)}]
