"""Draw every KL schedule as ``training/kl.py`` computes it: python docs/kl_schedules.py."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from othink_pipeline.training.kl import (
    Accuracy,
    Adaptive,
    Constant,
    Cosine,
    ExploreExploit,
    Exponential,
    KLController,
    KLSchedule,
    Linear,
    Seen,
    Step,
)

UPDATES = 48
OVER_TIME: list[KLSchedule] = [
    Constant(schedule="constant", weight=0.51),
    ExploreExploit(schedule="explore_exploit", low=0.02, high=1.0, explore_share=0.3),
    Linear(schedule="linear", start=0.02, end=1.0),
    Cosine(schedule="cosine", start=0.02, end=1.0),
    Exponential(schedule="exponential", start=0.02, end=1.0),
    Step(schedule="step", weights=(0.02, 1.0)),
]
ADAPTIVE = Adaptive(schedule="adaptive", start=1.0, target=0.02, gain=1.0, low=0.001, high=10.0)
ACCURACY = Accuracy(schedule="accuracy", weight=1.0)


def draw(file: Path) -> None:
    """Three panels: weight over updates; adaptive's factor over KL; accuracy's weight over it."""
    figure, (time, error, accuracy) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for schedule in OVER_TIME:
        controller = KLController(schedule, UPDATES)
        weights = [controller.next_weight(update, 0.0) for update in range(UPDATES)]
        time.plot(range(1, UPDATES + 1), weights, label=schedule.schedule)
    time.set(xlabel="update", ylabel="KL weight", title="by progress")
    time.legend(frameon=False, fontsize=8)
    kls = np.linspace(0, 0.04, 201)
    factors = [ADAPTIVE.next_weight(Seen(0.5, 0.0, float(kl)), 1.0) for kl in kls]
    error.plot(kls / ADAPTIVE.target, factors)
    error.set(
        xlabel="KL in the update before / target",
        ylabel="weight / weight before",
        title=f"adaptive, gain {ADAPTIVE.gain:g}",
    )
    shares = np.linspace(0, 1, 201)
    weights = [ACCURACY.next_weight(Seen(0.0, float(share), None), None) for share in shares]
    accuracy.plot(shares, weights)
    accuracy.set(
        xlabel="mean accuracy of the batch",
        ylabel="KL weight",
        title=f"accuracy, weight {ACCURACY.weight:g}",
        ylim=(0, ACCURACY.weight),
    )
    for panel in (time, error, accuracy):
        panel.grid(alpha=0.3)
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images/kl_schedules.png")
    draw(target)
    print(target)
