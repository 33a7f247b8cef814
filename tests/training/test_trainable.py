"""What is trained of a model, in which precision, and in how many passes: the same learning."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForImageTextToText

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.evaluation.predictions import predict
from othink_pipeline.models.generation import Decoding
from othink_pipeline.models.load import load_model, save_model
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.scoring.kinds import EXACT, Text
from othink_pipeline.training import loop as training
from othink_pipeline.training import rl as rl_training
from othink_pipeline.training import sft as sft_training
from othink_pipeline.training.loop import OPTIMIZERS, Job, Trained, train, trainer_settings
from othink_pipeline.training.parameters import RL, SFT
from othink_pipeline.training.trainable import choose_weights
from tests.conftest import PROMPT, MiniModel, shipped, shipped_health
from tests.support import families
from tests.support.methods import small_rl, small_sft

Splits = Mapping[str, Mapping[str, Any]]
Weights = dict[str, torch.Tensor]

OFTEN = {"updates": 3, "prompts_per_update": 4, "checkpoint_every_updates": 1}
LORA = {"rank": 4, "alpha": 16.0, "dropout": 0.0, "modules": "all-linear", "merge": False}
BFLOAT16: dict[str, Any] = {"model": {"dtype": "bfloat16"}, "compute": {"bf16": True}}


def sft(**changes: Any) -> SFT:
    return small_sft(**{**OFTEN, "target": "steps", **changes})


def rl(**changes: Any) -> RL:
    kl = {"schedule": "linear", "start": 0.05, "end": 0.5}
    return small_rl(**{**OFTEN, "max_completion_tokens": 10, "kl": kl, **changes})


METHODS = {"sft": sft, "rl": rl}


class Run(NamedTuple):
    """A training: its curve, and of every checkpoint the model's state at that moment."""

    trained: Trained
    curve: list[dict[str, float]]
    weights: dict[int, Weights]
    model: Any
    processor: Any


class Bench(NamedTuple):
    """What a training takes, but for its settings."""

    model_path: Path
    examples: Any
    folder: Path

    def job(
        self,
        parameters: SFT | RL,
        model: Mapping[str, Any] = {},
        compute: Mapping[str, Any] = {},
    ) -> Job:
        return Job(
            name="a cell",
            model_path=str(self.model_path),
            model=ModelSettings(**shipped("model", **model)),
            examples=self.examples,
            prompt=PROMPT,
            parameters=parameters,
            compute=Compute(**shipped("compute", **compute)),
            health=shipped_health(),
            seed=3,
            folder=self.folder,
        )

    def run(self, parameters: SFT | RL, watch: Any = lambda *_: None, **settings: Any) -> Run:
        """Train; ``watch`` sees the model at every checkpoint."""
        curve: list[dict[str, float]] = []
        weights: dict[int, Weights] = {}
        held: list[Any] = []

        def checkpoint(update: int, model: Any, processor: Any, state: Any) -> dict[str, float]:
            held[:] = [model, processor]
            weights[update] = copied(model)
            watch(update, model, processor)
            return {}

        trained = train(
            rl_training if isinstance(parameters, RL) else sft_training,
            self.job(parameters, **settings),
            lambda _, metrics: curve.append(metrics),
            checkpoint,
            lambda *_: None,
        )
        return Run(trained, curve, weights, *held)


def copied(model: Any) -> Weights:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def changed(run: Run) -> set[str]:
    """The weights that are others after the training."""
    first, last = run.weights[0], run.weights[max(run.weights)]
    return {name for name, weight in first.items() if not torch.equal(weight, last[name])}


def texts(model: Any, processor: Any, examples: Any) -> list[str]:
    table = predict(model, processor, examples, PROMPT, Decoding(8, 10), EXACT)
    return list(table["completion"])


def logits(model: Any) -> torch.Tensor:
    """Of a text alone: [1 x 8 x V]."""
    training, ids = model.training, torch.arange(20, 28)[None]
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids, attention_mask=ids.bool()).logits
    model.train(training)
    return found.float()


def files_of(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture
def bench(mini_model: MiniModel, splits: Splits, tmp_path: Path) -> Bench:
    return Bench(mini_model.path, splits["counting"]["train"], tmp_path / "states")


# --- Adapters


class Adapted(NamedTuple):
    """A training of adapters, saved in both ways after its last update."""

    run: Run
    differences: list[float]
    """Of each checkpoint's logits, adapters on and off."""
    merged: Path
    adapters: Path


@pytest.fixture(scope="module", params=METHODS)
def adapted(
    request: pytest.FixtureRequest,
    mini_model: MiniModel,
    splits: Splits,
    tmp_path_factory: pytest.TempPathFactory,
) -> Adapted:
    folder = tmp_path_factory.mktemp("adapted")
    bench = Bench(mini_model.path, splits["counting"]["train"], folder / "states")
    differences: list[float] = []

    def watch(update: int, model: Any, processor: Any) -> None:
        with model.disable_adapter():
            off = logits(model)
        differences.append(float((logits(model) - off).abs().max()))

    run = bench.run(METHODS[request.param](lora=LORA), watch)
    save_model(run.model, run.processor, folder / "merged", torch.float32, merge=True)
    save_model(run.model, run.processor, folder / "adapters", torch.float32, merge=False)
    return Adapted(run, differences, folder / "merged", folder / "adapters")


def test_adapters_alone_are_trained(adapted: Adapted, mini_model: MiniModel) -> None:
    run = adapted.run
    adapters = {name for name in run.weights[0] if ".lora_" in name}
    assert changed(run) == adapters
    assert any(".visual." in name for name in adapters)
    assert not any("lm_head" in name for name in adapters)
    base = dict(load_model(str(mini_model.path))[0].named_parameters())
    kept = {
        name.removeprefix("base_model.model.").replace(".base_layer.", "."): weight
        for name, weight in run.weights[max(run.weights)].items()
        if name not in adapters
    }
    assert kept.keys() == base.keys()
    assert all(torch.equal(kept[name], weight) for name, weight in base.items())
    assert run.trained.weights_changed > 0


def test_checkpoints_are_scored_with_the_adapters(adapted: Adapted) -> None:
    first, *later = adapted.differences
    assert first == 0
    assert all(difference > 0.01 for difference in later)


@pytest.mark.parametrize("adapted", ["rl"], indirect=True)
def test_the_base_model_is_the_reference_of_adapters(adapted: Adapted) -> None:
    first, *_, last = (metrics["train/kl"] for metrics in adapted.run.curve)
    assert abs(first) < 1e-6
    assert last > 1e-4


def test_merged_and_apart_adapters_are_the_same_model(
    adapted: Adapted, mini_model: MiniModel, splits: Splits
) -> None:
    merged, processor = load_model(str(adapted.merged))
    apart, _ = load_model(str(adapted.adapters), base_path=str(mini_model.path))
    assert not isinstance(merged, PeftModel)
    assert isinstance(apart, PeftModel)
    assert torch.equal(logits(apart), logits(adapted.run.model))
    torch.testing.assert_close(logits(merged), logits(apart), rtol=1e-4, atol=1e-4)
    examples = splits["geometry"]["test"]
    base = texts(*load_model(str(mini_model.path)), examples)
    assert texts(merged, processor, examples) == texts(apart, processor, examples) != base


def test_a_merged_model_is_one_as_any_other(adapted: Adapted, mini_model: MiniModel) -> None:
    base, merged = files_of(mini_model.path), files_of(adapted.merged)
    assert {name: weight.shape for name, weight in merged.items()} == {
        name: weight.shape for name, weight in base.items()
    }
    untouched = [name for name in base if "norm" in name or "embed" in name]
    assert untouched
    assert all(torch.equal(merged[name], base[name]) for name in untouched)
    _, told = AutoModelForImageTextToText.from_pretrained(adapted.merged, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_adapters_are_small_and_name_what_they_were_trained_on(adapted: Adapted) -> None:
    names = {file.name for file in adapted.adapters.iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= names
    assert "model.safetensors" not in names


def test_saving_leaves_the_model_as_it_is(adapted: Adapted) -> None:
    run = adapted.run
    now, last = copied(run.model), run.weights[max(run.weights)]
    assert now.keys() == last.keys()
    assert all(torch.equal(now[name], weight) for name, weight in last.items())


def test_adapters_without_their_base_model_are_refused(
    adapted: Adapted, tmp_path: Path, mini_model: MiniModel
) -> None:
    with pytest.raises(ConfigurationError, match="adapters, and no base model to put them on"):
        load_model(str(adapted.adapters))
    with pytest.raises(ConfigurationError, match="does not load"):
        load_model(str(adapted.adapters), base_path=str(tmp_path))


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_alone_says_what_adapters_start_from(bench: Bench, method: str) -> None:
    starts: list[Weights] = []

    class SeenEnoughError(Exception):
        """The weights of update 0 are all that is asked."""

    def keep(update: int, model: Any, processor: Any) -> None:
        starts.append(copied(model))
        raise SeenEnoughError

    for noise in range(2):
        torch.manual_seed(noise)
        with pytest.raises(SeenEnoughError):
            bench.run(METHODS[method](updates=1, lora=LORA), keep)
    one, other = starts
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(weight.any() for name, weight in one.items() if ".lora_A." in name)


@pytest.mark.parametrize(
    ("modules", "freeze", "expected"),
    [
        (["q_proj", "v_proj"], False, {"q_proj", "v_proj"}),
        (["qkv", "o_proj"], False, {"qkv", "o_proj"}),
        (["o_proj"], True, {"o_proj"}),
    ],
)
def test_adapters_go_into_the_layers_that_are_named(
    mini_model: MiniModel, modules: list[str], freeze: bool, expected: set[str]
) -> None:
    model = load_model(str(mini_model.path))[0]
    config = choose_weights(model, sft(lora={**LORA, "modules": modules}, freeze_vision=freeze))
    assert config is not None
    model = get_peft_model(model, config)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert {name.partition(".lora_")[0].rpartition(".")[2] for name in trained} == expected


@pytest.mark.parametrize("unknown", ["q_prj", "lm_head", "embed_tokens", "norm", "visual", "qkv"])
def test_a_layer_that_cannot_have_an_adapter_is_told(mini_model: MiniModel, unknown: str) -> None:
    model, freeze = load_model(str(mini_model.path))[0], unknown == "qkv"  # of the vision tower
    with pytest.raises(ConfigurationError) as error:
        choose_weights(
            model, sft(lora={**LORA, "modules": ["q_proj", unknown]}, freeze_vision=freeze)
        )
    assert f"lora.modules: {unknown!r}" in error.value.message
    assert "q_proj" in error.value.message.partition("Allowed: ")[2]


# --- A frozen vision tower


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_vision_tower_of_every_family_is_found(family: str) -> None:
    model = families.build(family)
    assert choose_weights(model, sft(freeze_vision=True)) is None
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    tower = "vision_model." if family == "smolvlm" else "visual."
    assert frozen == {name for name, _ in model.named_parameters() if f".{tower}" in name}
    assert frozen

    model = families.build(family)
    everywhere, text = (
        choose_weights(model, sft(lora=LORA, freeze_vision=freeze)) for freeze in (False, True)
    )
    for config, expected in ((everywhere, True), (text, False)):
        assert config is not None
        names = [name for name, _ in get_peft_model(families.build(family), config).named_modules()]
        assert any("lora_A" in name for name in names)
        assert any("lora_A" in name and f".{tower}" in name for name in names) == expected


def test_a_model_without_a_vision_tower_is_told() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1))
    with pytest.raises(ConfigurationError, match="freeze_vision: the vision tower of Sequential"):
        choose_weights(model, sft(freeze_vision=True))


@pytest.mark.parametrize(("method", "checkpointing"), [("sft", False), ("rl", True)])
def test_a_frozen_vision_tower_keeps_its_bits(
    bench: Bench, method: str, checkpointing: bool
) -> None:
    run = bench.run(
        METHODS[method](updates=1, freeze_vision=True),
        compute={"gradient_checkpointing": checkpointing},
    )
    text = {name for name in run.weights[0] if ".visual." not in name}
    assert changed(run) == text
    assert len(text) < len(run.weights[0])


# --- Precision


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trainers that are built."""
    built: list[Any] = []
    for module in (sft_training, rl_training):
        build = module.build_trainer

        def watch(*args: Any, build: Any = build) -> Any:
            built.append(build(*args))
            return built[-1]

        monkeypatch.setattr(module, "build_trainer", watch)
    return built


@pytest.mark.parametrize(
    ("changes", "trained"),
    [({}, ""), ({"freeze_vision": True}, ".language_model."), ({"lora": LORA}, ".lora_")],
    ids=["all", "frozen", "lora"],
)
def test_what_is_trained_is_float32_and_all_else_bfloat16(
    bench: Bench, trainers: list[Any], tmp_path: Path, changes: dict[str, Any], trained: str
) -> None:
    run = bench.run(rl(updates=2, **changes), **BFLOAT16)
    for name, weight in run.weights[2].items():
        assert weight.dtype == (torch.float32 if trained in name else torch.bfloat16), name
    assert changed(run) == {name for name in run.weights[0] if trained in name}
    (trainer,) = trainers
    if "lora" not in changes:
        assert {weight.dtype for weight in trainer.ref_model.parameters()} == {torch.bfloat16}
    assert abs(run.curve[0]["train/kl"]) < 0.01
    assert run.curve[0]["train/shared_prompts"] == 1

    folder = tmp_path / "saved"
    save_model(run.model, run.processor, folder, torch.bfloat16)
    saved, base = files_of(folder), files_of(bench.model_path)
    assert {weight.dtype for weight in saved.values()} == {torch.bfloat16}
    assert saved.keys() == base.keys(), "tied weights are saved once"
    config = json.loads((folder / "config.json").read_text())
    parts = (config, config["text_config"], config["vision_config"])
    assert {part.get("dtype", "bfloat16") for part in parts} == {"bfloat16"}
    assert config["dtype"] == "bfloat16"
    model, _ = load_model(str(folder), ModelSettings(**shipped("model", dtype="bfloat16")))
    assert model.lm_head.weight is model.get_input_embeddings().weight
    # Bfloat16 files hold 8 bits of each weight that was trained.
    torch.testing.assert_close(logits(model), logits(run.model), rtol=0.1, atol=0.3)
    assert {weight.dtype for weight in run.model.parameters() if weight.requires_grad} == {
        torch.float32
    }


def test_small_steps_are_not_lost(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved() -> float:
        run = bench.run(sft(updates=1, learning_rate=1.0e-6), **BFLOAT16)
        now, before = run.weights[1], run.weights[0]
        name = "model.language_model.layers.0.mlp.up_proj.weight"
        return float((now[name] != before[name]).float().mean())

    assert moved() > 0.9
    monkeypatch.setattr(training, "keep_precise", lambda model: None)
    assert moved() < 0.1


# --- Passes


def same(one: Run, other: Run) -> None:
    """Losses to rounding, and weights as near to one another as their way is long."""
    for metrics, others in zip(one.curve, other.curve, strict=True):
        for name in ("train/loss", "train/reward", "train/completion_tokens", "train/kl_weight"):
            if name in metrics:
                assert others[name] == pytest.approx(metrics[name], rel=1e-3, abs=1e-5), name
    last = max(one.weights)
    way = gap = 0.0
    for name, weight in one.weights[last].items():
        way += float((weight - one.weights[0][name]).square().sum())
        gap += float((weight - other.weights[last][name]).square().sum())
    assert gap < 0.05**2 * way


@pytest.mark.parametrize(("method", "rows"), [("sft", 1), ("rl", 2)])
def test_several_passes_make_the_same_update(bench: Bench, method: str, rows: int) -> None:
    whole = bench.run(METHODS[method]())
    parts = bench.run(METHODS[method](), compute={"micro_batch_size": rows})
    same(whole, parts)
    assert parts.trained.updates == whole.trained.updates == 3
    assert parts.trained.completion_tokens == whole.trained.completion_tokens


def test_rows_that_do_not_go_into_passes_are_refused(bench: Bench) -> None:
    for compute in ({"micro_batch_size": 3}, {"num_processes": 3}):
        with pytest.raises(ValueError, match=rf"compute\.{next(iter(compute))} = 3"):
            bench.run(sft(), compute=compute)


@pytest.mark.parametrize(("lora", "share"), [(None, False), (LORA, True)], ids=["whole", "lora"])
def test_activations_computed_again_change_nothing_but_the_memory(
    bench: Bench, splits: Splits, lora: dict[str, Any] | None, share: bool
) -> None:
    runs, steps = [], []
    for checkpointing in (False, True):
        widths: list[int] = []
        written: list[str] = []

        def watch(
            update: int,
            model: Any,
            processor: Any,
            widths: list[int] = widths,
            written: list[str] = written,
        ) -> None:
            if not update:
                model.get_input_embeddings().register_forward_hook(
                    lambda _, inputs, __: widths.append(inputs[0].shape[-1])
                )
            written.extend(texts(model, processor, splits["counting"]["test"]))

        compute = {"gradient_checkpointing": checkpointing, "share_prompts": share}
        runs.append(bench.run(rl(updates=2, lora=lora), watch, compute=compute))
        steps.append((written, widths))
    assert [run.model.is_gradient_checkpointing for run in runs] == [False, True]
    same(*runs)
    assert steps[0] == steps[1]
    assert steps[0][1].count(1) > 30, "a token at a time: the cache is in use"


# --- Names of other libraries


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_transformers_knows_the_optimizers(bench: Bench, name: str) -> None:
    config = sft_training.SFTConfig(**trainer_settings(bench.job(sft(optimizer=name))))
    assert config.optim == OPTIMIZERS[name]
    assert ("8bit" in config.optim, "paged" in config.optim) == ("8bit" in name, "paged" in name)


@pytest.mark.parametrize(
    ("vllm", "expected"),
    [
        (
            {"mode": "colocate", "gpu_memory": 0.4},
            {"use_vllm": True, "vllm_mode": "colocate", "vllm_gpu_memory_utilization": 0.4},
        ),
        (
            {"mode": "server", "host": "there", "port": 8123},
            {
                "use_vllm": True,
                "vllm_mode": "server",
                "vllm_server_host": "there",
                "vllm_server_port": 8123,
            },
        ),
        (None, {"use_vllm": False}),
    ],
)
def test_vllm_is_asked_for_under_trls_names(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    vllm: dict[str, Any] | None,
    expected: dict[str, Any],
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(
        rl_training, "GuardedGRPOTrainer", lambda **named: asked.append(vars(named["args"]))
    )
    job = bench.job(rl(), compute={"vllm": vllm})
    rl_training.build_trainer(None, None, None, job, None, lambda *_: None, [])  # type: ignore[arg-type]
    assert expected.items() <= asked[0].items()


def test_every_setting_reaches_trl(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under TRL's names, each with a value that is not TRL's own."""
    asked: list[dict[str, Any]] = []
    same: dict[str, Any] = {
        "temperature": 0.7,
        "loss_type": "dr_grpo",
        "scale_rewards": "batch",
        "epsilon": 0.1,
        "epsilon_high": 0.3,
        "importance_sampling_level": "sequence",
        "max_grad_norm": 0.5,
        "weight_decay": 0.25,
    }
    rewards = {"accuracy": 0.75, "format": 0.25, "answer": "any"}
    method = rl(**same, unbiased_kl=False, lr_schedule="linear", rewards=rewards)
    monkeypatch.setattr(rl_training, "GuardedGRPOTrainer", lambda **named: asked.append(named))
    job = replace(bench.job(method), answers=Text(kind="text"))
    rl_training.build_trainer(None, None, None, job, None, lambda *_: None, [])  # type: ignore[arg-type]
    settings, (accuracy, _) = vars(asked[0]["args"]), asked[0]["reward_funcs"]
    assert {name: settings[name] for name in same} == same
    assert settings["lr_scheduler_type"] == "linear"
    assert settings["reward_weights"] == [0.75, 0.25]
    assert accuracy.__name__ == "accuracy_any_reward"
    assert accuracy([[{"content": "<answer>The Cat.</answer>"}]], ["cat"]) == [1.0]
