"""Sharing prompts trains as stock TRL does: the same tokens, losses, gradients and weights."""

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from othink_pipeline.models.load import load_model
from othink_pipeline.models.prompts import CannotShareError, Prompt
from othink_pipeline.scoring.strict import Verdict
from othink_pipeline.training import shared_prompts, sharing_check
from othink_pipeline.training.rewards import accuracy_reward, format_reward
from othink_pipeline.training.rows import rl_rows
from othink_pipeline.training.shared_prompts import SharedPromptTrainer
from tests.conftest import PROMPT, MiniModel, grpo_config, stock_rows

Splits = Mapping[str, Mapping[str, Any]]
COPIES = 4


class Gradients(TrainerCallback):
    """Keeps the gradients of every update."""

    def __init__(self) -> None:
        self.updates: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.updates.append(
            {
                name: weight.grad.clone()
                for name, weight in model.named_parameters()
                if weight.grad is not None
            }
        )


class Outcome(NamedTuple):
    logged: list[dict[str, float]]
    gradients: list[dict[str, torch.Tensor]]
    weights: dict[str, torch.Tensor]
    trainer: GRPOTrainer


def adapt(model: Any, how: str) -> Any:
    if how == "frozen":
        model.model.visual.requires_grad_(False)
    if how == "lora":
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        return get_peft_model(
            model, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"])
        )
    return model


def train(
    kind: type[GRPOTrainer],
    mini_model: MiniModel,
    examples: Any,
    settings: GRPOConfig,
    how: str = "full",
    **options: Any,
) -> Outcome:
    model, processor = load_model(str(mini_model.path))
    rows = (
        rl_rows(examples, PROMPT, processor)
        if issubclass(kind, SharedPromptTrainer)
        else stock_rows(examples)
    )
    gradients = Gradients()
    trainer = kind(
        model=adapt(model, how),
        reward_funcs=[accuracy_reward, format_reward],
        args=settings,
        train_dataset=rows,
        processing_class=processor,
        callbacks=[gradients],
        **options,
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return Outcome(logged, gradients.updates, weights, trainer)


def assert_same(ours: Outcome, stock: Outcome, of_means: float = 1e-3) -> None:
    """``of_means``: tolerance of what TRL logs as a mean of micro-batches' means."""
    assert len(ours.logged) == len(stock.logged) == 3
    for mine, theirs in zip(ours.logged, stock.logged, strict=True):
        names = {"loss", "kl", "entropy", "reward", "grad_norm", "completions/mean_length"}
        assert {"loss", "kl", "entropy", "grad_norm"} <= names & theirs.keys()
        for name in names & theirs.keys():
            rel = of_means if name in ("kl", "entropy") else 1e-3
            assert mine[name] == pytest.approx(theirs[name], rel=rel, abs=1e-6), name
    for mine, theirs in zip(ours.gradients, stock.gradients, strict=True):
        assert mine.keys() == theirs.keys()
        largest = max(float(gradient.abs().max()) for gradient in theirs.values())
        assert largest > 1e-4
        for name, gradient in theirs.items():
            torch.testing.assert_close(mine[name], gradient, rtol=1e-2, atol=1e-4 * largest)
    for name, weight in stock.weights.items():
        torch.testing.assert_close(ours.weights[name], weight, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "how"),
    [
        ({"activation_checkpointing": True}, "frozen"),
        ({"mask_truncated_completions": True}, "lora"),
        (
            {
                "num_iterations": 2,
                "scale_rewards": "none",
                "epsilon": 1e-5,
                "importance_sampling_level": "sequence",
            },
            "full",
        ),
        ({"num_iterations": 2, "epsilon": 1e-4, "epsilon_high": 0.1, "loss_type": "dapo"}, "full"),
        (
            {
                "per_device_train_batch_size": 8,
                "gradient_accumulation_steps": 3,
                "scale_rewards": "batch",
                "loss_type": "dr_grpo",
            },
            "full",
        ),
        (
            {
                "loss_type": "bnpo",
                "per_device_train_batch_size": 10,
                "gradient_accumulation_steps": 2,
            },
            "full",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_it_trains_as_stock_trl_does(
    mini_model: MiniModel, splits: Splits, tmp_path: Path, changes: dict[str, Any], how: str
) -> None:
    examples = splits["counting"]["train"]
    settings = grpo_config(tmp_path, **changes)
    ours = train(SharedPromptTrainer, mini_model, examples, settings, how)
    stock = train(GRPOTrainer, mini_model, examples, settings, how)
    # Other micro-batches, other means of them, but one update.
    assert_same(ours, stock, 5e-2 if "gradient_accumulation_steps" in changes else 1e-3)
    assert [entry["shared_prompts"] for entry in ours.logged] == [1.0] * 3


@pytest.fixture(scope="module")
def plain(
    mini_model: MiniModel, splits: Splits, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, Outcome]:
    """A training with all settings as they are: ours, and stock TRL's."""
    settings = grpo_config(tmp_path_factory.mktemp("plain"))
    ours, stock = (
        train(kind, mini_model, splits["counting"]["train"], settings)
        for kind in (SharedPromptTrainer, GRPOTrainer)
    )
    return ours, stock


def test_nothing_asked_for_it_trains_as_stock_trl_does(plain: tuple[Outcome, Outcome]) -> None:
    ours, stock = plain
    assert_same(ours, stock)
    assert [entry["shared_prompts"] for entry in ours.logged] == [1.0] * 3


def test_sharing_can_be_turned_off(
    plain: tuple[Outcome, Outcome],
    mini_model: MiniModel,
    splits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = splits["counting"]["train"]
    monkeypatch.setattr(shared_prompts, "pack", None)
    monkeypatch.setattr(shared_prompts, "sample", None)
    settings = grpo_config(tmp_path)
    apart = train(SharedPromptTrainer, mini_model, examples, settings, share_prompts=False)
    assert_same(apart, plain[1])
    assert [entry["shared_prompts"] for entry in apart.logged] == [0.0] * 3


@pytest.mark.parametrize("wrong", ["pack", "sample"])
def test_a_model_that_it_is_wrong_for_is_trained_as_stock_trl_does_and_loudly(
    plain: tuple[Outcome, Outcome],
    mini_model: MiniModel,
    splits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wrong: str,
) -> None:
    """Positions that are off by one at each token, as in a family that counts otherwise."""
    right = shared_prompts.pack if wrong == "pack" else None
    module = "othink_pipeline.training.packing" if right else "othink_pipeline.models.sampling"
    from othink_pipeline.models.prompts import positions

    monkeypatch.setattr(f"{module}.positions", lambda *inputs: 2 * positions(*inputs))
    examples = splits["counting"]["train"]
    settings = grpo_config(tmp_path)
    with caplog.at_level(logging.WARNING, "othink_pipeline.training.shared_prompts"):
        ours = train(SharedPromptTrainer, mini_model, examples, settings)
    assert "Qwen2VLForConditionalGeneration: prompts cannot be shared: its log-prob" in caplog.text
    assert "share_prompts: false" in caplog.text
    assert [entry["shared_prompts"] for entry in ours.logged] == [0.0] * 3
    assert_same(ours, plain[1])


def checked_trainer(sharded: bool) -> Any:
    """What the check sees of a trainer; two more processes have 2 and 6 rows."""
    model = SimpleNamespace(training=True, eval=lambda: None, train=lambda _: None)
    others = torch.tensor([2, 6])
    gather = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda own: torch.cat([own, others])
    )
    return SimpleNamespace(model=model, accelerator=gather, sharded=sharded)


def test_a_model_that_cannot_share_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise CannotShareError("attention must be one of 'sdpa', 'eager', not 'flex_attention'")

    monkeypatch.setattr(sharing_check, "_difference", refuse)
    prompts: Any = ["a"]
    fault = sharing_check.find_fault(checked_trainer(sharded=False), prompts)
    assert fault == "attention must be one of 'sdpa', 'eager', not 'flex_attention'"


@pytest.mark.parametrize(
    ("fsdp", "zero_stage", "sharded"),
    [(False, None, False), (False, 2, False), (False, 3, True), (True, None, True)],
)
def test_where_processes_hold_whole_weights_each_generates_at_its_own_pace(
    fsdp: bool, zero_stage: int | None, sharded: bool
) -> None:
    plugin = zero_stage and SimpleNamespace(zero_stage=zero_stage)
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))
    trainer: Any = SimpleNamespace(is_fsdp_enabled=fsdp, accelerator=accelerator)
    assert SharedPromptTrainer.sharded.fget(trainer) is sharded  # type: ignore[attr-defined]


def test_with_sharded_weights_all_processes_check_as_many_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else one of them waits for ever for forward passes that the others do not make."""
    checked: list[Any] = []

    def difference(_: Any, rows: Any) -> tuple[float, float]:
        checked.extend(rows)
        return 0.0, 0.0

    monkeypatch.setattr(sharing_check, "_difference", difference)
    prompts: Any = ["a", "a", "b"]
    assert sharing_check.find_fault(checked_trainer(sharded=True), prompts) is None
    assert checked == ["a", "a", "b", "b", "a", "a"]


def test_an_update_without_a_signal_changes_nothing(
    mini_model: MiniModel, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No advantage, and the policy still the reference: rounding must not become a gradient."""
    monkeypatch.setattr(
        "othink_pipeline.training.rewards.score", lambda *_: Verdict(None, *[False] * 5)
    )
    examples = splits["counting"]["train"]
    settings = grpo_config(tmp_path, per_device_train_batch_size=10, gradient_accumulation_steps=2)
    ours = train(SharedPromptTrainer, mini_model, examples, settings)
    assert [entry["reward"] for entry in ours.logged] == [0.0] * 3
    for gradients in ours.gradients:
        assert not any(gradient.any() for gradient in gradients.values())
    before = load_model(str(mini_model.path))[0].state_dict()
    assert all(torch.equal(ours.weights[name], weight) for name, weight in before.items())


def test_micro_batches_hold_whole_groups(
    mini_model: MiniModel, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    stock = SharedPromptTrainer._compute_loss

    def watch(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        assert all(isinstance(prompt, Prompt) for prompt in inputs["encoded"])
        seen.append(len(set(inputs["encoded"])))
        return stock(self, model, inputs)

    monkeypatch.setattr(SharedPromptTrainer, "_compute_loss", watch)
    settings = grpo_config(
        tmp_path, per_device_train_batch_size=COPIES, gradient_accumulation_steps=3, max_steps=2
    )
    train(SharedPromptTrainer, mini_model, splits["counting"]["train"], settings)
    assert seen == [1] * 6


def test_what_repeats_in_a_batch_is_processed_once(
    mini_model: MiniModel, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, processor = load_model(str(mini_model.path))
    images: list[int] = []
    stock = type(processor.image_processor).__call__

    def watch(self: Any, pictures: Any, *args: Any, **kwargs: Any) -> Any:
        images.append(len(pictures))
        return stock(self, pictures, *args, **kwargs)

    monkeypatch.setattr(type(processor.image_processor), "__call__", watch)
    examples = splits["counting"]["train"]
    table = rl_rows(examples, PROMPT, processor)
    rows = table.__getitems__([0, 0, 0, 5, 5, 0])
    assert images == [2]
    again = table.__getitems__([5, 7])
    assert images == [2, 1]  # what the batch before held is not made anew
    assert again[0]["encoded"] is rows[3]["encoded"]
    assert rows[0]["encoded"] is rows[1]["encoded"] is rows[5]["encoded"]
    assert rows[3]["encoded"] is rows[4]["encoded"] is not rows[0]["encoded"]
    assert [row["answer"] for row in rows] == [examples["answer"][i] for i in (0, 0, 0, 5, 5, 0)]
