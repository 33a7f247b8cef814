"""Score a model on examples: completions in, one row of the predictions table each out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from othink_pipeline.models import complete
from othink_pipeline.scoring import score

if TYPE_CHECKING:
    from datasets import Dataset


def predict(
    model: Any,
    processor: Any,
    examples: Dataset,
    *,
    prompt: str,
    batch_size: int,
    max_completion_tokens: int,
    think: bool | None = None,
    temperature: float | None = None,
) -> pd.DataFrame:
    """One row for each example: what was asked, what came back, and every verdict on it.

    Arguments as for ``models.complete``. The completion is kept, so that a better scorer can score
    it again without the model.
    """
    completions = complete(
        model,
        processor,
        examples,
        prompt=prompt,
        batch_size=batch_size,
        max_completion_tokens=max_completion_tokens,
        think=think,
        temperature=temperature,
    )
    rows = []
    for example_id, form, gold, completion in zip(
        examples["id"], examples["form"], examples["answer"], completions, strict=True
    ):
        verdict = score(completion.text, gold)
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
    return pd.DataFrame(rows)
