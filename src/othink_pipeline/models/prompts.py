"""Prompts ready for a model: text and pictures through the processor, each example once.

Legend: N prompts, P prompt tokens (image tokens included, padded on the left).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from PIL.Image import Image


class CannotShareError(ValueError):
    """A model, or a setting of it, that prompts cannot be shared with."""


@dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt. Two are the same only if they are one object: a group's rows share theirs."""

    ids: torch.Tensor
    """Token ids [P]."""
    token_fields: dict[str, torch.Tensor]
    """What the processor says of each token, as ``mm_token_type_ids`` [P]."""
    image_fields: dict[str, torch.Tensor]
    """What the processor made of the pictures, as for a batch of one."""
    images: tuple[Image, ...]
    """The pictures themselves, for a generation server that has a processor of its own."""


def user_message(prompt: str, question: str) -> str:
    """The text of the one user message, which follows the image."""
    return prompt.replace("{question}", question)


def render_prompt(processor: Any, prompt: str, question: str) -> str:
    """The whole prompt as the model's own chat template writes it: image, question, answer's start.

    The conversation is one user message. Some templates put a system message before it on their
    own, as those of Qwen2-VL and Qwen2.5-VL do: it stays, in training and tests alike.
    """
    content = [{"type": "image"}, {"type": "text", "text": user_message(prompt, question)}]
    rendered: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return rendered


def encode(processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image]]) -> list[Prompt]:
    """Run rendered prompts and the pictures of each through the processor, in one call.

    Raises:
        CannotShareError: a processor whose picture tensors have no known layout.
    """
    pictures = [list(group) for group in images]
    opening: str | None = processor.tokenizer.bos_token
    made = processor(
        images=pictures if any(pictures) else None,
        text=list(texts),
        padding=True,
        return_tensors="pt",
        # Some chat templates write the opening token themselves, which the tokenizer would repeat.
        add_special_tokens=not (opening and texts[0].startswith(opening)),
    )
    real = made.pop("attention_mask").bool()  # [N x P]
    per_token = [name for name, values in made.items() if values.shape == real.shape]
    by_token = {name: made.pop(name) for name in per_token}
    rows = [
        {name: values[row][real[row]] for name, values in by_token.items()}
        for row in range(len(texts))
    ]
    by_image = _split_images(made, [len(group) for group in pictures])
    return [
        Prompt(row.pop("input_ids"), row, fields, tuple(group))
        for row, fields, group in zip(rows, by_image, pictures, strict=True)
    ]


def _split_images(
    fields: Mapping[str, torch.Tensor], counts: Sequence[int]
) -> list[dict[str, torch.Tensor]]:
    """The picture tensors of each prompt; ``counts``: pictures of each prompt."""
    if "image_grid_thw" not in fields:  # one row a prompt
        if odd := [name for name, values in fields.items() if len(values) != len(counts)]:
            raise CannotShareError(f"the processor's {odd[0]} are not one row a prompt")
        return [
            {name: values[row : row + 1] for name, values in fields.items()}
            for row in range(len(counts))
        ]
    grids = fields["image_grid_thw"].split(list(counts))
    patches = fields["pixel_values"].split([int(grid.prod(1).sum()) for grid in grids])
    return [
        {"pixel_values": values, "image_grid_thw": grid}
        for values, grid in zip(patches, grids, strict=True)
    ]


def distinct(prompts: Sequence[Prompt]) -> tuple[list[Prompt], torch.Tensor]:
    """The prompts without repeats, in order of appearance, and for each row its place there [N]."""
    places: dict[Prompt, int] = {}
    rows = [places.setdefault(prompt, len(places)) for prompt in prompts]
    return list(places), torch.tensor(rows)


def collate(
    prompts: Sequence[Prompt], pad_token_id: int, device: torch.device
) -> dict[str, torch.Tensor]:
    """A model's inputs for a batch: ``input_ids`` and ``attention_mask`` [N x P], pictures."""
    width = max(len(prompt.ids) for prompt in prompts)

    def padded(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
        return torch.stack([F.pad(row, (width - len(row), 0), value=value) for row in rows])

    inputs = {
        "input_ids": padded([prompt.ids for prompt in prompts], pad_token_id),
        "attention_mask": padded([torch.ones_like(prompt.ids) for prompt in prompts], 0),
    }
    for name in prompts[0].token_fields:
        inputs[name] = padded([prompt.token_fields[name] for prompt in prompts], 0)
    inputs |= collate_images(prompts)
    return {name: value.to(device) for name, value in inputs.items()}


def collate_images(prompts: Sequence[Prompt]) -> dict[str, torch.Tensor]:
    """The pictures of several prompts, one after the other."""
    fields: dict[str, torch.Tensor] = {}
    for name in prompts[0].image_fields:
        parts = [prompt.image_fields[name] for prompt in prompts]
        if parts[0].ndim > 2:  # one row a prompt, a column a picture: pad to the most pictures
            most = max(part.shape[1] for part in parts)
            parts = [F.pad(p, (0, 0) * (p.ndim - 2) + (0, most - p.shape[1])) for p in parts]
        fields[name] = torch.cat(parts)
    return fields


def positions(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Where the model's rotary embedding puts each prompt token: [N x P], or [3 x N x P].

    Qwen's families place image tokens in time, height and width; completions go on from the last
    prompt token by one step a token in all three.
    """
    rope_index = getattr(base_of(model).base_model, "get_rope_index", None)
    if rope_index is None or "image_grid_thw" not in inputs:
        return (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
    grids = inputs["image_grid_thw"]
    tokens = {name: inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids")}
    if not (grids == grids[0]).all():
        found: torch.Tensor = rope_index(image_grid_thw=grids, **tokens)[0]
        return found
    # Prompts that have pictures of one size at the same places are alike, and each takes a while.
    kinds = torch.cat([tokens["attention_mask"], tokens["mm_token_type_ids"]], 1).cpu()
    _, firsts, row_of = np.unique(kinds, axis=0, return_index=True, return_inverse=True)
    few = {name: values[firsts] for name, values in tokens.items()}
    found = rope_index(image_grid_thw=grids, **few)[0]
    return found[:, row_of]


def base_of(model: Any) -> Any:
    """The model under its adapters, if it has any."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
