"""Examples and the base model that the benchmarks work on."""

from __future__ import annotations

from functools import lru_cache
from math import isqrt
from typing import Any

from benchmarks.harness import ROOT

BASE_MODEL = ROOT / "data/01_raw/mini_qwen2_vl"
PROMPT = (
    "{question}  Output the thinking process in <think> </think> and final answer (number) in "
    "<answer> </answer> tags."
)


@lru_cache
def counting_examples(count: int, image_tokens: int = 16) -> Any:
    """Train examples of the counting task, drawn here; pictures enlarged for so many tokens."""
    from datasets import Dataset, Image, disable_progress_bars

    from othink_pipeline.data.examples import draw_examples

    rows = draw_examples("counting", {"train": count}, seed=0)
    table = Dataset.from_list(
        [{**row, "image": {"bytes": row["image"], "path": None}} for row in rows]
    )
    examples = table.cast_column("image", Image())
    if image_tokens == 16:
        return examples
    disable_progress_bars()
    side = 16 * isqrt(image_tokens)  # a token is 16 x 16 pixels
    return examples.map(
        lambda row: {"image": row["image"].resize((side, side))}, keep_in_memory=True
    )


def show_image_tokens(processor: Any, examples: Any, image_tokens: int) -> None:
    """Let the processor keep the size of the pictures; it shrinks them otherwise.

    Raises:
        RuntimeError: a picture does not become so many tokens.
    """
    from othink_pipeline.models.prompts import render_prompt

    pixels = (16 * isqrt(image_tokens)) ** 2
    processor.image_processor.size = {"shortest_edge": pixels, "longest_edge": pixels}
    text = render_prompt(processor, PROMPT, "")
    ids = processor(images=[examples[0]["image"]], text=[text])["input_ids"][0]
    found = list(ids).count(processor.tokenizer.convert_tokens_to_ids("<|image_pad|>"))
    if found != image_tokens:
        raise RuntimeError(f"a picture is {found} tokens, not {image_tokens}")


def stock_rows(examples: Any) -> Any:
    """The same examples as stock TRL is fed."""
    from othink_pipeline.models.prompts import user_message

    messages = [
        [{"role": "user", "content": user_message(PROMPT, question)}]
        for question in examples["question"]
    ]
    return examples.select_columns(["image", "answer"]).add_column("prompt", messages)
