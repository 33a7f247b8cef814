"""What a training holds in memory for certain, part by part, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model

from othink_pipeline.cells.accelerate_config import Sharing, read_sharing
from othink_pipeline.cells.methods import resolve_method
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.safetensors import Weights
from othink_pipeline.models.parameters import Compute, ModelSettings, VLLMColocate
from othink_pipeline.preflight import needs
from othink_pipeline.preflight.needs import Device, Plan, held
from othink_pipeline.preflight.weights import count_trained
from othink_pipeline.training.parameters import Lora
from othink_pipeline.training.trainable import choose_weights
from tests.conftest import shipped, shipped_parameters
from tests.support.families import build

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm")
ALONE = Sharing("alone", 1)
WEIGHTS = Weights(1_000_000, 4_000_000, {"model.visual.a": (200_000,), "b.weight": (800, 1000)})
GPU = Device("GPU toy", 10**12, gpu=True)
CPU = Device("CPU toy", 10**12, gpu=False)


def method(name: str, **changes: Any) -> Any:
    raw = shipped_parameters()
    raw["methods"][name] |= changes
    return resolve_method(raw, name, "counting")


def compute(**changes: Any) -> Compute:
    return Compute(**shipped("compute", **changes))


def settings(**changes: Any) -> ModelSettings:
    return ModelSettings(**shipped("model", **changes))


def plan(name: str = "grpo", sharing: Sharing = ALONE, **changes: Any) -> Plan:
    return Plan(method(name, **changes), settings(), compute(), sharing)


def adapters(**changes: Any) -> Lora:
    block = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "modules": "all-linear", "merge": False}
    return Lora(**{**block, **changes})


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("freeze_vision", [False, True])
@pytest.mark.parametrize("modules", [None, "all-linear", ["q_proj", "down_proj"]])
def test_trained_weights_are_counted_as_they_are_chosen(
    family: str, freeze_vision: bool, modules: Any
) -> None:
    """By the names and shapes in the files, as PEFT and the trainers choose them."""
    model = build(family)
    lora = adapters(modules=modules) if modules else None
    chosen = method("grpo", freeze_vision=freeze_vision, lora=lora and lora.model_dump())
    named = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    sizes = Weights(model.num_parameters(), 0, named)
    config = choose_weights(model, chosen)
    trained = get_peft_model(model, config) if config else model
    count = sum(weight.numel() for weight in trained.parameters() if weight.requires_grad)
    assert count_trained(sizes, chosen) == count


def test_what_is_trained_decides_what_is_held() -> None:
    whole = {"weights": 4e6, "gradients": 4e6, "optimizer": 8e6}
    assert held(plan(), WEIGHTS, GPU) == {**whole, "reference": 4e6}
    assert held(plan("sft"), WEIGHTS, GPU) == whole
    assert held(plan("sft"), WEIGHTS, CPU) == {**whole, "weights at first": 4e6}
    half = plan()._replace(settings=settings(dtype="bfloat16"))
    assert held(half, WEIGHTS, GPU) == {**whole, "reference": 2e6}
    moving = half.method.model_copy(update={"sync_ref_model": True})
    assert held(half._replace(method=moving), WEIGHTS, GPU) == {**whole, "reference": 4e6}
    assert held(plan("sft", optimizer="adamw_8bit"), WEIGHTS, GPU)["optimizer"] == 2e6
    frozen = plan("sft", freeze_vision=True)._replace(settings=settings(dtype="bfloat16"))
    assert held(frozen, WEIGHTS, GPU) == {
        "weights": 4 * 800_000 + 2 * 200_000,
        "gradients": 4 * 800_000,
        "optimizer": 8 * 800_000,
    }
    count = 4 * (800 + 1000)  # the adapters of the one layer
    assert held(plan(lora=adapters().model_dump()), WEIGHTS, GPU) == {
        "weights": 4 * count + 4e6,
        "gradients": 4 * count,
        "optimizer": 8 * count,
    }


@pytest.mark.parametrize(
    ("kind", "weights", "gradients", "optimizer", "reference"),
    [
        ("data", 3.6e6, 6.4e6, 6.4e6, 2e6),
        ("zero1", 2e6, 1.6e6, 2.4e6, 2e6),
        ("zero2", 2e6, 0.4e6, 2.4e6, 2e6),
        ("zero3", 0.5e6, 0.4e6, 2.4e6, 0.5e6),
        ("fsdp", 0.9e6, 0.8e6, 1.6e6, 0.5e6),
    ],
)
def test_what_four_processes_share(
    kind: Any, weights: float, gradients: float, optimizer: float, reference: float
) -> None:
    """Of 800,000 trained weights and 200,000 frozen ones, which are bfloat16."""
    shared = plan(sharing=Sharing(kind, 4), freeze_vision=True)
    assert held(shared._replace(settings=settings(dtype="bfloat16")), WEIGHTS, GPU) == {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "reference": reference,
    }


def test_the_weights_at_first_are_kept_by_who_has_them_whole() -> None:
    assert "weights at first" in held(plan(sharing=Sharing("data", 2)), WEIGHTS, CPU)
    assert "weights at first" not in held(plan(sharing=Sharing("fsdp", 2)), WEIGHTS, CPU)


def test_vllm_takes_its_share_of_a_gpu_that_generates() -> None:
    vllm = compute(vllm=VLLMColocate(mode="colocate", gpu_memory=0.25))
    assert held(plan()._replace(compute=vllm), WEIGHTS, GPU)["vLLM"] == 0.25 * 10**12
    assert "vLLM" not in held(plan("sft")._replace(compute=vllm), WEIGHTS, GPU)


def test_what_cannot_fit_is_refused_with_what_helps_most_first() -> None:
    device = Device("GPU toy", 20_000_000, gpu=True)
    plans = {"grpo": plan()}
    assert needs.check_held("m", WEIGHTS, plans, device)[0].outcome == "ok"
    (row,) = needs.check_held("m", WEIGHTS, plans, device._replace(memory=19_999_999))
    assert row.outcome == "FAILED"
    assert "20.0 MB all the time (optimizer 8.0 MB" in row.detail
    keys = ["training.lora", "freeze_vision", "training.optimizer: adamw_8bit", "model.dtype"]
    places = [row.remedy.index(key) for key in keys]
    assert places[0] < min(places[1:])  # no moments, no gradients, no reference
    assert "training.optimizer: adamw_8bit (saves 6.0 MB)" in row.remedy
    for useless in ("gradient_checkpointing", "micro_batch_size", "ZeRO"):
        assert useless not in row.remedy
    tiny = plan("sft", lora=adapters().model_dump(), optimizer="adamw_8bit", freeze_vision=True)
    tiny = tiny._replace(settings=settings(dtype="bfloat16"))
    (row,) = needs.check_held("m", WEIGHTS, {"sft": tiny}, device._replace(memory=9))
    assert row.remedy == "Take a smaller base model, or a device with more memory."
    several = {"grpo": plan(sharing=Sharing("data", 2))}
    (row,) = needs.check_held("m", WEIGHTS, several, device._replace(memory=19_999_999))
    assert "ZeRO-3" in row.remedy


# --- Launchers


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("distributed_type: MULTI_GPU", "data"),
        ("distributed_type: FSDP", "fsdp"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 2}", "zero2"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 3}", "zero3"),
    ],
)
def test_a_launcher_says_what_is_shared(
    text: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("launch.yaml").write_text(text)
    assert read_sharing(compute(launcher="launch.yaml", num_processes=2)) == Sharing(kind, 2)  # type: ignore[arg-type]
    assert read_sharing(compute()) == ALONE
    assert read_sharing(compute(num_processes=2)) == Sharing("data", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file"),
        ("- a list", "distributed_type = None"),
        ("x: [", "no YAML"),
        ("distributed_type: TPU", "'TPU'"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: 5}", "zero_stage = 5"),
    ],
)
def test_a_launcher_that_is_none_is_named(
    text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path("launch.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=r"compute\.launcher = 'launch.yaml'") as error:
        read_sharing(compute(launcher="launch.yaml"))
    assert message in error.value.message
