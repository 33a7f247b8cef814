"""Whether shared prompts give what TRL's own computation gives: tried on a few completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from othink_pipeline.models.prompts import CannotShareError, Prompt, collate

if TYPE_CHECKING:
    from othink_pipeline.training.shared_prompts import SharedPromptTrainer

CHECKED_ROWS, CHECKED_TOKENS = 16, 8
"""How many completions of the first batch, and how many tokens of each, are computed in both ways
to compare them."""
SLACK = 4.0
"""How many times TRL's own variation with the batch size the two may differ by."""
ROUNDING = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Differences of log-probabilities that are rounding in any case."""


def find_fault(trainer: SharedPromptTrainer, prompts: Sequence[Prompt]) -> str | None:
    """Why the prompts cannot be shared; None: they can. Draws nothing from the generators."""
    # Two completions of each prompt: groups side by side, and prompts of several lengths.
    twice = [prompt for prompt in dict.fromkeys(prompts) for _ in range(2)]
    twice = twice[:CHECKED_ROWS]
    model, device = trainer.model, trainer.accelerator.device
    if trainer.sharded:  # processes with other numbers of prompts make as many forward passes
        rows = int(trainer.accelerator.gather(torch.tensor([len(twice)], device=device)).max())
        twice = [twice[row % len(twice)] for row in range(rows)]
    training = model.training
    model.eval()  # dropout would differ
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            difference, allowed = _difference(trainer, twice)
    except CannotShareError as error:
        return str(error)
    finally:
        model.train(training)
    if difference <= allowed:  # NaN is not
        return None
    return (
        f"its log-probabilities differ by {difference:.2g} from TRL's own, and only {allowed:.2g} "
        "is rounding"
    )


def _difference(trainer: SharedPromptTrainer, prompts: Sequence[Prompt]) -> tuple[float, float]:
    """The largest difference of log-probabilities, and the largest that is rounding."""
    model, args = trainer.model, trainer.args
    device, pad = trainer.accelerator.device, trainer._tokenizer.pad_token_id
    if trainer.sharded:
        completions = [prompt.ids[-CHECKED_TOKENS:] for prompt in prompts]  # any text will do
        sampled = None
    else:
        unwrapped = trainer.accelerator.unwrap_model(model)
        samples = trainer.sample(unwrapped, prompts, CHECKED_TOKENS)
        completions = [torch.tensor(ids) for ids in samples.ids]
        sampled = samples.log_probs
    width = max(len(ids) for ids in completions)
    ids = torch.stack([F.pad(row, (0, width - len(row)), value=pad) for row in completions])
    mask = torch.stack([F.pad(torch.ones_like(row), (0, width - len(row))) for row in completions])
    ids, mask = ids.to(device), mask.to(device)
    read = collate(prompts, pad, device)
    rows = (
        prompts,
        torch.cat([read["input_ids"], ids], 1),
        torch.cat([read["attention_mask"], mask], 1),
        width,
    )
    own = trainer.apart(model, *rows)[0]
    alone = trainer.apart(model, *rows, batch_size=1)[0]

    def largest(difference: torch.Tensor) -> torch.Tensor:
        return (difference * mask).abs().max()

    found = largest(trainer.shared(model, prompts, ids, mask)[0] - own)
    if sampled is not None:
        found = torch.maximum(found, largest(sampled[:, :width] - own))  # keeps a NaN
    rounding = ROUNDING[torch.bfloat16 if args.bf16 else model.dtype]
    return float(found), max(SLACK * float(largest(own - alone)), rounding)
