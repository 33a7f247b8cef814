"""Lay prompts and completions out so that a forward pass reads each prompt once.

All groups of a batch, a prompt and its completions each, stand in one row without padding. In
attention a completion sees its own prompt and itself and nothing else (``prompt_attention``), so
that every token gets the hidden state that it would get in a sequence of its own. No cache is
involved: gradients, gradient checkpointing, adapters and data parallelism work as in any forward
pass.

The last prompt token stands at the head of each completion and not at the end of the prompt,
because it predicts another first token in each.

Legend: N distinct prompts of P tokens (padded on the left), R completions of C tokens (padded on
the right), T tokens in the packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from othink_pipeline.models.prompts import (
    CannotShareError,
    Prompt,
    base_of,
    collate,
    collate_images,
    distinct,
    positions,
)
from othink_pipeline.training.prompt_attention import Blocks, Sequences

LAYOUTS: dict[str, type[Blocks | Sequences]] = {
    "sdpa": Blocks,
    "eager": Blocks,
    "flash_attention_2": Sequences,
}
"""By attention implementation."""


class Stream(NamedTuple):
    """What stands where: prompts of one length, then their completions, then the next length."""

    groups: list[tuple[list[int], list[int]]]
    """Prompts of one length, and their completions, longest first; empty ones are left out."""
    prompt_starts: list[int]
    completion_starts: list[int]

    @classmethod
    def order(
        cls, prompt_tokens: Sequence[int], completion_tokens: Sequence[int], of: Sequence[int]
    ) -> Stream:
        """Lay out prompts and completions; ``of``: the prompt of each completion."""
        stream = cls([], [0] * len(prompt_tokens), [0] * len(completion_tokens))
        rows = sorted(
            (row for row, tokens in enumerate(completion_tokens) if tokens),
            key=lambda row: -completion_tokens[row],
        )
        end = 0
        for length in dict.fromkeys(prompt_tokens):
            prompts = [place for place, tokens in enumerate(prompt_tokens) if tokens == length]
            completions = [row for row in rows if prompt_tokens[of[row]] == length]
            stream.groups.append((prompts, completions))
            for prompt in prompts:
                stream.prompt_starts[prompt] = end
                end += length
            for row in completions:
                stream.completion_starts[row] = end
                end += completion_tokens[row]
        return stream


class Packed(NamedTuple):
    """A packed batch, and where each completion token is predicted in it."""

    inputs: dict[str, Any]
    """For the model's forward: ``input_ids`` [1 x T], ``position_ids`` [1 x T] or [3 x 1 x T],
    ``prompt_layout``, pictures, and an ``attention_mask`` that says nothing."""
    labels: torch.Tensor
    """The next token at each place, -100 where none is asked for [1 x T]."""
    places: torch.Tensor
    """The place that predicts each completion token [R x C]; 0 at padding."""


def pack(
    model: Any,
    prompts: Sequence[Prompt],
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    pad_token_id: int,
) -> Packed:
    """Pack prompts and completions into one row.

    Args:
        prompts: one for each completion; completions that hold the same object share it.
        completion_ids: [R x C].
        completion_mask: 1 at tokens, 0 at padding [R x C].

    Raises:
        CannotShareError: an attention implementation that there is no layout for.
    """
    attention = base_of(model).config.get_text_config()._attn_implementation
    if attention not in LAYOUTS:
        allowed = ", ".join(map(repr, LAYOUTS))
        raise CannotShareError(f"attention must be one of {allowed}, not {attention!r}")
    device = completion_ids.device
    once, prompt_of = distinct(prompts)
    inputs = collate(once, pad_token_id, device)
    width = inputs["input_ids"].shape[1]  # P
    tokens = [len(prompt.ids) - 1 for prompt in once], completion_mask.sum(1).tolist()
    stream = Stream.order(*tokens, prompt_of.tolist())

    # Every packed token is one of the unpacked batch [R x (P + C)]: which row and column of it.
    source = np.zeros((2, sum(map(sum, tokens))), np.int64)
    asked = np.zeros(source.shape[1], np.bool_)
    found = np.zeros(completion_ids.shape, np.int64)
    first_of = {prompt: row for row, prompt in reversed(list(enumerate(prompt_of.tolist())))}
    for prompt, start in enumerate(stream.prompt_starts):
        end = start + tokens[0][prompt]
        source[0, start:end] = first_of[prompt]
        source[1, start:end] = range(width - 1 - (end - start), width - 1)
    for row, start in enumerate(stream.completion_starts):
        end = start + tokens[1][row]
        source[0, start:end] = row
        source[1, start:end] = range(width - 1, width - 1 + end - start)
        asked[start:end] = True
        found[row, : end - start] = range(start, end)
    rows, columns = torch.from_numpy(source[:, None]).to(device)

    layout = LAYOUTS[attention].of(stream, *tokens, prompt_of.tolist(), device)
    prompt_of = prompt_of.to(device)
    unpacked_ids = torch.cat([inputs["input_ids"][prompt_of], completion_ids], 1)
    places = positions(model, inputs)
    steps = torch.arange(1, completion_ids.shape[1] + 1, device=device)
    unpacked_places = torch.cat([places, places[..., -1:] + steps], -1)[..., prompt_of, :]
    packed = {
        "input_ids": unpacked_ids[rows, columns],
        "attention_mask": torch.ones(1, 1, 1, 1, device=device),  # of four axes: no other is made
        "position_ids": unpacked_places[..., rows, columns],
        "prompt_layout": layout,
    }
    for name in once[0].token_fields:
        of_prompts = torch.nn.functional.pad(inputs[name], (0, completion_ids.shape[1]))
        packed[name] = of_prompts[prompt_of][rows, columns]
    # Pictures come in the order of their tokens.
    pictures = collate_images([once[prompt] for group, _ in stream.groups for prompt in group])
    packed |= {name: value.to(device) for name, value in pictures.items()}
    following = unpacked_ids[rows, columns + 1]
    labels = following.where(torch.from_numpy(asked).to(device), -100)
    return Packed(packed, labels, torch.from_numpy(found).to(device))
