"""Generate completions: each distinct prompt is read once, and ended completions cost nothing.

The tokens are those of ``transformers``' generate under the same generator state: noise is drawn
for every row at every step, as there, whether or not the row is still going.

Legend: N distinct prompts, R rows (completions), A rows still going, V tokens of the vocabulary,
C completion tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from othink_pipeline.prompts import Prompt, collate, distinct, positions


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    eos_token_ids: Collection[int],
    pad_token_id: int,
    temperature: float | None,
    suppressed: Collection[int] = (),
    suppressed_first: Collection[int] = (),
) -> list[list[int]]:
    """Complete every prompt; rows that hold the same ``Prompt`` share one reading of it.

    Args:
        model: a causal vision-language model, or one with adapters.
        prompts: one for each row.
        max_tokens: most tokens of a completion, its end included.
        temperature: None takes the likeliest token; above 0 samples from torch's global generator.
        suppressed: token ids that are never produced.
        suppressed_first: token ids that no completion starts with.

    Returns:
        For each row the token ids, the end-of-sequence token included where there is one.
    """
    device = model.device
    once, row_prompts = distinct(prompts)
    row_prompts = row_prompts.to(device)
    inputs = collate(once, pad_token_id, device)
    places = positions(model, inputs)
    outputs = model(**inputs, position_ids=places, use_cache=True, logits_to_keep=1)
    cache = outputs.past_key_values
    cache.batch_select_indices(row_prompts)
    mask = inputs["attention_mask"][row_prompts]  # [A x tokens so far]
    place = places[..., row_prompts, -1:]  # [... A x 1], of the last token
    logits = outputs.logits[row_prompts, -1]  # [A x V]
    logits[:, list(suppressed_first)] = -torch.inf
    tokens = torch.full((len(prompts), max_tokens), pad_token_id, device=device)  # [R x C]
    ends = torch.tensor(sorted(eos_token_ids), device=device)
    going = torch.arange(len(prompts), device=device)  # [A] rows that the cache holds
    for step in range(max_tokens):
        logits[:, list(suppressed)] = -torch.inf
        chosen = _choose(logits.float(), going, len(prompts), temperature)  # [A]
        tokens[going, step] = chosen
        kept = (~torch.isin(chosen, ends)).nonzero()[:, 0]
        if not len(kept) or step + 1 == max_tokens:
            break
        if len(kept) < len(going):
            cache.batch_select_indices(kept)
            going, chosen, mask, place = going[kept], chosen[kept], mask[kept], place[..., kept, :]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        place = place + 1
        logits = model(
            input_ids=chosen[:, None],
            attention_mask=mask,
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    return [_until_end(row, eos_token_ids) for row in tokens.tolist()]


def _choose(
    logits: torch.Tensor, going: torch.Tensor, rows: int, temperature: float | None
) -> torch.Tensor:
    """The next token of each row of ``going``, as ``torch.multinomial`` on all rows chooses it."""
    if temperature is None:
        return logits.argmax(-1)
    noise = logits.new_empty(rows, logits.shape[1]).exponential_()
    return (torch.softmax(logits / temperature, -1) / noise[going]).argmax(-1)


def _until_end(ids: list[int], eos_token_ids: Collection[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in eos_token_ids), len(ids))
    return ids[: end + 1]
