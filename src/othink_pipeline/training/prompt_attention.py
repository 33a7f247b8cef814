"""Attention over a stream in which each prompt stands once and all its completions read it.

A prompt attends to itself, a completion to its prompt and to itself: P^2 + G C (P + C) scores for G
completions, and no mask over the stream. Transformers' attention functions are registered anew
under their own names. They do this where a model is called with ``prompt_layout=``, which it hands
on to its layers, also to a checkpointed one that is computed once more; otherwise they are what
they were.

With ``sdpa`` and ``eager`` some more scores are computed than are needed: at most ``CHUNK_TOKENS``
/ 2 for each completion token, and where a completion ends before its chunk does. Beside seven
completions of 40 tokens one of 1,024 takes 1.4 times the least number (prompt: 267 tokens), where
padded rows take 15 times; all else is computed without padding. Where there is least to share, two
completions of 2,048 tokens to a prompt of 60, sharing takes as long as padded rows (0.98 times as
fast). Nothing chooses between the two ways by the clock: it would choose otherwise the next time,
and no run could be repeated.

Legend: T tokens in the stream, H heads of D numbers, N prompts of P tokens, R completions of up to
C tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from othink_pipeline.models.prompts import CannotShareError

if TYPE_CHECKING:
    from othink_pipeline.training.packing import Stream

CHUNK_TOKENS = 128
"""Of so many tokens of each completion attention is computed at a time. Most keys that none of them
sees are left out so, and completions that have ended are."""

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Of queries [B x H x Q x D], keys and values [B x H x K x D]: [B x Q x H x D]. The last query sees
all keys, each one before it one key less."""


class Block(NamedTuple):
    """One group of a stream."""

    start: int
    """Where its first prompt starts."""
    prompts: tuple[int, int]
    """How many, and their tokens."""
    prompt_of: torch.Tensor
    """Which of these prompts each completion has [R]."""
    places: torch.Tensor
    """Of each completion token in the stream; at padding any [R x C]."""
    reaching: tuple[int, ...]
    """How many completions reach each chunk of ``CHUNK_TOKENS``."""

    def attend(
        self, attention: Attention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> list[torch.Tensor]:
        """Of [T x H x D] each, what the prompts read and then each chunk [B x Q x H x D]."""
        end = self.start + self.prompts[0] * self.prompts[1]

        def prompts(tokens: torch.Tensor) -> torch.Tensor:
            heads: torch.Tensor = tokens[self.start : end].unflatten(0, self.prompts)
            return heads.transpose(1, 2)

        def completions(tokens: torch.Tensor) -> torch.Tensor:
            heads = tokens.index_select(0, self.places.flatten())
            return heads.view(*self.places.shape, *tokens.shape[1:]).transpose(1, 2)

        def both(tokens: torch.Tensor) -> torch.Tensor:
            read = prompts(tokens).index_select(0, self.prompt_of)
            return torch.cat([read, completions(tokens)], 2)

        found = [attention(prompts(query), prompts(key), prompts(value))]
        if self.reaching:
            query, key, value = completions(query), both(key), both(value)
        for number, rows in enumerate(self.reaching):
            first = number * CHUNK_TOKENS
            asking = query[:rows, :, first : first + CHUNK_TOKENS]
            seen = self.prompts[1] + first + asking.shape[2]
            found.append(attention(asking, key[:rows, :, :seen], value[:rows, :, :seen]))
        return found


class Blocks(NamedTuple):
    """A stream's layout for ``sdpa`` and ``eager``."""

    blocks: tuple[Block, ...]
    order: torch.Tensor
    """Where in what the blocks give each token of the stream is [T]."""

    @classmethod
    def of(
        cls,
        stream: Stream,
        prompt_tokens: Sequence[int],
        completion_tokens: Sequence[int],
        of: Sequence[int],
        device: torch.device,
    ) -> Blocks:
        """Divide a stream."""
        blocks = []
        order = np.zeros(sum(prompt_tokens) + sum(completion_tokens), np.int64)
        given = 0
        for prompts, completions in stream.groups:
            start, length = stream.prompt_starts[prompts[0]], prompt_tokens[prompts[0]]
            end = start + len(prompts) * length
            order[start:end] = np.arange(given, given + end - start)
            given += end - start
            tokens = np.array([completion_tokens[row] for row in completions], np.int64)
            starts = np.array([stream.completion_starts[row] for row in completions], np.int64)
            steps = np.arange(max(tokens, default=0))
            real = steps < tokens[:, None]
            places = np.where(real, starts[:, None] + steps, start)
            firsts = range(0, len(steps), CHUNK_TOKENS)
            reaching = tuple(int((tokens > first).sum()) for first in firsts)
            for first, rows in zip(firsts, reaching, strict=True):
                chunk = np.s_[:rows, first : first + CHUNK_TOKENS]
                size = places[chunk].size
                made = np.arange(given, given + size).reshape(places[chunk].shape)
                order[places[chunk][real[chunk]]] = made[real[chunk]]
                given += size
            prompt_of = [prompts.index(of[row]) for row in completions]
            blocks.append(
                Block(
                    start,
                    (len(prompts), length),
                    torch.tensor(prompt_of, device=device),
                    torch.from_numpy(places).to(device),
                    reaching,
                )
            )
        return cls(tuple(blocks), torch.from_numpy(order).to(device))

    def attend(
        self,
        name: str,
        module: torch.nn.Module,
        *states: torch.Tensor,
        sliding_window: int | None = None,
        **options: Any,
    ) -> torch.Tensor:
        """Of queries, keys and values [1 x H x T x D]: [1 x T x H x D]."""
        if sliding_window is not None:
            raise CannotShareError("a sliding window takes 'flash_attention_2'")
        attention = partial(_sdpa if name == "sdpa" else _eager, module, options)
        query, key, value = (heads[0].transpose(0, 1) for heads in states)
        if name == "sdpa" and query.device.type != "cpu":  # no kernel takes groups and a mask
            groups = query.shape[1] // key.shape[1]
            key, value = (heads.repeat_interleave(groups, 1) for heads in (key, value))
        found = [
            part.flatten(0, 1)
            for block in self.blocks
            for part in block.attend(attention, query, key, value)
        ]
        return torch.cat(found).index_select(0, self.order)[None]


class Sequences(NamedTuple):
    """A stream's layout for FlashAttention: the queries and keys of each prompt and completion."""

    keys: torch.Tensor
    """Places of all keys in the stream, one sequence after the other."""
    lengths: dict[str, Any]
    """Where each sequence starts and how long the longest is: ``FlashAttentionKwargs``."""

    @classmethod
    def of(
        cls,
        stream: Stream,
        prompt_tokens: Sequence[int],
        completion_tokens: Sequence[int],
        of: Sequence[int],
        device: torch.device,
    ) -> Sequences:
        """Divide a stream."""
        asking: list[int] = []
        read: list[np.ndarray[Any, Any]] = []
        for prompts, completions in stream.groups:
            for prompt in prompts:
                start, tokens = stream.prompt_starts[prompt], prompt_tokens[prompt]
                asking.append(tokens)
                read.append(np.arange(start, start + tokens))
            for row in completions:
                start, tokens = stream.prompt_starts[of[row]], prompt_tokens[of[row]]
                own, more = stream.completion_starts[row], completion_tokens[row]
                asking.append(more)
                read.append(np.r_[start : start + tokens, own : own + more])
        lengths: dict[str, Any] = {}
        for name, tokens_of in (("q", asking), ("k", [len(keys) for keys in read])):
            ends = torch.tensor([0, *tokens_of]).cumsum(0)
            lengths[f"cu_seq_lens_{name}"] = ends.to(device, torch.int32)
            lengths[f"max_length_{name}"] = max(tokens_of)
        return cls(torch.from_numpy(np.concatenate(read)).to(device), lengths)

    def attend(
        self,
        name: str,
        module: torch.nn.Module,
        query: torch.Tensor,
        *read: torch.Tensor,
        **options: Any,
    ) -> torch.Tensor:
        """Of queries, keys and values [1 x H x T x D]: [1 x T x H x D]."""
        keys, values = (heads.index_select(2, self.keys) for heads in read)
        # Of sequences with fewer queries than keys FlashAttention takes the last ones to be asking.
        found: torch.Tensor
        found, _ = _STOCK[name](module, query, keys, values, None, **options, **self.lengths)
        return found


def _sdpa(
    _: torch.nn.Module,
    options: dict[str, Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    """Torch's own: Transformers' would copy the keys of grouped queries for each chunk."""
    whole = query.shape[2] == key.shape[2]
    found = F.scaled_dot_product_attention(
        query,
        key,
        value,
        None if whole else _sees(query, key),
        dropout_p=options.get("dropout", 0.0),
        is_causal=whole,
        scale=options.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return found.transpose(1, 2)


def _eager(
    module: torch.nn.Module,
    options: dict[str, Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
) -> torch.Tensor:
    """The family's own, which takes a mask that is added to the scores."""
    mask = torch.zeros(query.shape[2], key.shape[2], dtype=query.dtype, device=query.device)
    mask.masked_fill_(~_sees(query, key), torch.finfo(query.dtype).min)
    found: torch.Tensor = _eager_of(module)(module, query, key, value, mask, **options)[0]
    return found


def _sees(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Which key each query sees [Q x K]."""
    asking, read = query.shape[2], key.shape[2]
    return torch.ones(asking, read, dtype=torch.bool, device=query.device).tril(read - asking)


def _eager_of(module: torch.nn.Module) -> Callable[..., Any]:
    """Each family's ``eager`` stands in the file of its attention."""
    own: Callable[..., Any] = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    return own


def _attend(
    name: str,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    prompt_layout: Blocks | Sequences | None = None,
    **options: Any,
) -> tuple[torch.Tensor, Any]:
    """The attention ``name``; over a stream if there is a layout.

    A vision tower gets the layout, too: its attention is the one that is not causal.
    """
    if prompt_layout is None or not getattr(module, "is_causal", False):
        stock = _STOCK.get(name) or _eager_of(module)
        found: tuple[torch.Tensor, Any] = stock(
            module, query, key, value, attention_mask, **options
        )
        return found
    return prompt_layout.attend(name, module, query, key, value, **options), None


_STOCK = {name: ALL_ATTENTION_FUNCTIONS[name] for name in ("sdpa", "flash_attention_2")}
for _name in (*_STOCK, "eager"):
    ALL_ATTENTION_FUNCTIONS.register(_name, partial(_attend, _name))
