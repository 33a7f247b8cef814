"""Generate completions: each distinct prompt is read once, and ended completions cost little.

The tokens are those of ``transformers``' generate under the same generator state: noise is drawn
for every row at every step, as there, whether or not the row still goes on.

Legend: N distinct prompts, P prompt tokens (padded on the left), R rows (completions), A rows at
work, V tokens of the vocabulary, C completion tokens (padded on the right).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers.cache_utils import DynamicCache, DynamicLayer

from othink_pipeline.models.prompts import (
    CannotShareError,
    Prompt,
    base_of,
    collate,
    distinct,
    positions,
)

PREFILL_TOKENS = {"cpu": 2048}
"""Most prompt tokens of one forward pass, by device: on a CPU more of them leave its cache."""
ROOM = 64
"""Tokens that the cache has room for when it is made, and again whenever they are used up."""


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
    once, prompt_of = distinct(prompts)
    at_work = prompt_of.argsort(stable=True).to(model.device)  # [A] the rows in the cache
    layers, logits, mask, place = _prefill(model, once, prompt_of.bincount(), pad_token_id)
    cache = DynamicCache()
    cache.layers = list(layers)
    tokens = torch.full((len(prompts), max_tokens), pad_token_id, device=model.device)  # [R x C]
    log_probs = torch.zeros(tokens.shape, device=model.device)
    ends = torch.tensor(sorted(eos_token_ids), device=model.device)
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
        going = ~torch.isin(chosen, ends)  # [A]
        left = int(going.sum())
        if not left or step + 1 == max_tokens:
            break
        if left < len(going):  # the last rows take the places of those that have ended
            gaps, last = (~going[:left]).nonzero()[:, 0], left + going[left:].nonzero()[:, 0]
            for layer in layers:
                layer.move(last, gaps, left)
            for rows in (at_work, chosen, mask, place.movedim(-2, 0)):
                rows[gaps] = rows[last]
            at_work, chosen, mask = at_work[:left], chosen[:left], mask[:left]
            place = place[..., :left, :]
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
    """Prompts after their forward pass, each as many times as it has rows."""

    layers: list[_RoomyLayer]
    """The cache: keys and values of each layer."""
    logits: torch.Tensor
    """Of the first completion token [R x V]."""
    mask: torch.Tensor
    """1 at tokens, 0 at padding [R x P]."""
    place: torch.Tensor
    """Position of the last token [R x 1] or [3 x R x 1]."""


def _prefill(model: Any, prompts: Sequence[Prompt], rows: torch.Tensor, pad_token_id: int) -> _Read:
    """Read prompts; ``rows``: how many each of them has [N]."""
    width = max(len(prompt.ids) for prompt in prompts)
    roomy: list[_RoomyLayer] = []
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    read, filled = 0, 0  # prompts and rows
    for some in _batches(prompts, PREFILL_TOKENS.get(model.device.type)):
        inputs = collate(some, pad_token_id, model.device)
        places = positions(model, inputs)
        with _last_token_alone(model):
            outputs = model(**inputs, position_ids=places, use_cache=True, logits_to_keep=1)
        layers = outputs.past_key_values.layers
        if any(type(layer) is not DynamicLayer for layer in layers):
            kinds = sorted({type(layer).__name__ for layer in layers})
            raise CannotShareError(
                f"{type(model).__name__} caches {', '.join(kinds)}: it needs full attention"
            )
        copies = rows[read : read + len(some)]
        row_of = torch.arange(len(some)).repeat_interleave(copies).to(model.device)
        if not roomy:
            roomy = [_RoomyLayer(layer, int(rows.sum()), width) for layer in layers]
        for ours, layer in zip(roomy, layers, strict=True):
            ours.fill(filled, layer.keys[row_of], layer.values[row_of])
        mask = F.pad(inputs["attention_mask"], (width - inputs["input_ids"].shape[1], 0))
        parts.append((outputs.logits[row_of, -1], mask[row_of], places[..., row_of, -1:]))
        read, filled = read + len(some), filled + len(row_of)
    logits, masks, last = zip(*parts, strict=True)
    return _Read(roomy, torch.cat(logits), torch.cat(masks), torch.cat(last, -2))


@contextmanager
def _last_token_alone(model: Any) -> Iterator[None]:
    """Send the last token alone through the last layer's MLP: what others become is never read.

    The layer adds what comes out to all its tokens, to those others wrongly.
    """
    layers = getattr(base_of(model).get_decoder(), "layers", None)
    mlp = getattr(layers[-1], "mlp", None) if layers else None
    if mlp is None:  # a family with other names: it only takes longer
        yield
        return
    hook = mlp.register_forward_pre_hook(lambda _, args: (args[0][:, -1:],))
    try:
        yield
    finally:
        hook.remove()


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
    """Keys and values with room for the next tokens: to add one mostly copies none.

    ``keys`` and ``values`` show what is in use of it: the first rows, and of them the first tokens.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, like: Any, rows: int, tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(like.keys, like.values)
        self.roomy = [
            states.new_zeros(rows, states.shape[1], tokens + ROOM, states.shape[3])
            for states in (like.keys, like.values)
        ]
        self._show(rows, tokens)

    def _show(self, rows: int, tokens: int) -> None:
        self.keys, self.values = (states[:rows, :, :tokens] for states in self.roomy)

    def fill(self, row: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write prompts from that row on, padded on the left."""
        for shown, states in ((self.keys, keys), (self.values, values)):
            shown[row : row + len(states), :, -states.shape[2] :] = states

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, _, start, _ = self.keys.shape
        end = start + key_states.shape[-2]
        if end > self.roomy[0].shape[-2]:
            self.roomy = [F.pad(states[:rows], (0, 0, 0, ROOM)) for states in self.roomy]
        self._show(rows, end)
        self.keys[:, :, start:], self.values[:, :, start:] = key_states, value_states
        return self.keys, self.values

    def move(self, sources: torch.Tensor, targets: torch.Tensor, rows: int) -> None:
        """Copy rows to other places, then keep so many."""
        for states in (self.keys, self.values):
            states[targets] = states[sources]
        self._show(rows, self.get_seq_length())


def _until_end(ids: list[int], eos_token_ids: Collection[int]) -> list[int]:
    end = next((place for place, token in enumerate(ids) if token in eos_token_ids), len(ids))
    return ids[: end + 1]
