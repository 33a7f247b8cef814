"""Faults put into real trainings: found in their update, named once, and acted on as was asked.

Run as a script this file is one process of a distributed training: see the last test.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import pytest
import torch
from transformers import TrainerCallback
from trl import SFTConfig, SFTTrainer

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.models.load import load_model
from othink_pipeline.scoring.kinds import EXACT
from othink_pipeline.training.dynamic_kl import DynamicKLTrainer
from othink_pipeline.training.guard import MAX_KL_EXPONENT, Guarded
from othink_pipeline.training.guard_rl import GuardedRL
from othink_pipeline.training.health import Monitor, TrainingFault
from othink_pipeline.training.kl import Linear
from othink_pipeline.training.parameters import SFT, Health
from othink_pipeline.training.rows import rl_rows, sft_rows
from tests.conftest import PROMPT, MiniModel, grpo_config
from tests.support.commands import run_two_processes
from tests.support.rewards import reward

Splits = Mapping[str, Mapping[str, Any]]
Weights = dict[str, torch.Tensor]

COPIES, UPDATES, FAULTY = 4, 3, 2
"""The fault is in the second of three updates: there is something to lose, and to go on with."""
POLICIES = ("stop", "skip_batch", "go_on")
FAULTS = (
    "loss_not_finite",
    "gradient_not_finite",
    "kl_overflow",
    "reward_failed",
    "reward_timeout",
    "no_advantage",
    "endless_completions",
    "format_collapse",
)


def health(**changes: Any) -> Health:
    blocks: dict[str, Any] = {
        "reward_timeout_s": 60,
        "patience_updates": 20,
        "endless_share": 0.9,
        "format_learnt": 0.8,
        "format_lost": 0.4,
        "completions_every_updates": 0,
    }
    return Health(**{**dict.fromkeys(FAULTS, "go_on"), **blocks, **changes})


# The monitor alone.


class Told(NamedTuple):
    monitor: Monitor
    reports: list[tuple[str, int, str]]


def told(**changes: Any) -> Told:
    reports: list[tuple[str, int, str]] = []
    return Told(Monitor(health(**changes), lambda *report: reports.append(report)), reports)


def watched(monitor: Monitor, update: int, level: float, clipped: float, formatted: Any) -> bool:
    monitor.generated(level, clipped, formatted)
    return monitor.watch(update)


def test_a_fault_is_reported_at_its_first_time_and_counted() -> None:
    monitor, reports = told(reward_failed="skip_batch")
    assert not monitor.tell(3, {})
    assert not monitor.tell(3, {"kl_overflow": "exp(30)"})
    assert monitor.tell(3, {"kl_overflow": "exp(31)", "reward_failed": "it raised"})
    assert monitor.tell(9, {"reward_failed": "again"})
    assert reports == [("kl_overflow", 3, "exp(30)"), ("reward_failed", 3, "it raised")]
    assert monitor.counts == {"kl_overflow": 2, "reward_failed": 2}
    assert monitor.skipped == 2


def test_stop_says_what_and_when_and_what_may_help() -> None:
    monitor, reports = told(kl_overflow="stop", reward_failed="skip_batch")
    with pytest.raises(TrainingFault) as error:
        monitor.tell(7, {"kl_overflow": "exp(30)", "reward_failed": "it raised"})
    for part in ("update 7", "kl_overflow", "exp(30)", "learning_rate", "health.kl_overflow"):
        assert part in error.value.message
    assert [fault for fault, *_ in reports] == ["kl_overflow", "reward_failed"]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_has_a_remedy(fault: str) -> None:
    with pytest.raises(TrainingFault, match=rf"{fault}: figures. What may help: .{{10}}"):
        told(**{fault: "stop"}).monitor.tell(1, {fault: "figures"})


def test_more_skipped_updates_in_a_row_than_patience_end_the_training() -> None:
    monitor, _ = told(loss_not_finite="skip_batch", patience_updates=2)
    fault = {"loss_not_finite": "loss nan"}
    for update in (1, 2, 2, 4, 5, 5):  # two in a row twice; an update may have several faults
        assert monitor.tell(update, fault)
    with pytest.raises(TrainingFault, match="update 6: 3 updates in a row were skipped"):
        monitor.tell(6, fault)


@pytest.mark.parametrize(
    ("fault", "signs", "healthy"),
    [
        ("no_advantage", (1.0, 0.0, None), (0.99, 0.0, None)),
        ("endless_completions", (0.0, 0.9, None), (0.0, 0.89, None)),
        ("format_collapse", (0.0, 0.0, 0.39), (0.0, 0.0, 0.4)),
    ],
)
def test_a_lasting_fault_lasts_without_a_break(fault: str, signs: Any, healthy: Any) -> None:
    monitor, reports = told(patience_updates=3, **{fault: "skip_batch"})
    watched(monitor, 1, 0.0, 0.0, 0.8)  # the format is learnt
    course = [signs, signs, healthy, signs, signs, signs, signs, healthy]
    skipped = [watched(monitor, update, *seen) for update, seen in enumerate(course, 2)]
    assert skipped == [False] * 5 + [True, True, False]
    assert [(name, update) for name, update, _ in reports] == [(fault, 7)]
    assert "3 updates in a row" in reports[0][2]
    assert monitor.counts == {fault: 2}


def test_a_group_is_level_by_the_rewards_that_count() -> None:
    trainer = object.__new__(GuardedRL)
    trainer.num_generations, trainer.reward_weights = 2, torch.tensor([0.0, 1.0])
    assert trainer._level_share(torch.tensor([[1.0, 0.5], [0.0, 0.5]])) == 1
    assert trainer._level_share(torch.full((2, 2), math.nan)) == 0  # nothing is known


def test_a_format_that_was_never_learnt_cannot_collapse() -> None:
    monitor, reports = told(patience_updates=1)
    for update, mean in enumerate([0.0, 0.79, 0.0, math.nan, 0.0], 1):
        watched(monitor, update, 0.0, 0.0, mean)
    assert not reports


def test_rewards_that_are_unknown_are_no_lasting_fault() -> None:
    monitor, reports = told(patience_updates=1)
    watched(monitor, 1, 0.0, 0.0, 1.0)
    watched(monitor, 2, math.nan, 0.0, math.nan)
    assert not reports


def test_completions_may_serve_several_updates() -> None:
    monitor, reports = told(patience_updates=2)
    watched(monitor, 1, 0.0, 0.0, None)
    watched(monitor, 2, 1.0, 0.0, None)
    assert not reports
    monitor.watch(3)
    assert [(fault, update) for fault, update, _ in reports] == [("no_advantage", 3)]


def test_a_restored_monitor_goes_on_counting() -> None:
    whole, cut = (told(patience_updates=3, no_advantage="skip_batch") for _ in range(2))
    course = [(0.0, 0.95, 0.9), *[(1.0, 0.95, 0.1)] * 5]
    for update, seen in enumerate(course, 1):
        expected = watched(whole.monitor, update, *seen)
        other = told(patience_updates=3, no_advantage="skip_batch")
        other.monitor.restore(json.loads(json.dumps(cut.monitor.state())))
        assert watched(other.monitor, update, *seen) == expected
        cut.reports.extend(other.reports)
        cut = Told(other.monitor, cut.reports)
    assert cut.reports == whole.reports
    assert [(fault, update) for fault, update, _ in whole.reports] == [
        ("endless_completions", 3),
        ("no_advantage", 4),
        ("format_collapse", 4),
    ]
    state = json.loads(json.dumps(whole.monitor.state()))
    restored, _ = told(patience_updates=3, no_advantage="skip_batch")
    restored.restore(state)
    assert json.loads(json.dumps(restored.state())) == state
    restored.watch(8)  # learns from the completions that update 6 was the first to learn from
    assert restored.counts["no_advantage"] == whole.monitor.counts["no_advantage"] + 1


@pytest.mark.parametrize("other", [{"no_advantage": "go_on"}, {"patience_updates": 2}])
def test_a_training_does_not_go_on_where_it_would_not_have_come_from(other: Any) -> None:
    monitor, _ = told(patience_updates=1, no_advantage="skip_batch")
    watched(monitor, 1, 1.0, 0.0, None)
    restored, _ = told(**{"patience_updates": 1, "no_advantage": "skip_batch", **other})
    with pytest.raises(ConfigurationError, match=rf"health\.{min(other)} = .*compute\.fresh"):
        restored.restore(monitor.state())


# In trainings. What follows on a fault is the same for all: not each is tried with every policy.


class Kept(TrainerCallback):
    """The weights after every update, and before the first."""

    def __init__(self) -> None:
        self.weights: list[Weights] = []

    def _keep(self, model: Any) -> None:
        self.weights.append({name: value.clone() for name, value in model.state_dict().items()})

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        self._keep(model)

    def on_step_end(self, *_: Any, model: Any = None, **__: Any) -> None:
        self._keep(model)


class Spoilt:
    """Below the guard: spoils what it is told to, in the updates that it is told."""

    spoilt: Any = ()
    state: Any
    model: Any

    def _is_due(self, what: str) -> bool:
        return (what, self.state.global_step + 1) in self.spoilt


class SpoiltSFT(Spoilt, SFTTrainer):
    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return loss * math.nan if self._is_due("loss") else loss


class SpoiltGRPO(Spoilt, DynamicKLTrainer):
    micro_batch = 0  # of several, the one whose loss is spoilt
    losses = 0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        mask = batch["completion_mask"]
        if self._is_due("reference"):
            batch["ref_per_token_logps"][mask > 0] += 100.0
        if self._is_due("padding"):
            assert (mask == 0).any()
            batch["ref_per_token_logps"][mask == 0] += 100.0
        return batch

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = super()._compute_loss(model, inputs)
        self.losses += 1
        at = (self.losses - 1) % self.args.gradient_accumulation_steps
        if self._is_due("gradient"):
            loss = loss + (next(model.parameters()) * 0).sum().sqrt()  # of 0: the slope is infinite
        spoilt = self._is_due("loss") and at == self.micro_batch
        return loss * math.inf if spoilt else loss


class GuardedSFT(Guarded, SpoiltSFT):
    pass


class GuardedGRPO(GuardedRL, SpoiltGRPO):
    pass


def every(value: float, name: str) -> Any:
    def constant(completions: Any, **_: Any) -> list[float]:
        return [value] * len(completions)

    constant.__name__ = name
    return constant


class Trial(NamedTuple):
    """A training with a fault in it."""

    trainer: Any
    weights: list[Weights]
    reports: list[tuple[str, int, str]]

    def curve(self, name: str) -> list[Any]:
        return [entry.get(name) for entry in self.trainer.state.log_history if "loss" in entry]

    def changed_in(self) -> list[int]:
        """The updates that changed a weight."""
        pairs = zip(self.weights, self.weights[1:], strict=False)
        return [update for update, (a, b) in enumerate(pairs, 1) if not equal(a, b)]


def equal(first: Weights, second: Weights) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def are_finite(weights: Weights) -> bool:
    return all(bool(value.isfinite().all()) for value in weights.values())


Make = Callable[..., Trial]


def rl_trial(
    model_path: Path,
    examples: Any,
    folder: Path,
    policies: Health | None,
    rewards: Any = (reward,),
    spoilt: Any = (),
    **changes: Any,
) -> Trial:
    """A GRPO trainer; without policies one that has no guard."""
    model, processor = load_model(str(model_path))
    settings: dict[str, Any] = {
        "beta": 1e-6,
        "max_steps": UPDATES,
        "per_device_train_batch_size": 2 * COPIES,
        "max_completion_length": 8,
        "temperature": 1.0,
        "lr_scheduler_type": "linear",
        "logging_nan_inf_filter": False,
    }
    kept, reports = Kept(), list[tuple[str, int, str]]()
    arguments: dict[str, Any] = {
        "model": model,
        "reward_funcs": list(rewards),
        "args": grpo_config(folder, **{**settings, **changes}),
        "train_dataset": rl_rows(examples, PROMPT, processor),
        "processing_class": processor,
        "kl": Linear(schedule="linear", start=0.1, end=0.7),
        "callbacks": [kept],
    }
    trainer: Any
    if policies is None:
        trainer = SpoiltGRPO(**arguments)
    else:
        trainer = GuardedGRPO(
            **arguments, health=policies, report=lambda *report: reports.append(report)
        )
    trainer.spoilt = spoilt
    return Trial(trainer, kept.weights, reports)


@pytest.fixture
def rl(mini_model: MiniModel, splits: Splits, tmp_path: Path) -> Make:
    def make(policies: Health | None, **changes: Any) -> Trial:
        return rl_trial(mini_model.path, splits["counting"]["train"], tmp_path, policies, **changes)

    return make


@pytest.fixture
def sft(mini_model: MiniModel, splits: Splits, tmp_path: Path) -> Make:
    def make(policies: Health | None, spoilt: Any = (), **changes: Any) -> Trial:
        model, processor = load_model(str(mini_model.path))
        kept, reports = Kept(), list[tuple[str, int, str]]()
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path),
            "max_steps": UPDATES,
            "per_device_train_batch_size": 2,
            "learning_rate": 5.0e-3,
            "max_length": None,
            "completion_only_loss": True,
            "activation_checkpointing": False,
            "bf16": False,
            "use_cpu": True,
            "seed": 3,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
        }
        target: Any = SFT.model_construct(target="answer")
        arguments: dict[str, Any] = {
            "model": model,
            "args": SFTConfig(**{**settings, **changes}),
            "train_dataset": sft_rows(splits["counting"]["train"], PROMPT, target, EXACT),
            "processing_class": processor,
            "callbacks": [kept],
        }
        trainer: Any
        if policies is None:
            trainer = SpoiltSFT(**arguments)
        else:
            trainer = GuardedSFT(
                **arguments, health=policies, report=lambda *report: reports.append(report)
            )
        trainer.spoilt = spoilt
        return Trial(trainer, kept.weights, reports)

    return make


@pytest.fixture
def released() -> Iterator[Event]:
    """What a hanging reward function waits for: until the end of the test."""
    event = Event()
    yield event
    event.set()


def failing_at(call: int, fail: Callable[[], Any]) -> Any:
    """A reward function that fails in one of its calls."""
    calls = [0]

    def failing(completions: Any, **_: Any) -> list[float]:
        calls[0] += 1
        if calls[0] == call:
            fail()
        return reward(completions)

    failing.__name__ = "some_reward"
    failing.calls = calls  # type: ignore[attr-defined]
    return failing


def raise_error() -> None:
    raise KeyError("no such answer")


def check(trial: Trial, policy: str, fault: str, detail: str) -> None:
    """Train; see that the policy was followed, and the fault named once, with its update."""
    if policy == "stop":
        with pytest.raises(
            TrainingFault, match=rf"update {FAULTY}: {fault}: .*{re.escape(detail)}"
        ):
            trial.trainer.train()
        assert trial.trainer.state.global_step == FAULTY - 1
        now = dict(trial.trainer.model.state_dict())
        assert equal(now, trial.weights[FAULTY - 1])
    else:
        trial.trainer.train()
        assert trial.trainer.state.global_step == UPDATES
    if policy == "skip_batch":
        assert trial.changed_in() == [1, 3]
        assert all(map(are_finite, trial.weights))
        assert trial.curve("skipped_batches") == [None, 1.0, None]
        rates = trial.curve("learning_rate")
        assert rates == pytest.approx([5e-3, 5e-3 * 2 / 3, 5e-3 / 3])
        losses = trial.curve("loss")
        assert all(map(math.isfinite, losses)) and losses[2] != 0
        assert all(None not in entry.values() for entry in trial.trainer.state.log_history)
    if policy == "go_on":
        assert "skipped_batches" not in trial.trainer.state.log_history[FAULTY - 1]
    named = [(name, update) for name, update, _ in trial.reports if name == fault]
    assert named == [(fault, FAULTY)]
    assert detail in next(text for name, _, text in trial.reports if name == fault)


@pytest.mark.parametrize("policy", ["stop", "skip_batch"])
def test_a_loss_that_is_no_number(sft: Make, policy: str) -> None:
    trial = sft(health(loss_not_finite=policy), spoilt=[("loss", FAULTY)])
    check(trial, policy, "loss_not_finite", "loss nan")


@pytest.mark.parametrize("policy", POLICIES)
def test_a_gradient_that_is_no_number(rl: Make, policy: str) -> None:
    trial = rl(health(gradient_not_finite=policy), spoilt=[("gradient", FAULTY)])
    check(trial, policy, "gradient_not_finite", "gradient norm nan")


@pytest.mark.parametrize("policy", ["skip_batch", "go_on"])
def test_a_kl_that_would_overflow(rl: Make, policy: str) -> None:
    trial = rl(health(kl_overflow=policy, loss_not_finite="stop"), spoilt=[("reference", FAULTY)])
    check(trial, policy, "kl_overflow", "exp(1")  # 100 and what the policy itself differs by
    if policy == "go_on":  # the exponent is bounded: exp(100) is beyond float32
        x = MAX_KL_EXPONENT
        assert trial.curve("kl")[FAULTY - 1] == pytest.approx(math.exp(x) - x - 1, rel=1e-3)
        assert all(map(are_finite, trial.weights))


def test_the_bound_is_that_of_one_loss(rl: Make) -> None:
    """Later losses of the same completions are of another policy."""
    trial = rl(health(), spoilt=[("reference", 1)], max_steps=1)
    trial.trainer.train()
    assert trial.trainer._buffered_inputs[0]["ref_per_token_logps"].max() > 50


def test_padding_is_no_overflow(rl: Make) -> None:
    trial = rl(health(kl_overflow="stop", loss_not_finite="stop"), spoilt=[("padding", 1)])
    trial.trainer.train()
    assert not trial.reports
    assert trial.changed_in() == [1, 2, 3]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_reward_function_that_raises(rl: Make, policy: str) -> None:
    rewards = [reward, failing_at(FAULTY, raise_error)]
    trial = rl(health(reward_failed=policy), rewards=rewards)
    check(trial, policy, "reward_failed", "some_reward: KeyError: 'no such answer'")
    if policy == "go_on":  # the reward is unknown, not 0
        known = [mean is not None for mean in trial.curve("rewards/some_reward/mean")]
        assert known == [update != FAULTY for update in range(1, UPDATES + 1)]


def test_a_reward_function_that_hangs(rl: Make, released: Event) -> None:
    trial = rl(
        health(reward_timeout="skip_batch", reward_timeout_s=0.5),
        rewards=[failing_at(FAULTY, released.wait)],
    )
    check(trial, "skip_batch", "reward_timeout", "some_reward did not return")


@pytest.mark.parametrize(
    ("returned", "detail"),
    [
        ([1.0], "returned 1 rewards for 8 completions"),
        ([math.inf] * 8, "infinite"),
        (["one"] * 8, "ValueError"),
        (None, "TypeError"),
    ],
)
def test_a_reward_function_that_returns_no_rewards(rl: Make, returned: Any, detail: str) -> None:
    def wrong_reward(**_: Any) -> Any:
        return returned

    trial = rl(health(reward_failed="stop"), rewards=[wrong_reward], max_steps=1)
    with pytest.raises(TrainingFault, match=rf"wrong_reward: .*{detail}"):
        trial.trainer.train()


def test_a_reward_of_none_is_no_fault(rl: Make) -> None:
    def choosy_reward(completions: Any, **_: Any) -> list[float | None]:
        return [None, *reward(completions)[1:]]

    trial = rl(health(reward_failed="stop"), rewards=[choosy_reward], max_steps=2)
    trial.trainer.train()
    assert not trial.reports


def never_end(trial: Trial) -> None:
    """Wait for a token that is never sampled."""
    trial.trainer.eos_token_ids = [trial.trainer.model.config.image_token_id]


LASTING = {
    "no_advantage": (every(0.5, "level_reward"),),
    "endless_completions": (reward,),
    "format_collapse": (reward, every(0.1, "format_reward")),
}


def test_a_group_is_level_by_its_own_rewards_whatever_scales_advantages(rl: Make) -> None:
    def by_group(completions: Any, **_: Any) -> list[float]:
        return [float(row // COPIES) for row in range(len(completions))]

    policies = health(patience_updates=1, no_advantage="stop")
    trial = rl(policies, rewards=[by_group], scale_rewards="batch", max_steps=1)
    with pytest.raises(TrainingFault, match="update 1: no_advantage"):
        trial.trainer.train()


@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_a_fault(rl: Make, fault: str) -> None:
    policies = health(patience_updates=FAULTY, **{fault: "stop"})
    changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": COPIES}
    trial = rl(policies, rewards=LASTING[fault], **changes)
    if fault == "endless_completions":
        never_end(trial)
    if fault == "format_collapse":
        watched(trial.trainer.monitor, 0, 0.0, 0.0, 1.0)
    check(trial, "stop", fault, f"{FAULTY} updates in a row")


def test_an_update_with_a_lasting_fault_can_be_skipped(rl: Make) -> None:
    policies = health(patience_updates=2, endless_completions="skip_batch")
    trial = rl(policies, max_steps=5)
    never_end(trial)
    with pytest.raises(TrainingFault, match="update 4: 3 updates in a row were skipped"):
        trial.trainer.train()
    assert trial.changed_in() == [1]
    assert trial.curve("skipped_batches") == [None, 1.0, 2.0]


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_an_update_is_skipped_as_a_whole(rl: Make, micro_batch: int) -> None:
    policies = health(loss_not_finite="skip_batch")
    changes = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": COPIES}
    trial = rl(policies, spoilt=[("loss", FAULTY)], **changes)
    trial.trainer.micro_batch = micro_batch
    check(trial, "skip_batch", "loss_not_finite", "inf")
    assert trial.trainer.losses == 2 * UPDATES - (micro_batch == 0)  # it stops computing them


def test_completions_without_rewards_are_not_used_again(rl: Make) -> None:
    for faulty, calls, learnt in ((0, 2, [1, 2, 3, 4]), (1, 3, [2, 3, 4])):
        some_reward = failing_at(faulty, raise_error)
        trial = rl(
            health(reward_failed="skip_batch"),
            rewards=[some_reward],
            max_steps=4,
            num_iterations=2,  # completions for the updates 1 and 2, 3 and 4
        )
        trial.trainer.train()
        assert some_reward.calls[0] == calls
        assert trial.changed_in() == learnt


@pytest.mark.parametrize("algorithm", ["rl", "sft"])
def test_a_healthy_training_is_the_same_without_the_guard(
    request: pytest.FixtureRequest, algorithm: str
) -> None:
    make: Make = request.getfixturevalue(algorithm)
    stops = health(**dict.fromkeys(FAULTS, "stop"))
    trials = []
    for policies in (None, stops):
        trials.append(make(policies))  # which seeds
        trials[-1].trainer.train()
    plain, guarded = trials
    assert all(equal(*pair) for pair in zip(plain.weights, guarded.weights, strict=True))
    assert guarded.changed_in() == [1, 2, 3]

    def logged(trial: Trial) -> list[dict[str, Any]]:
        entries = trial.trainer.state.log_history[:UPDATES]
        return [{k: v for k, v in entry.items() if "time" not in k} for entry in entries]

    assert logged(plain) == logged(guarded)
    assert not guarded.reports


def test_all_processes_act_alike(mini_model: MiniModel, splits: Splits, tmp_path: Path) -> None:
    """The faults are on one process each: the other one must neither wait nor learn from them."""
    splits["counting"]["train"].to_parquet(tmp_path / "examples.parquet")
    run_two_processes(__name__, str(mini_model.path), str(tmp_path), folder=tmp_path)
    main_process, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for outcome in (main_process, other):
        assert outcome["changed_in"] == [1, 4, 6]
        assert outcome["skipped"] == [None, 1.0, 2.0, None, 3.0, None]
        assert "update 2: reward_timeout: some_reward did not return" in outcome["stopped"]
    assert main_process["weights"] == other["weights"]
    assert main_process["stopped"] == other["stopped"]
    faults = [(name, update) for name, update, _ in main_process["reports"]]
    assert faults == [("reward_failed", 2), ("loss_not_finite", 3)]
    assert "KeyError" in main_process["reports"][0][2]
    assert not other["reports"]


def main(model_path: Path, folder: Path) -> None:
    """Skip an update for each process's fault, then stop for one; write what became of it."""
    from datasets import load_dataset

    examples = load_dataset(
        "parquet", data_files=str(folder / "examples.parquet"), cache_dir=str(folder), split="train"
    )
    rank = int(os.environ["RANK"])
    skipping = rl_trial(
        model_path,
        examples,
        folder,
        health(reward_failed="skip_batch", loss_not_finite="skip_batch"),
        rewards=[failing_at(FAULTY if rank == 1 else 0, raise_error)],
        spoilt=[("loss", 3 if rank == 1 else 5)],
        max_steps=6,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=COPIES,
    )
    skipping.trainer.micro_batch = rank  # before the gradients are exchanged, and where they are
    skipping.trainer.train()
    hanging = failing_at(FAULTY if rank == 0 else 0, Event().wait)  # even at the exit
    policies = health(reward_timeout="stop", reward_timeout_s=0.5)
    stopping = rl_trial(model_path, examples, folder, policies, rewards=[hanging])
    with pytest.raises(TrainingFault) as stopped:
        stopping.trainer.train()
    outcome = {
        "changed_in": skipping.changed_in(),
        "skipped": skipping.curve("skipped_batches"),
        "reports": skipping.reports,
        "weights": [float(value.double().sum()) for value in skipping.weights[-1].values()],
        "stopped": stopped.value.message,
    }
    (folder / f"{rank}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
