"""One GRPO update over image tokens and group size: how much there is to share decides the gain."""

from __future__ import annotations

from typing import Any

import matplotlib

from benchmarks.grpo_step import compare, run
from benchmarks.harness import ROOT, record

IMAGE_TOKENS = (16, 64, 256)
COPIES = (4, 8, 16)
UPDATES = 4


def measure() -> list[dict[str, Any]]:
    """A row for each number of image tokens and completions a prompt."""
    rows = []
    for image_tokens in IMAGE_TOKENS:
        for copies in COPIES:
            figures = compare(*run(image_tokens, copies, UPDATES, 32), slice(1, UPDATES))
            rows.append({"image tokens": image_tokens, "G": copies, **figures})
            print(rows[-1], flush=True)
    return rows


def draw(rows: list[dict[str, Any]]) -> None:
    """Times faster and memory over the number of image tokens, a line for each G."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (faster, memory) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for copies in COPIES:
        some = [row for row in rows if row["G"] == copies]
        tokens = [row["image tokens"] for row in some]
        faster.plot(
            tokens, [row["times faster"] for row in some], marker="o", label=f"G = {copies}"
        )
        ratio = [row["ours GB"] / row["stock GB"] for row in some]
        memory.plot(tokens, ratio, marker="o", label=f"G = {copies}")
    faster.set(ylabel="times faster than stock TRL", ylim=0)
    memory.set(ylabel="peak memory / stock TRL's", ylim=0)
    for axes in (faster, memory):
        axes.axhline(1, color="grey", linewidth=1, linestyle=":")
        axes.set(xlabel="image tokens", xscale="log", xticks=list(IMAGE_TOKENS))
        axes.set_xticklabels([str(tokens) for tokens in IMAGE_TOKENS])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    faster.legend(frameon=False)
    figure.savefig(ROOT / "docs/images/prompt_length.png", dpi=120)


if __name__ == "__main__":
    rows = measure()
    record(
        "prompt_length",
        "A GRPO update over image tokens and group size",
        rows,
        "16 prompts, G completions of at most 32 tokens each. The pictures of the counting task "
        "are enlarged, so that the shipped mini model sees 16, 64 or 256 image tokens (beside "
        f"some 50 text tokens). {UPDATES} updates each, the first to warm up. Memory: peak of "
        "the process, libraries included (some 0.7 GB).",
    )
    draw(rows)
