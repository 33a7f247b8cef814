"""What each method of a grid needs of the device's memory, and what would lower it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from othink_pipeline import memory
from othink_pipeline.launchers import Sharing
from othink_pipeline.memory import FLOAT32, HALF, Layout, Shape
from othink_pipeline.model_parameters import Compute, ModelSettings, VLLMColocate
from othink_pipeline.parameters import RL, SFT, Evaluation, Lora
from othink_pipeline.preflight import Row
from othink_pipeline.weights import DTYPE_BYTES, MOMENT_BYTES, Weights, count_trained

TIGHT = 0.8
"""A larger share of the memory is worth a note: the estimate is good to 30 %."""

WORTH_SAVING = 0.05
"""What lowers the need by a smaller share than this is no remedy."""


class Lengths(NamedTuple):
    """The most tokens, image included, of a prompt and, by method, of a prompt and its target."""

    prompt: int
    image: int
    """Of them the picture's."""
    sft: dict[str, int]


class Device(NamedTuple):
    """What computes."""

    name: str
    memory: int
    """Bytes, of the first GPU, else of the process."""
    gpu: bool


class Plan(NamedTuple):
    """A method, and all else that its memory depends on."""

    method: SFT | RL
    settings: ModelSettings
    compute: Compute
    sharing: Sharing
    target_tokens: int
    """Most tokens of a prompt and its target; 0 for RL."""

    @property
    def shared(self) -> bool:
        """Whether a prompt is computed once for all of its completions."""
        rl = isinstance(self.method, RL) and self.compute.share_prompts
        return rl and self.settings.attention != "flash_attention_2"


class Need(NamedTuple):
    """Bytes by part."""

    held: dict[str, float]
    """All the time, for certain."""
    passing: dict[str, float]
    """Estimates: see ``peak``."""

    @property
    def fixed(self) -> float:
        """All that is held."""
        return sum(self.held.values())

    @property
    def peak(self) -> float:
        """With the largest of the phases, which come one after the other."""
        backward = sum(self.passing[name] for name in BACKWARD)
        largest = max(backward, self.passing["generation"], self.passing["tests"])
        return self.fixed + memory.LIBRARIES + largest


BACKWARD = ("weights in bfloat16", "activations", "output layer")
"""What a backward pass needs at the same time."""


def held(plan: Plan, weights: Weights, device: Device) -> dict[str, float]:
    """What one process holds all the time, by part."""
    method, vllm = plan.method, plan.compute.vllm
    trained = count_trained(weights, method)
    parts = memory.held_bytes(
        trained,
        weights.parameters if method.lora else weights.parameters - trained,
        dtype_bytes=DTYPE_BYTES[plan.settings.dtype],
        moment_bytes=MOMENT_BYTES[method.optimizer],
        reference=isinstance(method, RL) and method.lora is None,
        sharing=plan.sharing,
        copied=not device.gpu,
    )
    if device.gpu and isinstance(vllm, VLLMColocate) and isinstance(method, RL):
        parts["vLLM"] = vllm.gpu_memory * device.memory
    return parts


def need(
    plan: Plan,
    weights: Weights,
    shape: Shape,
    lengths: Lengths,
    evaluation: Evaluation,
    device: Device,
) -> Need:
    """What one process needs to train and score a method."""
    half, method = plan.compute.bf16, plan.method
    layout = lay_out(plan, rows_of_pass(plan), lengths)
    trained = count_trained(weights, method)
    cast = HALF * trained if half and not plan.sharing.deepspeed else 0
    passing = {
        "weights in bfloat16": cast / plan.sharing.weights,
        "activations": _activations(plan, shape, layout, lengths),
        "output layer": memory.head_bytes(
            layout.judged if device.gpu else layout.tokens,  # on a CPU it computes all
            shape,
            trained=method.lora is None,
            half=half,
        ),
        "generation": _generation(plan, weights, shape, lengths),
        "tests": _cache(
            plan, shape, evaluation.batch_size, lengths.prompt, evaluation.max_completion_tokens
        ),
    }
    return Need(held(plan, weights, device), passing)


def rows_of_pass(plan: Plan) -> int:
    """Rows of one backward pass in one process."""
    return plan.compute.share_rows(plan.method.rows_per_update)[0]


def lay_out(plan: Plan, rows: int, lengths: Lengths) -> Layout:
    """The sequences of a forward or backward pass over ``rows``, as long as they may get."""
    if isinstance(plan.method, SFT):
        return Layout(rows, plan.target_tokens, rows, rows * plan.target_tokens, packed=False)
    group, most = plan.method.completions_per_prompt, plan.method.max_completion_tokens
    return memory.lay_out(rows, group, lengths.prompt, most, plan.shared)


def _activations(plan: Plan, shape: Shape, layout: Layout, lengths: Lengths) -> float:
    half, again = plan.compute.bf16, plan.compute.gradient_checkpointing
    text = memory.activation_bytes(
        layout.tokens * memory.layer_bytes(shape, half),
        layout.tokens * FLOAT32 * shape.hidden,
        shape.layers,
        again,
    )
    text += memory.mask_bytes(layout, shape.layers, again, half)
    if plan.method.freeze_vision:
        return text
    patches = layout.pictures * lengths.image * shape.patches
    return text + memory.activation_bytes(
        patches * memory.vision_layer_bytes(shape, half),
        patches * FLOAT32 * shape.vision_hidden,
        shape.vision_layers,
        again,
    )


def _generation(plan: Plan, weights: Weights, shape: Shape, lengths: Lengths) -> float:
    """Cache and scores of all rows of an update; sharded weights are gathered for it."""
    method, sharing = plan.method, plan.sharing
    if isinstance(method, SFT):
        return 0.0
    gathered = DTYPE_BYTES[plan.settings.dtype] * weights.parameters if sharing.weights > 1 else 0
    if plan.compute.vllm:
        return float(gathered)
    rows = method.rows_per_update // sharing.processes
    return gathered + _cache(plan, shape, rows, lengths.prompt, method.max_completion_tokens)


def _cache(plan: Plan, shape: Shape, rows: int, prompt: int, completion: int) -> float:
    # Weights that are float32 make keys so, whatever autocast does to values.
    size = DTYPE_BYTES[plan.settings.dtype] if plan.method.lora else FLOAT32
    tokens = prompt + completion
    cache = memory.cache_bytes(rows, tokens, shape, size)
    return cache + memory.sampling_bytes(rows, shape.vocabulary)


def check_held(path: str, weights: Weights, plans: Mapping[str, Plan], device: Device) -> list[Row]:
    """Refuse what cannot fit: a row for each method."""
    rows = []
    for name, plan in plans.items():
        parts = held(plan, weights, device)
        check, size = f"memory of {path} for {name}", sum(parts.values())
        detail = f"{gigabytes(size)} all the time ({_parts(parts)}); {_has(device)}"
        if size <= device.memory:
            rows.append(Row(check, "ok", detail))
            continue
        saved = {
            remedy: size - sum(held(other, weights, device).values())
            for remedy, other in remedies(plan).items()
        }
        rows.append(Row(check, "FAILED", f"{detail}.", _advise(saved, size)))
    return rows


def check_peak(
    path: str,
    weights: Weights,
    shape: Shape,
    lengths: Lengths,
    plans: Mapping[str, Plan],
    evaluation: Evaluation,
    device: Device,
) -> list[Row]:
    """Compare the estimated peak with what there is: a row for each method; a lack is a note."""

    def estimate(plan: Plan) -> Need:
        return need(plan, weights, shape, lengths, evaluation, device)

    rows = []
    for name, plan in plans.items():
        found = estimate(plan)
        check, passing = f"peak memory of {path} for {name}", found.passing
        backward = {part: passing[part] for part in BACKWARD}
        detail = (
            f"about {gigabytes(found.peak)}: {gigabytes(found.fixed)} held, "
            f"{gigabytes(memory.LIBRARIES)} libraries, and the largest of backward pass "
            f"{gigabytes(sum(backward.values()))} ({_parts(backward)}), generation "
            f"{gigabytes(passing['generation'])}, tests {gigabytes(passing['tests'])}; "
            f"{_has(device)}"
        )
        if found.peak <= TIGHT * device.memory:
            rows.append(Row(check, "ok", detail))
            continue
        saved = {
            remedy: found.peak - estimate(other).peak for remedy, other in remedies(plan).items()
        }
        if passing["tests"] > sum(backward.values()):
            fewer = evaluation.model_copy(update={"batch_size": max(1, evaluation.batch_size // 2)})
            lower = need(plan, weights, shape, lengths, fewer, device).peak
            saved[f"evaluation.batch_size: {fewer.batch_size}"] = found.peak - lower
        advice = _advise(saved, found.peak)
        rows.append(Row(check, "note", f"{detail}. It may run out. {advice}"))
    return rows


def remedies(plan: Plan) -> dict[str, Plan]:
    """What could lower the need of a method, and how it would then be trained."""
    method, settings, compute, sharing = plan[:4]
    tried: dict[str, Plan] = {}
    if method.lora is None:
        lora = Lora(rank=16, alpha=32.0, dropout=0.0, modules="all-linear", merge=False)
        other = method.model_copy(update={"lora": lora})
        tried["training.lora: {rank: 16, ...}"] = plan._replace(method=other)
    if not compute.gradient_checkpointing:
        other_compute = compute.model_copy(update={"gradient_checkpointing": True})
        tried["compute.gradient_checkpointing: true"] = plan._replace(compute=other_compute)
    if (rows := rows_of_pass(plan)) > 1:
        smaller = max(size for size in range(1, rows // 2 + 1) if rows % size == 0)
        other_compute = compute.model_copy(update={"micro_batch_size": smaller})
        tried[f"compute.micro_batch_size: {smaller}"] = plan._replace(compute=other_compute)
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


def gigabytes(size_bytes: float) -> str:
    """``1.23 GB``."""
    return f"{size_bytes / 1e9:.3g} GB"


def _advise(saved: Mapping[str, float], size: float) -> str:
    """The remedies that are worth it, what helps most first."""
    best = sorted(saved.items(), key=lambda item: -item[1])
    listed = [
        f"{remedy} (saves about {gigabytes(less)})"
        for remedy, less in best
        if less > WORTH_SAVING * size
    ]
    return "; ".join([*listed, "or take a smaller base model, or a device with more memory."])


def _has(device: Device) -> str:
    return f"{device.name} has {gigabytes(device.memory)}"


def _parts(parts: Mapping[str, float]) -> str:
    shown = sorted(parts.items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {gigabytes(size)}" for name, size in shown if size)
