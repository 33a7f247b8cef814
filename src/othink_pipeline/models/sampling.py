"""Generate completions: each distinct prompt is read once, and ended completions cost little.

The tokens are those of ``transformers``' generate under the same generator state: noise is drawn
for every row at every step, as there, whether or not the row still goes on.

Legend: N distinct prompts, P prompt tokens (padded on the left), R rows (completions), A rows at
work, V tokens of the vocabulary, C completion tokens (padded on the right).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache, DynamicLayer

from othink_pipeline.models.prompts import CannotShareError, Prompt, collate, distinct, positions

PREFILL_TOKENS = {"cpu": 2048}
"""Most prompt tokens of one forward pass, by device: on a CPU more of them leave its cache."""
ROOM = 64
"""Tokens that the cache has room for when it is made, and again whenever they are used up."""
WORTH_DROPPING = 1 / 8
"""Share of ended rows from which on they are dropped: dropping them copies all others."""


class Samples(NamedTuple):
    """Completions of a batch of prompts."""

    ids: list[list[int]]
    """For each row its tokens, the end-of-sequence token included where there is one."""
    log_probs: torch.Tensor
    """What the model gives each token at that temperature, suppressed tokens or none [R x C];
    past a row's end anything."""


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
) -> Samples:
    """Complete every prompt; rows that hold the same ``Prompt`` share one reading of it.

    Args:
        model: a causal vision-language model with full attention, adapters or none.
        prompts: one for each row.
        max_tokens: most tokens of a completion, its end included.
        temperature: None takes the likeliest token; above 0 samples from torch's global generator.
        suppressed: token ids that are never produced.
        suppressed_first: token ids that no completion starts with.

    Raises:
        CannotShareError: a model that does not keep all tokens in its cache.
    """
    if temperature is not None and temperature <= 0:
        raise ValueError(f"temperature = {temperature}: above 0, or None for the likeliest token")
    once, prompt_of = distinct(prompts)
    prompt_of = prompt_of.to(model.device)
    read = _prefill(model, once, pad_token_id)
    mask = read.mask[prompt_of]  # [A x tokens so far]
    place = read.place[..., prompt_of, :]  # [... A x 1], of the last token
    cache = DynamicCache()
    cache.layers = [_RoomyLayer(keys[prompt_of], values[prompt_of]) for keys, values in read.layers]
    logits = read.logits[prompt_of]  # [A x V]
    del read  # its caches: the rows have their own now
    tokens = torch.full((len(prompts), max_tokens), pad_token_id, device=model.device)  # [R x C]
    log_probs = torch.zeros(tokens.shape, device=model.device)
    ends = torch.tensor(sorted(eos_token_ids), device=model.device)
    at_work = torch.arange(len(prompts), device=model.device)  # [A] the rows in the cache
    going = torch.ones_like(at_work, dtype=torch.bool)  # [A] False: has ended
    for step in range(max_tokens):
        scores = logits.float() / (temperature or 1.0)  # [A x V]
        total = scores.logsumexp(-1)  # [A]
        scores[:, list(suppressed)] = -torch.inf
        if not step:
            scores[:, list(suppressed_first)] = -torch.inf
        if temperature is None:
            chosen = scores.argmax(-1)  # [A]
        else:  # as torch.multinomial does for all rows
            probs = torch.softmax(scores, -1)
            noise = probs.new_empty(len(prompts), probs.shape[1]).exponential_()
            chosen = (probs / noise[at_work]).argmax(-1)
        tokens[at_work, step] = chosen
        log_probs[at_work, step] = scores.gather(1, chosen[:, None])[:, 0] - total
        going &= ~torch.isin(chosen, ends)
        left = int(going.sum())
        if not left or step + 1 == max_tokens:
            break
        if len(going) - left >= WORTH_DROPPING * len(going):
            kept = going.nonzero()[:, 0]
            cache.batch_select_indices(kept)
            at_work, going, chosen = at_work[kept], going[kept], chosen[kept]
            mask, place = mask[kept], place[..., kept, :]
        mask = F.pad(mask, (0, 1), value=1)
        place = place + 1
        logits = model(
            input_ids=chosen[:, None],
            attention_mask=mask,
            position_ids=place,
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    return Samples([_until_end(row, eos_token_ids) for row in tokens.tolist()], log_probs)


class _Read(NamedTuple):
    """Prompts after their forward pass."""

    logits: torch.Tensor
    """Of the first completion token [N x V]."""
    mask: torch.Tensor
    """1 at tokens, 0 at padding [N x P]."""
    place: torch.Tensor
    """Position of the last token [N x 1] or [3 x N x 1]."""
    layers: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values of each layer [N x heads x P x size]."""


def _prefill(model: Any, prompts: Sequence[Prompt], pad_token_id: int) -> _Read:
    width = max(len(prompt.ids) for prompt in prompts)
    parts = []
    for some in _batches(prompts, PREFILL_TOKENS.get(model.device.type)):
        inputs = collate(some, pad_token_id, model.device)
        places = positions(model, inputs)
        outputs = model(**inputs, position_ids=places, use_cache=True, logits_to_keep=1)
        layers = outputs.past_key_values.layers
        if any(type(layer) is not DynamicLayer for layer in layers):
            kinds = sorted({type(layer).__name__ for layer in layers})
            raise CannotShareError(
                f"{type(model).__name__} caches {', '.join(kinds)}: it needs full attention"
            )
        left = width - inputs["input_ids"].shape[1]
        mask = F.pad(inputs["attention_mask"], (left, 0))
        padded = [
            tuple(F.pad(states, (0, 0, left, 0)) for states in (layer.keys, layer.values))
            for layer in layers
        ]
        parts.append((outputs.logits[:, -1], mask, places[..., -1:], padded))
    logits, masks, last, by_part = zip(*parts, strict=True)
    stacked = [
        (torch.cat([keys for keys, _ in layer]), torch.cat([values for _, values in layer]))
        for layer in zip(*by_part, strict=True)
    ]
    return _Read(torch.cat(logits), torch.cat(masks), torch.cat(last, -2), stacked)


def _batches(prompts: Sequence[Prompt], most_tokens: int | None) -> Iterator[Sequence[Prompt]]:
    """Consecutive prompts that together, padded, have no more tokens than that, but one."""
    start, width = 0, 0
    for end, prompt in enumerate(prompts):
        width = max(width, len(prompt.ids))
        if most_tokens and end > start and (end + 1 - start) * width > most_tokens:
            yield prompts[start:end]
            start, width = end, len(prompt.ids)
    yield prompts[start:]


class _RoomyLayer(DynamicLayer):
    """Keys and values with room for the next tokens: to add one mostly copies none."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.roomy = [F.pad(states, (0, 0, 0, ROOM)) for states in (keys, values)]
        self._show(keys.shape[-2])

    def _show(self, tokens: int) -> None:
        self.keys, self.values = (states[..., :tokens, :] for states in self.roomy)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self.roomy[0].shape[-2]:
            self.roomy = [F.pad(states, (0, 0, 0, ROOM)) for states in self.roomy]
        for states, new in zip(self.roomy, (key_states, value_states), strict=True):
            states[..., start:end, :] = new
        self._show(end)
        keys, values = self.roomy
        return keys[..., :end, :], values[..., :end, :]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        tokens = self.get_seq_length()
        self.roomy = [states[indices] for states in self.roomy]
        self._show(tokens)


def _until_end(ids: list[int], eos_token_ids: Collection[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in eos_token_ids), len(ids))
    return ids[: end + 1]
