"""Sampling 64 long completions: ours against ``model.generate``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import mean, median
from typing import Any

from benchmarks.harness import interleave, record

PROMPTS, COPIES, TOKENS, ROUNDS = 8, 8, 512, 3
ENDS = {"all at the most tokens": (), "ragged": tuple(range(8))}
"""Tokens that end a completion. Of 512 equally likely ones 8 end every 64th."""


def sample(generate: Callable[[int], list[list[int]]]) -> list[list[int]]:
    """All completions, the same ones each time."""
    import torch

    torch.manual_seed(0)
    return generate(TOKENS)


def measure() -> list[dict[str, Any]]:
    """A row for even ends and one for ragged ones."""
    from benchmarks import gpu_step

    model = gpu_step.build("tiny", "cpu").eval()
    drawn = [gpu_step.draw_prompt(model, seed) for seed in range(PROMPTS)]
    prompts = [prompt for prompt in drawn for _ in range(COPIES)]
    rows = []
    for ends, ending in ENDS.items():
        peers = {
            name: partial(sample, generate)
            for name, generate in gpu_step.generators(model, prompts, ending).items()
        }
        ours, stock = peers["ours"](), peers["stock"]()
        same = sum(mine == theirs[: len(mine)] for mine, theirs in zip(ours, stock, strict=True))
        seconds = interleave(ROUNDS, **peers)
        tokens = [len(ids) for ids in ours]
        middle = {name: median(taken) for name, taken in seconds.items()}
        rows.append(
            {
                "completions end": ends,
                "tokens a completion": mean(tokens),
                "the longest": max(tokens),
                "generate s": middle["stock"],
                "ours s": middle["ours"],
                "times faster": middle["stock"] / middle["ours"],
                "same completions": f"{same} of {len(ours)}",
            }
        )
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    record(
        "generation",
        "Sampling long completions against model.generate",
        measure(),
        f"A tiny Qwen2-VL (2 text layers of width 64) with random weights, {PROMPTS} prompts with "
        f"a picture, 267 tokens each, {COPIES} completions of each of at most {TOKENS} tokens, "
        f"sampled at temperature 1 from the same seed; in turns, medians of {ROUNDS} rounds.",
    )
