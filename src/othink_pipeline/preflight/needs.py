"""What each method of a grid holds in the device's memory for certain, and what would lower it.

What comes and goes in an update depends on machine and libraries: ``measure`` finds that out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from othink_pipeline.cells.accelerate_config import Sharing
from othink_pipeline.core.safetensors import Weights
from othink_pipeline.core.units import describe_bytes
from othink_pipeline.models.parameters import Compute, ModelSettings, VLLMColocate
from othink_pipeline.preflight.rows import Row
from othink_pipeline.preflight.weights import (
    DTYPE_BYTES,
    FLOAT32,
    MOMENT_BYTES,
    count_trained,
)
from othink_pipeline.training.parameters import RL, SFT, Lora

WORTH_SAVING = 0.05
"""What lowers the need by a smaller share than this is no remedy."""


class Device(NamedTuple):
    """What computes."""

    name: str
    memory: int
    """Bytes, of the first GPU, else of the process."""
    gpu: bool

    def __str__(self) -> str:
        return f"{self.name} has {describe_bytes(self.memory)}"


class Plan(NamedTuple):
    """A method, and all else that its memory depends on."""

    method: SFT | RL
    settings: ModelSettings
    compute: Compute
    sharing: Sharing


def held(plan: Plan, weights: Weights, device: Device) -> dict[str, float]:
    """What one process of a training holds all the time, by part, in bytes.

    Adapters are trained, what they are put on is frozen. On a CPU the trained weights are also
    kept as they were at first; with a GPU that copy is in the main memory.
    """
    method, settings, compute, sharing = plan
    trained = count_trained(weights, method)
    frozen = weights.parameters if method.lora else weights.parameters - trained
    size, moments = DTYPE_BYTES[settings.dtype], MOMENT_BYTES[method.optimizer]
    parts: dict[str, float] = {}
    if sharing.deepspeed:
        parts["weights"] = size * (trained + frozen) / sharing.weights
        parts["gradients"] = size * trained / sharing.gradients
        parts["optimizer"] = (FLOAT32 + moments) * trained / sharing.moments
    else:
        parts["weights"] = (FLOAT32 * trained + size * frozen) / sharing.weights
        # Data parallelism adds up gradients in buckets of its own.
        buckets = 2 if sharing.kind == "data" else 1
        parts["gradients"] = buckets * FLOAT32 * trained / sharing.gradients
        parts["optimizer"] = moments * trained / sharing.moments
        if not device.gpu and sharing.kind != "fsdp":
            parts["weights at first"] = FLOAT32 * trained
    if isinstance(method, RL):
        if method.lora is None:
            # One that moves is held as what is trained.
            of_each = FLOAT32 if method.sync_ref_model else size
            parts["reference"] = of_each * (trained + frozen) / sharing.weights
        if device.gpu and isinstance(compute.vllm, VLLMColocate):
            parts["vLLM"] = compute.vllm.gpu_memory * device.memory
    return parts


def check_held(path: str, weights: Weights, plans: Mapping[str, Plan], device: Device) -> list[Row]:
    """Refuse what cannot fit: a row for each method."""
    rows = []
    for name, plan in plans.items():
        parts = held(plan, weights, device)
        check, size = f"memory of {path} for {name}", sum(parts.values())
        detail = f"{describe_bytes(size)} all the time ({_parts(parts)}); {device}"
        if size <= device.memory:
            rows.append(Row(check, "ok", detail))
            continue
        saved = {
            remedy: size - sum(held(other, weights, device).values())
            for remedy, other in remedies(plan).items()
        }
        rows.append(Row(check, "FAILED", f"{detail}.", _advise(saved, size)))
    return rows


def remedies(plan: Plan) -> dict[str, Plan]:
    """What could lower what a method holds, and how it would then be trained."""
    method, settings, compute, sharing = plan
    tried: dict[str, Plan] = {}
    if method.lora is None:
        lora = Lora(rank=16, alpha=32.0, dropout=0.0, modules="all-linear", merge=False)
        other = method.model_copy(update={"lora": lora})
        tried["training.lora: {rank: 16, ...}"] = plan._replace(method=other)
    if settings.dtype != "bfloat16":
        halved = settings.model_copy(update={"dtype": "bfloat16"})
        mixed = compute.model_copy(update={"bf16": True})
        tried["model.dtype: bfloat16 with compute.bf16: true"] = plan._replace(
            settings=halved, compute=mixed
        )
    if method.optimizer == "adamw":
        other = method.model_copy(update={"optimizer": "adamw_8bit"})
        tried["training.optimizer: adamw_8bit"] = plan._replace(method=other)
    if not method.freeze_vision:
        other = method.model_copy(update={"freeze_vision": True})
        tried["training.freeze_vision: true"] = plan._replace(method=other)
    if sharing.kind != "zero3" and sharing.processes > 1:
        zero3 = sharing._replace(kind="zero3")
        tried["compute.launcher with DeepSpeed ZeRO-3"] = plan._replace(sharing=zero3)
    return tried


def _advise(saved: Mapping[str, float], size: float) -> str:
    """The remedies that are worth it, what helps most first."""
    best = sorted(saved.items(), key=lambda item: -item[1])
    listed = [
        f"{remedy} (saves {describe_bytes(less)})"
        for remedy, less in best
        if less > WORTH_SAVING * size
    ]
    rest = "take a smaller base model, or a device with more memory."
    return f"{'; '.join(listed)}; or {rest}" if listed else rest.capitalize()


def _parts(parts: Mapping[str, float]) -> str:
    shown = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {describe_bytes(size)}" for name, size in shown if size)
