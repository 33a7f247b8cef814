"""One budget, a loss on completions alone, and the KL weight that was asked for."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
import torch
from trl import GRPOTrainer, SFTTrainer

from othink_pipeline.evaluation.predictions import predict
from othink_pipeline.models.generation import Decoding
from othink_pipeline.models.load import load_model
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.models.prompts import render_prompt, user_message
from othink_pipeline.scoring.kinds import EXACT, Choice
from othink_pipeline.training import rl, sft
from othink_pipeline.training.kl import Constant, KLSchedule, Linear
from othink_pipeline.training.loop import Job, Trained, Watcher, train
from othink_pipeline.training.parameters import RL, SFT
from othink_pipeline.training.rewards import ACCURACY_REWARDS, accuracy_reward, format_reward
from othink_pipeline.training.rows import prompt_order, rl_rows, sft_rows
from tests.conftest import PROMPT, MiniModel, grpo_config, shipped, shipped_health, stock_rows
from tests.support.methods import small_rl, small_sft

Splits = Mapping[str, Mapping[str, Any]]
Checkpoint = Callable[[int, Any, Any], dict[str, float]]

UPDATES, PROMPTS, COPIES = 3, 5, 4
BUDGET = {
    "updates": UPDATES,
    "prompts_per_update": PROMPTS,  # 3 x 5: more than one pass over the 12 examples
}
LINEAR = Linear(schedule="linear", start=0.1, end=0.7)
CONSTANT = Constant(schedule="constant", weight=0.5)
COMPUTE = Compute(**shipped("compute", resume_every_updates=2))
HEALTH = shipped_health()


def rl_parameters(kl: KLSchedule, **changes: Any) -> RL:
    return small_rl(**{**BUDGET, "max_completion_tokens": 10, "kl": kl, **changes})


def sft_parameters(target: str = "answer", **changes: Any) -> SFT:
    return small_sft(**{**BUDGET, "target": target, **changes})


def job_of(mini_model: MiniModel, examples: Any, parameters: SFT | RL, folder: Path) -> Job:
    return Job(
        name="a cell",
        model_path=str(mini_model.path),
        model=ModelSettings(**shipped("model")),
        examples=examples,
        prompt=PROMPT,
        parameters=parameters,
        compute=COMPUTE,
        health=HEALTH,
        seed=3,
        folder=folder,
    )


class Run(NamedTuple):
    trained: Trained
    history: list[tuple[int, dict[str, float]]]
    checkpoints: list[int]
    weights: dict[str, torch.Tensor]

    def curve(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.history]


def run_cell(
    mini_model: MiniModel,
    examples: Any,
    parameters: SFT | RL,
    folder: Path,
    at_checkpoint: Any = lambda *_: {},
) -> Run:
    """Train a cell; keep what it logs, when it takes checkpoints, and its last weights."""
    history: list[tuple[int, dict[str, float]]] = []
    checkpoints: list[int] = []
    weights: dict[str, torch.Tensor] = {}

    def checkpoint(update: int, model: Any, processor: Any, state: Any) -> dict[str, float]:
        checkpoints.append(update)
        weights.update({name: value.clone() for name, value in model.state_dict().items()})
        return at_checkpoint(update, model, processor)

    job = job_of(mini_model, examples, parameters, folder)
    trained = train(
        rl if isinstance(parameters, RL) else sft,
        job,
        lambda update, metrics: history.append((update, metrics)),
        checkpoint,
        lambda *_: None,
    )
    return Run(trained, history, checkpoints, weights)


class Watched(NamedTuple):
    """A run of GRPO-D, and what TRL handed to the rewards and computed in each loss."""

    run: Run
    prompts: list[list[str]]
    completion_tokens: list[int]
    losses: list[tuple[float, float, float]]
    """For each update: the loss; the loss without advantages; that loss with a KL weight of 1."""


@pytest.fixture(scope="module")
def watched(
    mini_model: MiniModel, splits: Splits, tmp_path_factory: pytest.TempPathFactory
) -> Watched:
    prompts: list[list[str]] = []
    tokens: list[int] = []
    losses: list[tuple[float, float, float]] = []
    stock = GRPOTrainer._compute_loss

    def watch_reward(completions: Any, answer: Any, **columns: Any) -> list[float]:
        prompts.append([prompt[-1]["content"] for prompt in columns["prompts"]])
        tokens.append(sum(len(ids) for ids in columns["completion_ids"]))
        return accuracy_reward(completions, answer)

    def watch_loss(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        loss = stock(self, model, inputs)
        level = {**inputs, "advantages": torch.zeros_like(inputs["advantages"])}
        weight = self.beta
        with torch.no_grad():
            applied = stock(self, model, level)
            self.beta = 1.0
            unit = stock(self, model, level)
            self.beta = weight
        losses.append((loss.item(), applied.item(), unit.item()))
        return loss

    watch_reward.__name__ = "accuracy_reward"  # TRL logs it under its name
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ACCURACY_REWARDS, "tagged", watch_reward)
        patch.setattr(GRPOTrainer, "_compute_loss", watch_loss)
        run = run_cell(
            mini_model,
            splits["counting"]["train"],
            rl_parameters(LINEAR),
            tmp_path_factory.mktemp("watched"),
        )
    return Watched(run, prompts, tokens, losses)


def test_each_pass_over_the_split_shows_every_example_once() -> None:
    order = prompt_order(10, 25, seed=0)
    assert len(order) == 25
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert len(set(order[20:])) == 5
    assert order[:10] != order[10:20]  # shuffled anew
    assert order[:10] != list(range(10))


def test_the_seed_alone_decides_the_order() -> None:
    assert prompt_order(10, 25, seed=1) == prompt_order(10, 25, seed=1)
    assert prompt_order(10, 25, seed=1) != prompt_order(10, 25, seed=2)
    assert prompt_order(10, 25, seed=1)[:12] == prompt_order(10, 12, seed=1)
    assert prompt_order(10, 25, seed=1) == _order_by_hand(10, 25, seed=1)


def _order_by_hand(examples: int, prompts: int, seed: int) -> list[int]:
    rng = Random(seed)
    passes = [rng.sample(range(examples), examples) for _ in range(prompts // examples + 1)]
    return [row for one_pass in passes for row in one_pass][:prompts]


def test_every_method_sees_the_same_prompts_in_the_same_order(
    mini_model: MiniModel, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[str]] = {}

    class SeenEnoughError(Exception):
        """The rows are all that is asked."""

    def watch(name: str) -> Callable[..., None]:
        def watching(model: Any, processor: Any, rows: Any, *_: Any) -> None:
            seen[name] = [row["prompt"][0]["content"] for row in rows]
            raise SeenEnoughError

        return watching

    monkeypatch.setattr(sft, "build_trainer", watch("sft"))
    monkeypatch.setattr(rl, "build_trainer", watch("rl"))
    examples = splits["geometry"]["train"]
    order = prompt_order(12, UPDATES * PROMPTS, seed=3)
    asked = [user_message(PROMPT, examples["question"][row]) for row in order]
    for parameters in (sft_parameters(), rl_parameters(CONSTANT)):
        with pytest.raises(SeenEnoughError):
            run_cell(mini_model, examples, parameters, tmp_path / parameters.algorithm)
    assert seen == {"sft": asked, "rl": asked}


def test_grpo_takes_the_prompts_in_their_order_so_many_at_a_time(
    watched: Watched, splits: Splits
) -> None:
    examples = splits["counting"]["train"]
    order = prompt_order(12, UPDATES * PROMPTS, seed=3)
    asked = [user_message(PROMPT, examples["question"][row]) for row in order]
    expected = [
        [text for text in asked[start : start + PROMPTS] for _ in range(COPIES)]
        for start in range(0, len(asked), PROMPTS)
    ]
    assert watched.prompts == expected


@pytest.mark.parametrize("target", ["answer", "steps"])
def test_sft_rows_hold_the_prompt_the_picture_and_the_target(splits: Splits, target: str) -> None:
    examples = splits["counting"]["train"]
    rows = sft_rows(examples, PROMPT, sft_parameters(target), EXACT)
    assert sorted(rows.column_names) == ["completion", "image", "prompt"]
    for row, example in zip(rows, examples, strict=True):
        answer, steps = example["answer"], example["steps"]
        written = {
            "answer": f"<answer> {answer} </answer>",
            "steps": f"<think>{steps}</think><answer>{answer}</answer>",
        }[target]
        assert row["completion"] == [{"role": "assistant", "content": written}]
        assert row["prompt"] == [
            {"role": "user", "content": user_message(PROMPT, example["question"])}
        ]
        assert row["image"].tobytes() == example["image"].tobytes()


def test_sft_learns_an_answer_of_its_kind(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    rows = splits["counting"]["test"]
    rows = rows.remove_columns("answer").add_column("answer", ["B. 30°"] * len(rows))
    job = replace(
        job_of(mini_model, rows, sft_parameters(), tmp_path), answers=Choice(kind="choice")
    )
    taught = sft.make_rows(rows, job, None)[0]["completion"][0]["content"]
    assert taught == "<answer> B </answer>"


def test_rl_rows_hold_no_answer_but_for_the_rewards(
    loaded: tuple[Any, Any], splits: Splits
) -> None:
    _, processor = loaded
    examples = splits["geometry"]["train"]
    rows = rl_rows(examples, PROMPT, processor)
    for row, example in zip(rows, examples, strict=True):
        assert sorted(row) == ["answer", "encoded", "prompt"]
        assert row["answer"] == example["answer"]
        asked = user_message(PROMPT, example["question"])
        assert row["prompt"] == [{"role": "user", "content": asked}]
        shown = render_prompt(processor, PROMPT, example["question"])
        alone = processor(images=[example["image"]], text=[shown], return_tensors="pt")
        assert torch.equal(row["encoded"].ids, alone["input_ids"][0])
        assert torch.equal(row["encoded"].image_fields["pixel_values"], alone["pixel_values"])


@pytest.mark.parametrize("target", ["answer", "steps"])
def test_the_sft_loss_is_taken_over_the_whole_completion_and_nothing_else(
    mini_model: MiniModel,
    loaded: tuple[Any, Any],
    splits: Splits,
    tmp_path: Path,
    target: str,
) -> None:
    model, processor = loaded
    tokenizer = processor.tokenizer
    # A prompt far longer than TRL's default limit of 1024 tokens, which cuts from the end.
    prompt = "{question} " + "Think. " * 600
    examples, parameters = splits["geometry"]["train"], sft_parameters(target)
    rows = sft_rows(examples, prompt, parameters, EXACT)
    job = job_of(mini_model, examples, parameters, tmp_path)
    trainer = sft.build_trainer(model, processor, rows, job, None, lambda *_: None, [])
    number = 0
    for batch in trainer.get_train_dataloader():
        assert batch["input_ids"].shape[1] > 1024
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            labelled = labels != -100  # True: in the loss
            # The chat template's line feed after the end of the turn is in the loss too.
            completion = rows[number]["completion"][0]["content"] + "<|im_end|>\n"
            assert tokenizer.decode(ids[labelled]) == completion
            assert torch.equal(ids[labelled], labels[labelled])
            text = tokenizer.decode(ids)
            assert rows[number]["prompt"][0]["content"] in text
            assert text.count("<|image_pad|>") == 16
            number += 1
    assert number == len(rows)


def test_sft_counts_the_tokens_that_its_loss_was_taken_over(
    mini_model: MiniModel, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []
    stock = SFTTrainer.compute_loss

    def watch(self: Any, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        counted.append(int((inputs["labels"] != -100).sum()))
        return stock(self, model, inputs, *arguments, **options)

    monkeypatch.setattr(SFTTrainer, "compute_loss", watch)
    run = run_cell(mini_model, splits["counting"]["train"], sft_parameters("steps"), tmp_path)
    assert len(counted) == UPDATES
    assert run.trained.completion_tokens == sum(counted)


def test_a_constant_weight_trains_as_stock_trl_does(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    examples = splits["counting"]["train"]
    ours = run_cell(mini_model, examples, rl_parameters(CONSTANT), tmp_path)

    model, processor = load_model(str(mini_model.path))
    on_gpu = torch.cuda.is_available()
    changes = {"beta": 0.5, "temperature": 1.0, "bf16": on_gpu, "use_cpu": not on_gpu}
    stream = examples.select(prompt_order(12, UPDATES * PROMPTS, seed=3))
    stock = GRPOTrainer(
        model=model,
        reward_funcs=[accuracy_reward, format_reward],
        args=grpo_config(tmp_path, **changes),
        train_dataset=stock_rows(stream),
        processing_class=processor,
    )
    stock.train()
    logged = [entry for entry in stock.state.log_history if "loss" in entry]
    for name in ("loss", "kl", "entropy", "reward", "grad_norm"):
        expected = [entry[name] for entry in logged]
        assert ours.curve(f"train/{name}") == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert ours.curve("train/loss")[-1] > 1e-4  # the KL term is at work
    for name, weight in stock.model.state_dict().items():
        # Adam turns rounding of a gradient near zero into a fraction of its step of 5e-3.
        torch.testing.assert_close(ours.weights[name], weight, rtol=1e-3, atol=2e-4)


def test_the_linear_weight_is_applied_and_logged_at_every_update(watched: Watched) -> None:
    by_hand = [0.1, 0.4, 0.7]
    assert [update for update, _ in watched.run.history] == [1, 2, 3]
    assert watched.run.curve("train/kl_weight") == pytest.approx(by_hand)
    for weight, (loss, applied, unit) in zip(by_hand, watched.losses, strict=True):
        assert applied == pytest.approx(weight * unit, rel=1e-5)
        # Advantages of a group add up to nothing, so that the KL term is all of the loss.
        assert loss == pytest.approx(weight * unit, rel=1e-4, abs=1e-6)
    first, *later = [unit for _, _, unit in watched.losses]
    assert first == pytest.approx(0, abs=1e-6)  # nothing has moved yet
    assert min(later) > 1e-3
    assert [loss for loss, _, _ in watched.losses] == pytest.approx(
        watched.run.curve("train/loss"), abs=1e-6
    )


def test_training_changes_the_weights_and_says_by_how_much(
    watched: Watched, mini_model: MiniModel
) -> None:
    before = dict(load_model(str(mini_model.path))[0].named_parameters())
    changed = sum(
        ((watched.run.weights[name] - weight) ** 2).sum().item() for name, weight in before.items()
    )
    total = sum((weight**2).sum().item() for weight in before.values())
    assert watched.run.trained.weights_changed == pytest.approx((changed / total) ** 0.5, rel=1e-4)
    assert watched.run.trained.weights_changed > 1e-3


def test_grpo_counts_the_tokens_of_all_completions(watched: Watched) -> None:
    assert watched.run.trained.completion_tokens == sum(watched.completion_tokens)
    per_update = [
        round(mean * PROMPTS * COPIES) for mean in watched.run.curve("train/completion_tokens")
    ]
    assert per_update == watched.completion_tokens


def test_every_update_logs_its_curves(watched: Watched) -> None:
    names = ["kl", "kl_weight", "reward", "accuracy_reward", "format_reward", "entropy", "loss"]
    names += ["clipped_ratio_rate"]
    for _, metrics in watched.run.history:
        assert {f"train/{name}" for name in names} <= set(metrics)
        assert metrics["train/reward"] == pytest.approx(
            metrics["train/accuracy_reward"] + metrics["train/format_reward"]
        )
    assert watched.run.checkpoints == [0, 2, 3]  # 0: the base model


def test_what_a_training_counts_goes_on_where_it_was_left() -> None:
    one, other = (
        Watcher("a cell", sft_parameters(), None, lambda *_: None, lambda *_: {}) for _ in range(2)
    )
    one.seconds, one.completion_tokens, one.mean_tokens = 5.0, 30.0, 7.0
    other.restore(json.loads(json.dumps(one.state())))
    assert (other.seconds, other.completion_tokens, other.mean_tokens) == (5.0, 30.0, 7.0)


def test_the_only_update_has_a_checkpoint_before_and_after_it(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    parameters = sft_parameters(updates=1, prompts_per_update=2)
    run = run_cell(mini_model, splits["counting"]["train"], parameters, tmp_path)
    assert run.checkpoints == [0, 1]


def test_scoring_a_checkpoint_changes_nothing_in_the_training(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    examples = splits["geometry"]["train"]

    def score(update: int, model: Any, processor: Any) -> dict[str, float]:
        torch.rand(7)  # whatever scoring may draw
        predict(model, processor, examples, PROMPT, Decoding(8, 6), EXACT)
        assert model.training or update == 0
        return {"geometry": 0.5}

    often = rl_parameters(LINEAR, checkpoint_every_updates=1)
    scored = run_cell(mini_model, examples, often, tmp_path / "scored", score)
    plain = run_cell(mini_model, examples, rl_parameters(LINEAR), tmp_path / "plain")
    assert scored.checkpoints == [0, 1, 2, 3]
    for name in ("loss", "reward", "entropy"):
        assert scored.curve(f"train/{name}") == plain.curve(f"train/{name}")
    assert all(torch.equal(scored.weights[name], plain.weights[name]) for name in plain.weights)


def test_the_gradient_of_the_kl_is_grpos_own_or_the_unbiased_one_as_k2s_is(
    mini_model: MiniModel, splits: Any, tmp_path: Path
) -> None:
    """Policy and reference agree at first: no gradient; later the two are not one."""
    strong = Constant(schedule="constant", weight=2.0)
    norms = {}
    for kind in ((True, "k3"), (False, "k3"), (False, "k2")):
        changes = dict(zip(("unbiased_kl", "kl_estimator"), kind, strict=True))
        parameters = rl_parameters(strong, updates=2, **changes)
        examples, folder = splits["counting"]["train"], tmp_path / str(len(norms))
        norms[kind] = run_cell(mini_model, examples, parameters, folder).curve("train/grad_norm")
    unbiased, own, of_k2 = norms.values()
    assert unbiased[0] == pytest.approx(own[0], rel=1e-5)
    assert unbiased[1] != pytest.approx(own[1], rel=1e-4)
    assert of_k2 == pytest.approx(unbiased, rel=1e-4)


def test_a_constant_learning_rate_warms_up(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    parameters = sft_parameters(warmup_ratio=0.67)
    run = run_cell(mini_model, splits["counting"]["train"], parameters, tmp_path)
    assert run.curve("train/learning_rate") == pytest.approx([0.0, 2.5e-3, 5e-3])


def test_completions_may_be_learnt_from_more_than_once_and_otherwise(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    examples = splits["counting"]["train"]
    once = rl_parameters(LINEAR, updates=2)
    other = {"epsilon": 1e-4, "epsilon_high": 0.3, "loss_type": "dapo", "scale_rewards": "none"}
    other |= {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 1.0}
    twice = rl_parameters(LINEAR, updates=4, num_iterations=2, **other)
    few = run_cell(mini_model, examples, once, tmp_path / "once")
    many = run_cell(mini_model, examples, twice, tmp_path / "twice")
    assert (few.trained.prompts, many.trained.prompts) == (2 * PROMPTS, 2 * PROMPTS)
    assert (few.trained.updates, many.trained.updates) == (2, 4)
    sampled = [metrics.get("train/completion_tokens", 0.0) for _, metrics in many.history]
    assert many.trained.completion_tokens == round(2 * sum(sampled) * PROMPTS * COPIES)
    assert many.curve("train/kl_weight") == pytest.approx([0.1, 0.3, 0.5, 0.7])
    # After two updates the reference is the policy again.
    kls = many.curve("train/kl")
    assert max(kls[0], kls[2]) < 1e-6 < 1e-4 < min(kls[1], kls[3])
    # A ratio of a policy to itself is 1; to the one that sampled it is past a narrow bound.
    first, second, *_ = many.curve("train/clipped_ratio_rate")
    assert first == 0 < second < 1
    # The first completions are the same, what is learnt from them is not.
    assert many.history[0][1]["train/reward"] == few.history[0][1]["train/reward"]
    assert many.history[0][1]["train/loss"] != few.history[0][1]["train/loss"]
