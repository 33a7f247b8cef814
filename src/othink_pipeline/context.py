"""How many tokens prompts, pictures and targets have, and whether the model has room for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from datasets import Dataset, Image

from othink_pipeline.examples import picture_size
from othink_pipeline.models import render_prompt, user_message
from othink_pipeline.needs import Lengths
from othink_pipeline.parameters import RL, SFT, Evaluation
from othink_pipeline.preflight import Row
from othink_pipeline.prompts import Prompt, encode
from othink_pipeline.training_data import sft_rows

Splits = Mapping[str, Dataset]
"""The examples of a task by split."""

Prompts = Mapping[str, Mapping[str, str]]
"""Task -> split -> template with ``{question}``."""

LOOKED_AT = 64
"""Pictures of a split whose sizes are looked at."""

LARGEST = 4
"""Of these so many go through the processor: those with the most pixels."""


def measure_lengths(
    processor: Any, tasks: Mapping[str, Splits], prompts: Prompts, methods: Mapping[str, SFT | RL]
) -> Lengths:
    """The longest prompts and targets, behind the largest of ``LOOKED_AT`` pictures of a split."""
    count = processor.tokenizer
    supervised = {name: method for name, method in methods.items() if isinstance(method, SFT)}
    longest, largest, sft = 0, 0, dict.fromkeys(supervised, 0)
    for task, splits in tasks.items():
        image = _image_tokens(processor, splits)
        largest = max(largest, image)
        for split, examples in splits.items():
            for row in _longest(processor, examples["question"][:]):
                text = render_prompt(processor, prompts[task][split], examples["question"][row])
                longest = max(longest, image + len(count(text)["input_ids"]))
        for name, method in supervised.items():
            prompt = prompts[task]["train"]
            made = sft_rows(splits["train"], prompt, method)
            targets = [messages[0]["content"] for messages in made["completion"]]
            questions = splits["train"]["question"][:]
            joined = [f"{q} {t}" for q, t in zip(questions, targets, strict=True)]
            for row in _longest(processor, joined):
                text = _render_target(processor, prompt, questions[row], targets[row])
                sft[name] = max(sft[name], image + len(count(text)["input_ids"]))
    # The template holds one token for the picture already.
    return Lengths(longest, largest + 1, sft)


def encode_example(processor: Any, examples: Dataset, row: int, prompt: str) -> Prompt:
    """An example's prompt, as the model is asked it."""
    text = render_prompt(processor, prompt, examples["question"][row])
    return encode(processor, [text], [[examples[row]["image"]]])[0]


def check_context(
    path: str,
    model: Any,
    lengths: Lengths,
    methods: Mapping[str, SFT | RL],
    evaluation: Evaluation,
) -> list[Row]:
    """Check that the longest prompt and its completion fit the model's positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    needs = {"evaluation": lengths.prompt + evaluation.max_completion_tokens}
    for name, method in methods.items():
        if isinstance(method, RL):
            needs[name] = lengths.prompt + method.max_completion_tokens
        else:
            needs[name] = lengths.sft[name]
    if limit is None:
        return [Row(f"context of {path}", "note", "config.json names no max_position_embeddings")]
    rows = []
    for name, need in needs.items():
        what = (
            f"{need:,} tokens needed, the model has {limit:,}; up to {lengths.image:,} are the "
            f"picture, the largest of {LOOKED_AT} of each split"
        )
        if need <= limit:
            rows.append(Row(f"context of {path} for {name}", "ok", what))
            continue
        detail = f"{what} (config.json: max_position_embeddings); {lengths.prompt:,} are the prompt"
        if name in lengths.sft:
            lower = f"Set methods.{name}.target: answer"
        elif name in methods:
            lower = f"Lower max_completion_tokens of rl or methods.{name}"
        else:
            lower = "Lower evaluation.max_completion_tokens"
        remedy = (
            f"{lower}, lower model.max_pixels, shorten data_preparation.prompt, or take a model "
            "with a longer context."
        )
        rows.append(Row(f"context of {path} for {name}", "FAILED", f"{detail}.", remedy))
    return rows


def _image_tokens(processor: Any, splits: Splits) -> int:
    """Tokens that the largest pictures add to their prompts, those looked at of all splits."""
    chosen = [
        (split, row)
        for split, rows in splits.items()
        for row in Random(0).sample(range(len(rows)), min(LOOKED_AT, len(rows)))
    ]
    undecoded = {
        split: rows.cast_column("image", Image(decode=False)) for split, rows in splits.items()
    }

    def pixels(place: tuple[str, int]) -> int:
        width, height = picture_size(undecoded[place[0]][place[1]]["image"]["bytes"])
        return width * height

    added = []
    for split, row in sorted(chosen, key=pixels, reverse=True)[:LARGEST]:
        text = render_prompt(processor, "{question}", splits[split]["question"][row])
        whole = len(encode_example(processor, splits[split], row, "{question}").ids)
        added.append(whole - len(processor.tokenizer(text)["input_ids"]))
    return max(added)


def _longest(processor: Any, texts: Sequence[str], most: int = 8) -> list[int]:
    """Places of the longest texts by tokens: a template adds the same to all, up to its seams."""
    lengths = [len(ids) for ids in processor.tokenizer(list(texts))["input_ids"]]
    return sorted(range(len(texts)), key=lambda row: -lengths[row])[:most]


def _render_target(processor: Any, prompt: str, question: str, target: str) -> str:
    user = [{"type": "image"}, {"type": "text", "text": user_message(prompt, question)}]
    messages = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "text", "text": target}]},
    ]
    rendered: str = processor.apply_chat_template(messages, tokenize=False)
    return rendered
