"""Complete examples: read, generated in batches that fit the memory, and put in order again.

While the model works on a batch, pictures and texts of the next one go through the processor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from othink_pipeline.models.prompts import Prompt, encode, render_prompt
from othink_pipeline.models.sampling import sample

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

OPENINGS = {None: "", True: "<think>", False: "<think></think>"}

_largest_batch: dict[str, int] = {}
"""Device -> the most completions that fit its memory at a time, once more have been tried. Kept for
all that the process evaluates: to run out of memory again and again takes longer than small
batches."""


class Decoding(NamedTuple):
    """How completions are made."""

    batch_size: int
    """The most completions at a time, but never fewer than one example's; halved for good when
    they do not fit the memory."""
    max_completion_tokens: int
    think: bool | None = None
    """None lets the model choose; False forces an empty think block, True a worked one. The forced
    opening counts as part of the completion."""
    temperature: float | None = None
    """None decodes greedily; above 0 samples from torch's global generator."""
    samples: int = 1
    """Completions of each example, which is read once for all of them."""


class Completion(NamedTuple):
    """One generated answer: its text without special tokens, and its length in tokens."""

    text: str
    tokens: int


@torch.inference_mode()
def complete(
    model: Any,
    processor: Any,
    examples: Dataset,
    prompt: str,
    decoding: Decoding,
    images: Dataset | None = None,
) -> list[Completion]:
    """Complete each of ``examples``, in their order; the samples of one stand side by side.

    Of the checkpoint's generation settings only its end tokens are used: penalties and the like
    would make answers to one question depend on more than the weights.

    Args:
        model, processor: as ``load_model`` returns them.
        examples: with columns ``question`` and ``image``.
        prompt: template with ``{question}``.
        images: whose column ``image`` the pictures come from, row for row; None: ``examples``.

    Returns:
        ``samples`` completions of the first example, then of the second, and so on.
    """
    opening, samples = OPENINGS[decoding.think], decoding.samples
    tokenizer = processor.tokenizer
    opening_tokens = len(tokenizer(opening, add_special_tokens=False)["input_ids"])
    ends = model.generation_config.eos_token_id or tokenizer.eos_token_id
    settings = {
        "max_tokens": decoding.max_completion_tokens - opening_tokens,
        "eos_token_ids": ends if isinstance(ends, list) else [ends],
        "pad_token_id": tokenizer.pad_token_id,
        "temperature": decoding.temperature,
        "suppressed_first": [tokenizer.convert_tokens_to_ids("</think>")] if decoding.think else [],
    }
    # Prompts of similar length share a batch, so that little of it is padding.
    questions: Sequence[str] = examples["question"][:]
    order = sorted(range(len(examples)), key=lambda row: (len(questions[row]), row))
    pictures = examples if images is None else images

    def read(rows: Sequence[int]) -> list[Prompt]:
        texts = [render_prompt(processor, prompt, questions[row]) + opening for row in rows]
        return encode(processor, texts, [[image] for image in pictures.select(rows)["image"]])

    size = max(1, decoding.batch_size // samples)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    was_training = model.training
    model.eval()
    generated = [
        ids
        for prompts in _read_ahead(read, batches)
        for ids in _generate(model, prompts, decoding, settings)
    ]
    model.train(was_training)
    # Only now: a tokenizer that reads the next batch in its thread cannot be used in this one.
    texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
    completions = [
        Completion(opening + text, opening_tokens + len(ids))
        for text, ids in zip(texts, generated, strict=True)
    ]
    places = sorted(range(len(order)), key=order.__getitem__)  # of the examples in ``order``
    return [completions[place * samples + number] for place in places for number in range(samples)]


def _read_ahead(
    read: Callable[[Sequence[int]], list[Prompt]], batches: Sequence[Sequence[int]]
) -> Iterator[list[Prompt]]:
    """What ``read`` makes of each batch, the next one in a thread while one is worked on."""
    with ThreadPoolExecutor(1) as thread:
        coming = [thread.submit(read, rows) for rows in batches[:1]]
        for number in range(len(batches)):
            prompts = coming.pop().result()
            coming = [thread.submit(read, rows) for rows in batches[number + 1 : number + 2]]
            yield prompts


def _generate(
    model: Any, prompts: Sequence[Prompt], decoding: Decoding, settings: dict[str, Any]
) -> list[list[int]]:
    """The tokens of each prompt's samples, made in as many parts as the memory asks for."""
    device, samples = model.device.type, decoding.samples
    generated: list[list[int]] = []
    while left := prompts[len(generated) // samples :]:
        fitting = min(decoding.batch_size, _largest_batch.get(device, decoding.batch_size))
        rows = [prompt for prompt in left[: max(1, fitting // samples)] for _ in range(samples)]
        try:
            generated += sample(model, rows, **settings).ids
        except torch.OutOfMemoryError:
            if len(rows) == samples:
                raise
            _largest_batch[device] = len(rows) // 2
            logger.warning(
                "%d completions at a time do not fit the memory: %d from now on. Some answers may "
                "differ, by rounding alone, from those of larger batches.",
                len(rows),
                len(rows) // 2,
            )
    return generated
