"""Lay prompts and completions out so that a forward pass reads each prompt once.

A packed row holds one or more groups: a prompt, then all of its completions. An attention mask
lets a completion see its own prompt and itself and nothing else, so that every token gets the
hidden state that it would get in a sequence of its own. No cache is involved: gradients, gradient
checkpointing, adapters and data parallelism work as in any forward pass.

The last prompt token stands at the head of each completion and not at the end of the prompt,
because it predicts another first token in each.

Attention within a packed row costs the square of its length. That is little while a group is some
thousand tokens long; with completions of thousands of tokens the prompt is no longer what costs,
and sharing it gains nothing.

Legend: N distinct prompts of P tokens (padded on the left), R completions of C tokens (padded on
the right), B packed rows of L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from othink_pipeline.prompts import (
    CannotShareError,
    Prompt,
    base_of,
    collate,
    collate_images,
    distinct,
    positions,
)


class Packed(NamedTuple):
    """A packed batch, and where each completion token is predicted in it."""

    inputs: dict[str, torch.Tensor]
    """For the model's forward: ``input_ids`` [B x L], ``attention_mask`` [B x 1 x L x L],
    ``position_ids`` [B x L] or [3 x B x L], pictures."""
    labels: torch.Tensor
    """The next token at each place, -100 where none is asked for [B x L]."""
    rows: torch.Tensor
    columns: torch.Tensor
    """The place that predicts each completion token [R x C]; 0 at padding."""


def pack(
    model: Any,
    prompts: Sequence[Prompt],
    completion_ids: torch.Tensor,
    completion_mask: torch.Tensor,
    pad_token_id: int,
) -> Packed:
    """Pack completions behind their prompts, into rows as long as the largest group.

    Args:
        prompts: one for each completion; completions that hold the same object share it.
        completion_ids: [R x C].
        completion_mask: 1 at tokens, 0 at padding [R x C].

    Raises:
        CannotShareError: an attention implementation that takes no mask of one's own.
    """
    device = completion_ids.device
    once, prompt_of = distinct(prompts)
    inputs = collate(once, pad_token_id, device)
    width = inputs["input_ids"].shape[1]  # P
    lengths = completion_mask.sum(1).tolist()
    groups: list[list[int]] = [[] for _ in once]  # the completions of each prompt
    for completion, prompt in enumerate(prompt_of.tolist()):
        groups[prompt].append(completion)
    sizes = [
        len(prompt.ids) - 1 + sum(lengths[completion] for completion in group)
        for prompt, group in zip(once, groups, strict=True)
    ]
    bins = _first_fit(sizes)

    # Every packed token is one of the unpacked batch [R x (P + C)]: which row and column of it.
    source = np.zeros((2, len(bins), max(sizes)), np.int64)
    group_of = np.full(source.shape[1:], -1, np.int64)  # -1: padding, which sees only padding
    segment_of = np.zeros(source.shape[1:], np.int64)  # 0: prompt, else which completion
    found = np.zeros((2, *completion_ids.shape), np.int64)
    for row, members in enumerate(bins):
        end = 0
        for prompt in members:
            start, end = end, end + len(once[prompt].ids) - 1
            source[0, row, start:end] = groups[prompt][0]
            source[1, row, start:end] = range(width - 1 - (end - start), width - 1)
            group_of[row, start : start + sizes[prompt]] = prompt
            for number, completion in enumerate(groups[prompt], start=1):
                start, end = end, end + lengths[completion]
                source[0, row, start:end] = completion
                source[1, row, start:end] = range(width - 1, width - 1 + end - start)
                segment_of[row, start:end] = number
                found[0, completion, : end - start] = row
                found[1, completion, : end - start] = range(start, end)
    rows, columns = torch.from_numpy(source).to(device)
    group, segment = (torch.from_numpy(array).to(device) for array in (group_of, segment_of))
    found_rows, found_columns = torch.from_numpy(found).to(device)

    prompt_of = prompt_of.to(device)
    unpacked_ids = torch.cat([inputs["input_ids"][prompt_of], completion_ids], 1)
    places = positions(model, inputs)
    steps = torch.arange(1, completion_ids.shape[1] + 1, device=device)
    unpacked_places = torch.cat([places, places[..., -1:] + steps], -1)[..., prompt_of, :]
    packed = {
        "input_ids": unpacked_ids[rows, columns],
        "attention_mask": _as_mask(_sees(group, segment)[:, None], model),
        "position_ids": unpacked_places[..., rows, columns],
    }
    for name in once[0].token_fields:
        of_prompts = torch.nn.functional.pad(inputs[name], (0, completion_ids.shape[1]))
        packed[name] = of_prompts[prompt_of][rows, columns]
    # Pictures come in the order of their tokens.
    pictures = collate_images([once[prompt] for members in bins for prompt in members])
    packed |= {name: value.to(device) for name, value in pictures.items()}
    labels = unpacked_ids[rows, columns + 1].masked_fill(segment == 0, -100)
    return Packed(packed, labels, found_rows, found_columns)


def _sees(group: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """Which token (second axis) sees which (third): what precedes it in its prompt and itself."""
    place = torch.arange(group.shape[1], device=group.device)
    from_group, to_group = group[:, :, None], group[:, None, :]
    from_segment, to_segment = segment[:, :, None], segment[:, None, :]
    sees: torch.Tensor = (
        (place[:, None] >= place)
        & (from_group == to_group)
        & ((to_segment == 0) | (from_segment == to_segment))
    )
    return sees


def _as_mask(sees: torch.Tensor, model: Any) -> torch.Tensor:
    """The mask in the form that the model's attention takes: boolean, or added to the scores."""
    attention = base_of(model).config.get_text_config()._attn_implementation
    if attention == "sdpa":
        return sees
    if attention == "eager":
        hidden = torch.finfo(model.dtype).min
        return torch.zeros_like(sees, dtype=model.dtype).masked_fill(~sees, hidden)
    raise CannotShareError(f"attention must be 'sdpa' or 'eager', not {attention!r}")


def _first_fit(sizes: Sequence[int]) -> list[list[int]]:
    """Bins of indices, none larger than the largest size: first-fit decreasing."""
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        fit = next((place for place, left in enumerate(room) if left >= sizes[index]), None)
        if fit is None:
            fit = len(bins)
            bins.append([])
            room.append(max(sizes))
        bins[fit].append(index)
        room[fit] -= sizes[index]
    return bins
