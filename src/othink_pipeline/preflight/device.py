"""The machine that computes, and its memory. Import this module inside functions: torch."""

from __future__ import annotations

import gc
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from othink_pipeline.cells.parameters import Cluster
from othink_pipeline.preflight.needs import Device

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
RESET = Path("/proc/self/clear_refs")
"""Takes a 5 for: begin again to measure the peak."""


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


def guess_at_once(cluster: Cluster) -> int | None:
    """Cells that a Ray would train at the same time; None where only its machines tell."""
    if cluster.workers or cluster.address:
        return cluster.workers
    return cluster.trained_at_once({"CPU": os.cpu_count() or 1, "GPU": torch.cuda.device_count()})


def has_bfloat16() -> bool:
    """Whether what computes has bfloat16 of its own; a CPU emulates what it lacks."""
    return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)


def emulates_bfloat16() -> bool:
    """Whether this is a CPU that computes bfloat16 by other means, much slower than float32."""
    able = torch.cpu.get_capabilities()
    native = able.get("avx512_bf16") or able.get("amx_bf16")
    return able["architecture"] == "x86_64" and not native


def reset_peak() -> None:
    """Let go of what is not used any more, and measure the peak of the memory from now on."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # Linux alone can; elsewhere it is the peak since the process began
            RESET.write_text("5")


def peak_bytes() -> int:
    """The most memory since ``reset_peak``: allocated on the GPU, else of the whole process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size
