"""What the trainers are fed: the same prompts in the same order for every method."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from othink_pipeline.models import user_message
from othink_pipeline.parameters import SFT

if TYPE_CHECKING:
    from datasets import Dataset


def prompt_order(examples: int, prompts: int, seed: int) -> list[int]:
    """Rows of the train split in the order in which every method sees them.

    Each pass over the split is shuffled anew; ``seed`` alone decides the order.
    """
    rng = Random(seed)
    order: list[int] = []
    while len(order) < prompts:
        order += rng.sample(range(examples), examples)
    return order[:prompts]


def rl_rows(examples: Dataset, prompt: str) -> Dataset:
    """Columns ``prompt`` (one user message), ``image`` and ``answer``, for TRL and the rewards."""
    messages = [
        [{"role": "user", "content": user_message(prompt, question)}]
        for question in examples["question"]
    ]
    return examples.select_columns(["image", "answer"]).add_column("prompt", messages)


def sft_rows(examples: Dataset, prompt: str, parameters: SFT) -> Dataset:
    """Columns ``prompt``, ``completion`` (one assistant message) and ``image``.

    Target ``answer`` is written as in the paper's data, ``<answer> n </answer>``; target ``steps``
    in the format that the prompt asks for.
    """
    target = {
        "answer": "<answer> {answer} </answer>",
        "steps": "<think>{steps}</think><answer>{answer}</answer>",
    }[parameters.target]
    completions = [
        [{"role": "assistant", "content": target.format(steps=steps, answer=answer)}]
        for steps, answer in zip(examples["steps"], examples["answer"], strict=True)
    ]
    rows = rl_rows(examples, prompt).remove_columns("answer")
    return rows.add_column("completion", completions)
