"""The memory of a training, part by part, against what models really keep."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from families import build, prompt
from peft import get_peft_model
from transformers import AutoModelForImageTextToText
from transformers.cache_utils import DynamicCache

from othink_pipeline import memory, needs
from othink_pipeline.launchers import Sharing, read_sharing
from othink_pipeline.memory import Layout, Shape
from othink_pipeline.model_parameters import Compute, ModelSettings, VLLMColocate
from othink_pipeline.needs import Device, Lengths, Plan
from othink_pipeline.packing import pack
from othink_pipeline.parameters import Evaluation, Lora, resolve_method
from othink_pipeline.prompts import collate
from othink_pipeline.tuning import choose_weights
from othink_pipeline.validation import ConfigurationError
from othink_pipeline.weights import Weights, count_trained

ROOT = Path(__file__).parents[1]
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm")
ALONE = Sharing("alone", 1)
SHAPE = Shape(
    layers=2,
    hidden=8,
    query=16,
    key_value=4,
    inner=32,
    vocabulary=100,
    vision_layers=3,
    vision_hidden=6,
    vision_inner=24,
    vision_gated=False,
    patches=4,
)
WEIGHTS = Weights(1_000_000, 4_000_000, {"model.visual.a": (200_000,), "b.weight": (800, 1000)})
LENGTHS = Lengths(prompt=30, image=5, sft={"sft": 40})


def shipped() -> dict[str, Any]:
    raw: dict[str, Any] = {}
    for file in (ROOT / "conf" / "base").glob("parameters*.yml"):
        raw |= yaml.safe_load(file.read_text())
    return raw


def method(name: str, **changes: Any) -> Any:
    raw = shipped()
    raw["methods"][name] |= changes
    return resolve_method(raw, name, "counting")


def compute(**changes: Any) -> Compute:
    return Compute(**{**shipped()["compute"], **changes})


def plan(name: str = "grpo", sharing: Sharing = ALONE, **changes: Any) -> Plan:
    made = method(name, **changes)
    target = LENGTHS.sft.get(name, 0)
    return Plan(made, ModelSettings(**shipped()["model"]), compute(), sharing, target)


def evaluation(**changes: Any) -> Evaluation:
    return Evaluation(**{**shipped()["evaluation"], "batch_size": 1, **changes})


def adapters(**changes: Any) -> Lora:
    settings = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "modules": "all-linear", "merge": False}
    return Lora(**{**settings, **changes})


def kept_bytes(model: Any, run: Any) -> int:
    """What a forward pass keeps for the backward one, the weights themselves apart."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


# --- Against models


@pytest.mark.parametrize("half", [False, True])
def test_activations_are_what_a_model_keeps(half: bool) -> None:
    """A text model with grouped queries, whose prompts and completions are packed and are not."""
    model = build("qwen2_vl", num_hidden_layers=3)
    model.base_model.visual.requires_grad_(False)
    shape = memory.read_shape(model.config)
    trained = sum(w.numel() for w in model.base_model.language_model.layers.parameters())
    group, completion = 4, 60
    prompts = [prompt("qwen2_vl", 0, 14), prompt("qwen2_vl", 0, 14)]
    rows = [each for each in prompts for _ in range(group)]
    ids = torch.randint(3, 50, (len(rows), completion))
    packed = pack(model, rows, ids, torch.ones_like(ids), 0)
    alone = {"input_ids": torch.cat([collate(rows, 0, model.device)["input_ids"], ids], 1)}
    width = len(prompts[0].ids)
    alone["input_ids"][alone["input_ids"] >= 60] = 3  # no pictures
    for shared, inputs in ((True, packed.inputs), (False, alone)):
        layout = memory.lay_out(len(rows), group, width, completion, shared)

        def run(inputs: Any = inputs) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                model.base_model(**inputs)

        measured = kept_bytes(model, run) - (2 * trained if half else 0)
        expected = layout.tokens * memory.layer_bytes(shape, half) * shape.layers
        expected += memory.mask_bytes(layout, shape.layers, checkpointing=False, half=half)
        assert measured == pytest.approx(expected, rel=0.1), shared


@pytest.mark.parametrize("half", [False, True])
def test_the_vision_tower_keeps_about_as_much(half: bool) -> None:
    """At the proportions of Qwen2-VL's tower, of which the real one has 32 layers."""
    config = build("qwen2_vl").config
    config.vision_config.embed_dim, config.vision_config.depth = 128, 4
    model = AutoModelForImageTextToText.from_config(config)
    inputs = collate([prompt("qwen2_vl", seed, 3) for seed in range(12)], 0, model.device)
    tower = model.base_model.visual

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])

    trained = sum(weight.numel() for weight in tower.parameters())
    measured = kept_bytes(model, run) - (2 * trained if half else 0)
    shape = memory.read_shape(config)
    expected = len(inputs["pixel_values"]) * memory.vision_layer_bytes(shape, half) * 4
    assert measured == pytest.approx(expected, rel=0.3)


def test_a_mask_is_most_of_what_long_packed_rows_keep() -> None:
    packed, alone = Layout(2, 50, 2, 80, packed=True), Layout(2, 50, 2, 80, packed=False)
    assert memory.mask_bytes(alone, 3, checkpointing=False, half=False) == 0
    assert memory.mask_bytes(packed, 3, checkpointing=False, half=False) == 2 * 2500 * (1 + 3 * 4)
    assert memory.mask_bytes(packed, 3, checkpointing=True, half=True) == 2 * 2500 * (1 + 2)


def test_the_cache_is_as_large_as_the_models() -> None:
    model = build("qwen2_vl")
    shape = memory.read_shape(model.config)
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.randint(3, 50, (3, 11)), past_key_values=cache, use_cache=True)
    size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert memory.cache_bytes(3, 11, shape, 4) == size


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_of_every_family_is_read(family: str) -> None:
    shape = memory.read_shape(build(family).config)
    assert (shape.layers, shape.hidden, shape.inner, shape.vocabulary) == (2, 64, 96, 64)
    assert (shape.query, shape.key_value) == (64, 32)
    assert (shape.vision_hidden, shape.patches) == (32, 4)
    assert shape.vision_inner == {"qwen2_vl": 128}.get(family, shape.vision_inner) > 32
    assert shape.vision_gated == (family == "qwen2_5_vl")


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


# --- By hand


def held(**changes: Any) -> dict[str, float]:
    settings: dict[str, Any] = {
        "dtype_bytes": 2,
        "moment_bytes": 8,
        "reference": True,
        "sharing": ALONE,
        "copied": False,
    }
    return memory.held_bytes(100, 1000, **{**settings, **changes})


def test_weights_gradients_moments_and_reference() -> None:
    expected = {"weights": 2400, "gradients": 400, "optimizer": 800, "reference": 2200}
    assert held() == expected
    assert held(reference=False, moment_bytes=2, dtype_bytes=4, copied=True) == {
        "weights": 4400,
        "gradients": 400,
        "optimizer": 200,
        "weights at first": 400,
    }


@pytest.mark.parametrize(
    ("kind", "weights", "gradients", "optimizer", "reference"),
    [
        ("data", 2400, 800, 800, 2200),
        ("zero1", 2200, 200, 300, 2200),
        ("zero2", 2200, 50, 300, 2200),
        ("zero3", 550, 50, 300, 550),
        ("fsdp", 600, 100, 200, 550),
    ],
)
def test_what_four_processes_share(
    kind: Any, weights: float, gradients: float, optimizer: float, reference: float
) -> None:
    assert held(sharing=Sharing(kind, 4)) == {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "reference": reference,
    }


def test_checkpointing_keeps_the_stream_and_one_layer() -> None:
    assert memory.activation_bytes(100, 10, 5, checkpointing=False) == 500 + 50
    assert memory.activation_bytes(100, 10, 5, checkpointing=True) == 50 + 100 + 50
    assert memory.activation_bytes(100, 10, 0, checkpointing=True) == 0


def test_the_output_layer_never_holds_all_logits() -> None:
    wide = SHAPE._replace(vocabulary=150_000)
    few, many = (memory.head_bytes(n, wide, trained=False, half=True) for n in (10_000, 20_000))
    assert many - few == 10_000 * 2 * 4 * 8  # hidden states and their gradients, no logits
    tile = 4096 * 32768 * 2
    assert tile < few < 1.1 * tile
    trained = memory.head_bytes(10_000, wide, trained=True, half=True)
    assert trained - few == 150_000 * 8 * 4


def test_a_pass_is_laid_out_as_it_is_packed() -> None:
    assert memory.lay_out(16, 8, 30, 20, shared=True) == Layout(2, 30 + 160, 2, 320, packed=True)
    assert memory.lay_out(16, 8, 30, 20, shared=False) == Layout(16, 50, 16, 320, packed=False)
    # A micro-batch that is smaller than a group still reads the whole prompt.
    assert memory.lay_out(4, 8, 30, 20, shared=True) == Layout(1, 110, 1, 80, packed=True)


# --- From parameters


GPU = Device("GPU toy", 10**12, gpu=True)


def need(made: Plan, device: Device = GPU, **changes: Any) -> Any:
    return needs.need(made, WEIGHTS, SHAPE, LENGTHS, evaluation(**changes), device)


def test_what_is_trained_decides_what_is_held() -> None:
    assert need(plan()).held == {
        "weights": 4e6,
        "gradients": 4e6,
        "optimizer": 8e6,
        "reference": 4e6,
    }
    assert need(plan("sft")).held.keys() == {"weights", "gradients", "optimizer"}
    assert need(plan(freeze_vision=True)).held["optimizer"] == 8 * 800_000
    lora = need(plan(lora=adapters().model_dump())).held
    assert "reference" not in lora
    assert lora["optimizer"] == 8 * 4 * 1800
    cpu = Device("CPU", 10**12, gpu=False)
    assert need(plan(), cpu).held["weights at first"] == 4e6


def test_vllm_takes_its_share_and_spares_the_cache() -> None:
    vllm = VLLMColocate(mode="colocate", gpu_memory=0.25)
    with_vllm = plan()._replace(compute=compute(vllm=vllm))
    assert need(with_vllm).held["vLLM"] == 0.25 * 10**12
    assert need(with_vllm).passing["generation"] == 0
    assert "vLLM" not in need(plan("sft")._replace(compute=compute(vllm=vllm))).held


def test_a_pass_depends_on_micro_batch_checkpointing_dtype_and_vision() -> None:
    def activations(made: Plan) -> float:
        return float(need(made).passing["activations"])

    whole = activations(plan())
    assert activations(plan()._replace(compute=compute(micro_batch_size=16))) == whole / 8
    assert activations(plan()._replace(compute=compute(gradient_checkpointing=True))) < whole
    half = plan()._replace(compute=compute(bf16=True))
    assert activations(half) < whole
    assert need(half).passing["weights in bfloat16"] == 2e6
    vision = 16 * 5 * 4 * memory.vision_layer_bytes(SHAPE, half=False) * 3.5  # 3 layers
    assert whole - activations(plan(freeze_vision=True)) == vision
    apart = activations(plan()._replace(compute=compute(share_prompts=False)))
    pictures = activations(plan()) - activations(plan(freeze_vision=True))
    text = 128 * (30 + 72) * memory.layer_bytes(SHAPE, half=False) * 2.5
    assert apart == text + 8 * pictures


def test_sharded_weights_are_gathered_to_generate() -> None:
    shared = plan(sharing=Sharing("zero3", 2))
    split = need(shared).passing["generation"] - 4e6
    assert split == need(plan()).passing["generation"] / 2  # half of the rows


def test_the_peak_has_the_largest_phase() -> None:
    small, large = need(plan()), need(plan(), batch_size=10_000_000)
    backward = sum(small.passing[name] for name in needs.BACKWARD)
    assert small.peak == small.fixed + memory.LIBRARIES + backward
    assert large.peak == large.fixed + memory.LIBRARIES + large.passing["tests"]
    scores = 5 * 4 * 100 * 10_000_000
    cache = 2 * 4 * 2 * 4 * 10_000_000 * (30 + 72)
    assert large.passing["tests"] == scores + cache


def test_what_cannot_fit_is_refused_with_what_helps_most_first() -> None:
    device = Device("GPU toy", 20_000_000, gpu=True)
    plans = {"grpo": plan()}
    assert needs.check_held("m", WEIGHTS, plans, device)[0].outcome == "ok"
    (row,) = needs.check_held("m", WEIGHTS, plans, device._replace(memory=19_999_999))
    assert row.outcome == "FAILED"
    assert "0.02 GB all the time (optimizer 0.008 GB" in row.detail
    keys = ["training.lora", "freeze_vision", "training.optimizer: adamw_8bit", "model.dtype"]
    places = [row.remedy.index(key) for key in keys]
    assert places[0] < min(places[1:])  # no moments, no gradients, no reference
    assert "training.optimizer: adamw_8bit (saves about 0.006 GB)" in row.remedy
    for useless in ("gradient_checkpointing", "micro_batch_size", "ZeRO"):
        assert useless not in row.remedy
    several = {"grpo": plan(sharing=Sharing("data", 2))}
    (row,) = needs.check_held("m", WEIGHTS, several, device._replace(memory=19_999_999))
    assert "ZeRO-3" in row.remedy


def test_a_likely_lack_is_noted_with_what_lowers_the_peak() -> None:
    def check(gigabytes: float, **changes: Any) -> Any:
        device = Device("GPU toy", round(gigabytes * 1e9), gpu=True)
        settings = evaluation(**changes)
        plans = {"grpo": plan()}
        return needs.check_peak("m", WEIGHTS, SHAPE, LENGTHS, plans, settings, device)[0]

    assert check(1e3).outcome == "ok"
    assert check(1.1).outcome == "note"
    assert "the largest of backward pass" in check(1.1).detail
    noted = check(1.1, batch_size=10_000_000)
    assert "evaluation.batch_size: 5000000" in noted.detail


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
