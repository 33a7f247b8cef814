"""Greedy evaluation: ours against a plain loop around ``model.generate``."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.harness import interleave, record
from benchmarks.inputs import BASE_MODEL, PROMPT, counting_examples

ITEMS, FEW, BATCH, TOKENS = 512, 64, 128, 72
"""Test items; items for batch size 1; our batch size (conf/base); most tokens of a completion."""


def plain(model: Any, processor: Any, examples: Any, batch_size: int, think: bool) -> list[str]:
    """Completions in batches in the order of the file, as R1-V's evaluation scripts make them."""
    import torch

    from othink_pipeline.models.prompts import render_prompt

    opening = "<think>" if think else ""
    banned = [processor.tokenizer.convert_tokens_to_ids("</think>")] if think else None
    completions = []
    for start in range(0, len(examples), batch_size):
        rows = examples.select(range(start, min(start + batch_size, len(examples))))
        texts = [
            render_prompt(processor, PROMPT, question) + opening for question in rows["question"]
        ]
        inputs = processor(
            images=list(rows["image"]), text=texts, padding=True, return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            generated = model.generate(
                **inputs,
                max_new_tokens=TOKENS - bool(opening),
                do_sample=False,
                begin_suppress_tokens=banned,
            )[:, inputs["input_ids"].shape[1] :]
        completions += processor.tokenizer.batch_decode(generated, skip_special_tokens=True)
    return [opening + text for text in completions]


def measure() -> list[dict[str, Any]]:
    """A row for short answers and one for long ones."""
    from othink_pipeline.models.generation import Decoding, complete
    from othink_pipeline.models.load import load_model

    model, processor = load_model(str(BASE_MODEL))
    examples = counting_examples(ITEMS)
    few = examples.select(range(FEW))
    rows = []
    for think, answers in (
        (None, "short: as the base model answers"),
        (True, "worked steps forced"),
    ):

        def ours(think: bool | None = think) -> list[str]:
            decoding = Decoding(BATCH, TOKENS, think)
            completions = complete(model, processor, examples, PROMPT, decoding)
            return [completion.text for completion in completions]

        def at_64(think: bool | None = think) -> list[str]:
            return plain(model, processor, examples, 64, bool(think))

        def at_128(think: bool | None = think) -> list[str]:
            return plain(model, processor, examples, 128, bool(think))

        def at_1(think: bool | None = think) -> list[str]:
            return plain(model, processor, few, 1, bool(think))

        agree = sum(mine == theirs for mine, theirs in zip(ours(), at_64(), strict=True))
        seconds = interleave(5, ours=ours, at_64=at_64, at_128=at_128, at_1=at_1)
        speed = {name: ITEMS / median(seconds[name]) for name in ("ours", "at_64", "at_128")}
        rows.append(
            {
                "answers": answers,
                "plain, batch 1 (items/s)": FEW / median(seconds["at_1"]),
                "plain, batch 64 (items/s)": speed["at_64"],
                "plain, batch 128 (items/s)": speed["at_128"],
                "ours (items/s)": speed["ours"],
                "times faster than batch 64": speed["ours"] / speed["at_64"],
                "than batch 128": speed["ours"] / speed["at_128"],
                "same answers": f"{agree} of {ITEMS}",
            }
        )
    return rows


if __name__ == "__main__":
    record(
        "evaluation",
        "Evaluation against a plain loop of model.generate",
        measure(),
        f"Greedy answers of the shipped mini model to {ITEMS} counting items ({FEW} at batch 1), "
        "from pictures and questions to text; medians of 5 rounds. Short answers have some 10 "
        "tokens, worked ones some 40: after RL nearly all are of the second kind.",
    )
