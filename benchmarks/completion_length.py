"""One GRPO update's forward and backward pass over completion lengths: ours against stock TRL's."""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

import matplotlib

from benchmarks.harness import ROOT, Peer, Turn, merge, store, take_turns

TOKENS = (32, 64, 128, 256, 512, 1024, 2048)
COPIES = (2, 4, 8, 16)
PROMPT_TOKENS = {2: 60}
"""Where they are not 267: two completions of a short prompt are where there is least to share."""
PROMPT_SHAPES = {60: ((112, 112), 44), 267: ((480, 320), 80)}
"""Of so many prompt tokens: the picture in pixels, and the tokens of text."""
PROMPTS, SHORT, UPDATES = 2, 40, 4
SIZES = [(tokens, tokens) for tokens in TOKENS]
SIZES += [(tokens, SHORT) for tokens in TOKENS if tokens >= 4 * SHORT]
"""Tokens of one completion, and of each of the others."""
NOTES = (
    f"A tiny Qwen2-VL (2 text layers of width 64) with random weights, {PROMPTS} prompts "
    "with a picture, G completions each: all of so many tokens, or "
    f"one of so many and the others {SHORT}. {UPDATES} updates each, the first to warm up; "
    "median seconds. Difference: of log-probabilities. Memory: peak of the process, libraries "
    "included (some 0.7 GB)."
)


def train(turn: Turn, name: str, copies: int, tokens: int, others: int) -> list[list[float]]:
    """Forward and backward, turn by turn; the log-probabilities."""
    import torch

    from benchmarks import gpu_step

    gpu_step.COPIES = copies
    gpu_step.PICTURE, gpu_step.TEXT_TOKENS = PROMPT_SHAPES[PROMPT_TOKENS.get(copies, 267)]
    model = gpu_step.build("tiny", "cpu")
    prompts = [gpu_step.draw_prompt(model, seed) for seed in range(PROMPTS)]
    lengths = torch.full((PROMPTS, copies), tokens)
    lengths[:, 1:] = others
    mask = (torch.arange(tokens) < lengths.view(-1, 1)).long()
    noise = torch.Generator().manual_seed(0)
    most = model.config.vision_start_token_id
    completions = torch.randint(0, most, mask.shape, generator=noise)
    parts = gpu_step.paths(model, prompts, completions, mask)[name]
    for _ in range(UPDATES):
        turn()
        parts["forward + backward"]()
    turn()
    found: list[list[float]] = (parts["reference"]() * mask).tolist()
    return found


def compare(copies: int, tokens: int, others: int) -> dict[str, Any]:
    """Seconds, their ratio, and memory."""
    names = ("stock", "ours")
    peers = {name: Peer(train, name, copies, tokens, others) for name in names}
    take_turns(peers.values(), UPDATES)
    ended = {name: peer.finish() for name, peer in peers.items()}
    stock, ours = (peers[name].seconds[1:] for name in names)
    rows = zip(*(ended[name][0] for name in names), strict=True)
    differences = [abs(a - b) for one, other in rows for a, b in zip(one, other, strict=True)]
    return {
        "completion tokens": tokens,
        "others": others,
        "G": copies,
        "prompt tokens": PROMPT_TOKENS.get(copies, 267),
        "stock s": median(stock),
        "ours s": median(ours),
        "times faster": median(stock) / median(ours),
        "stock GB": ended["stock"][1],
        "ours GB": ended["ours"][1],
        "largest difference": max(differences),
    }


def place(row: dict[str, Any]) -> tuple[int, int]:
    """Where a row stands in the table."""
    return row["G"], SIZES.index((row["completion tokens"], row["others"]))


def not_measured(rows: list[dict[str, Any]]) -> str:
    """Which groups and lengths there are no rows of, in words."""
    there = {(row["G"], row["completion tokens"], row["others"]) for row in rows}
    missing = []
    for copies in COPIES:
        left = [size for size in SIZES if (copies, *size) not in there]
        sizes = ", ".join(
            f"{tokens:,}" if others == tokens else f"{tokens:,} beside {others}"
            for tokens, others in left
        )
        if left:
            missing.append(f"G = {copies}" + (f" ({sizes})" if len(left) < len(SIZES) else ""))
    return f" Not measured: {'; '.join(missing)}." if missing else ""


def draw(rows: list[dict[str, Any]]) -> None:
    """Times faster and memory over the number of completion tokens, a line for each G."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (faster, memory) = pyplot.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
    for copies in sorted({row["G"] for row in rows}):
        for style, even in (("-", True), ("--", False)):
            some = [
                row
                for row in rows
                if row["G"] == copies and (row["others"] == row["completion tokens"]) == even
            ]
            if not some:
                continue
            tokens = [row["completion tokens"] for row in some]
            label = f"G = {copies}, prompt of {some[0]['prompt tokens']}"
            label += "" if even else f", all but one {SHORT}"
            times = [row["times faster"] for row in some]
            faster.plot(tokens, times, style, marker="o", label=label)
            ratios = [row["ours GB"] / row["stock GB"] for row in some]
            memory.plot(tokens, ratios, style, marker="o", label=label)
    faster.set(ylabel="times faster than stock TRL", ylim=0)
    memory.set(ylabel="peak memory / stock TRL's", ylim=0)
    for axes in (faster, memory):
        axes.axhline(1, color="grey", linewidth=1, linestyle=":")
        axes.set(xlabel="completion tokens", xscale="log", xticks=list(TOKENS))
        axes.set_xticklabels([str(tokens) for tokens in TOKENS])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    lines = faster.get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(ROOT / "docs/images/completion_length.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", choices=TOKENS, default=TOKENS)
    parser.add_argument("--copies", type=int, nargs="+", choices=COPIES, default=COPIES)
    options = parser.parse_args()
    for copies in options.copies:
        for size in SIZES:
            if size[0] not in options.tokens:
                continue
            row = compare(copies, *size)
            print(row, flush=True)
            rows = merge("completion_length", row, ("G", "completion tokens", "others"))
            rows.sort(key=place)
            title = "A forward and backward pass over completion lengths"
            store("completion_length", title, rows, NOTES + not_measured(rows))
            draw(rows)
