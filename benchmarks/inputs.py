"""Examples and the base model that the benchmarks work on."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from benchmarks.harness import ROOT

BASE_MODEL = ROOT / "data/01_raw/mini_qwen2_vl"
PROMPT = (
    "{question}  Output the thinking process in <think> </think> and final answer (number) in "
    "<answer> </answer> tags."
)


@lru_cache
def counting_examples(count: int, image_pixels: int = 64) -> Any:
    """Train examples of the counting task, drawn here; pictures enlarged to that many pixels."""
    from datasets import Dataset, Image

    from othink_pipeline.examples import draw_examples

    rows = draw_examples("counting", {"train": count}, seed=0)
    table = Dataset.from_list(
        [{**row, "image": {"bytes": row["image"], "path": None}} for row in rows]
    )
    examples = table.cast_column("image", Image())
    if image_pixels == 64:
        return examples
    side = (image_pixels, image_pixels)
    return examples.map(lambda row: {"image": row["image"].resize(side)}, keep_in_memory=True)


def stock_rows(examples: Any) -> Any:
    """The same examples as stock TRL is fed."""
    from othink_pipeline.models import user_message

    messages = [
        [{"role": "user", "content": user_message(PROMPT, question)}]
        for question in examples["question"]
    ]
    return examples.select_columns(["image", "answer"]).add_column("prompt", messages)
