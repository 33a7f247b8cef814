"""The machine that computes: its memory, its speed. Import this module inside functions: torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from othink_pipeline.costs import Speed
from othink_pipeline.needs import Device

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
MEASURED_S = 0.3
"""How long each of the two measurements goes on, warmed up."""


def find_device() -> Device:
    """What computes, and its memory: of the first GPU, else of the process."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return Device(f"GPU {device.name}", device.total_memory, gpu=True)
    limits = [psutil.virtual_memory().total]
    for file in CGROUP_LIMITS:
        if file.exists() and (text := file.read_text().strip()).isdecimal():
            limits.append(int(text))
    return Device(f"CPU (threads: {torch.get_num_threads()})", min(limits), gpu=False)


def has_bfloat16() -> bool:
    """Whether what computes has bfloat16 of its own; a CPU emulates what it lacks."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def measure_speed(bf16: bool) -> Speed:
    """How fast matrix products in the training's dtype and reading the memory are, at their best.

    The quickest of many tries: others at work on the machine disturb it least.
    """
    gpu = torch.cuda.is_available()
    place, width, length = ("cuda", 8192, 1 << 28) if gpu else ("cpu", 512, 1 << 25)
    left, right = (
        torch.ones(width, width, device=place, dtype=torch.bfloat16 if bf16 else torch.float32)
        for _ in range(2)
    )
    numbers = torch.ones(length, device=place)
    return Speed(
        flops=2 * width**3 / _quickest(lambda: left @ right, gpu),
        bytes=4 * length / _quickest(numbers.sum, gpu),
    )


def _quickest(call: Callable[[], torch.Tensor], gpu: bool) -> float:
    """Seconds of the quickest call."""

    def now() -> float:
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    for _ in range(2):
        call()
    seconds: list[float] = []
    end = now() + MEASURED_S
    while not seconds or now() < end:
        start = now()
        call()
        seconds.append(now() - start)
    return min(seconds)
