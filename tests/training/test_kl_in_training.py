"""The KL weight in a training: one an update, of this batch, on all processes.

Run as a script this file is one process of a distributed training: see the last test.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer

from othink_pipeline.models.load import load_model
from othink_pipeline.training.dynamic_kl import DynamicKLTrainer
from othink_pipeline.training.kl import (
    Accuracy,
    Adaptive,
    KLController,
    KLSchedule,
    Linear,
    Seen,
)
from othink_pipeline.training.rows import rl_rows
from tests.conftest import PROMPT, MiniModel, grpo_config
from tests.support.commands import run_two_processes
from tests.support.rewards import reward

Splits = Mapping[str, Mapping[str, Any]]
COPIES = 4
ADAPTIVE = Adaptive(schedule="adaptive", start=0.3, target=0.02, gain=2.0, low=0.01, high=5.0)
ACCURACY = Accuracy(schedule="accuracy", weight=0.9)
LINEAR = Linear(schedule="linear", start=0.1, end=0.7)


class Recording(DynamicKLTrainer):
    """Keeps the weight that was applied in every loss: (update, weight)."""

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        loss = super()._compute_loss(model, inputs)
        self.__dict__.setdefault("applied", []).append((self.state.global_step, self.beta))
        return loss


def trainer_of(
    model_path: Path,
    examples: Dataset,
    folder: Path,
    kl: KLSchedule,
    **changes: Any,
) -> Recording:
    settings: dict[str, Any] = {
        "beta": 1e-6,
        "max_steps": 6,
        "per_device_train_batch_size": 2 * COPIES,
        "max_completion_length": 8,
        "temperature": 1.0,
        "learning_rate": 2.0e-2,
    }
    model, processor = load_model(str(model_path))
    return Recording(
        model=model,
        reward_funcs=[reward],
        args=grpo_config(folder, **{**settings, **changes}),
        train_dataset=rl_rows(examples, PROMPT, processor),
        processing_class=processor,
        kl=kl,
    )


def curve(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


def test_accuracy_sets_the_weight_of_the_batch_that_it_was_measured_on(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    trainer = trainer_of(mini_model.path, splits["counting"]["train"], tmp_path, ACCURACY)
    trainer.train()
    accuracies = curve(trainer, "rewards/reward/mean")
    assert len(set(accuracies)) > 2  # else an older batch's accuracy would do as well
    by_hand = [ACCURACY.next_weight(Seen(0.0, accuracy, None), None) for accuracy in accuracies]
    assert curve(trainer, "kl_weight") == pytest.approx(by_hand, rel=1e-6)


def test_the_accuracy_is_the_first_rewards_and_the_last_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Completions and rewards; NaN: one that failed."""
    unknown = math.nan
    failed = [[unknown, 1], [unknown, 0]]
    rewards = iter([failed, [[1, 0], [0, 0]], [[unknown, 0], [1, 0]], failed])
    monkeypatch.setattr(
        GRPOTrainer, "_calculate_rewards", lambda *_: torch.tensor(next(rewards)).float()
    )
    trainer = object.__new__(DynamicKLTrainer)
    for accuracy in (0.0, 0.5, 1.0, 1.0):
        trainer._calculate_rewards()
        assert trainer._accuracy == accuracy


def test_adaptive_follows_the_kl_of_the_update_before(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    trainer = trainer_of(mini_model.path, splits["counting"]["train"], tmp_path, ADAPTIVE)
    trainer.train()
    kls = curve(trainer, "kl")
    assert kls[0] < 1e-6 and max(kls) > 1e-3
    weight, by_hand = 0.3, [0.3]
    for kl in kls[:-1]:
        weight *= 1 + 2.0 * min(max(kl / 0.02 - 1, -0.2), 0.2)
        by_hand.append(min(max(weight, 0.01), 5.0))
        weight = by_hand[-1]
    assert curve(trainer, "kl_weight") == pytest.approx(by_hand, rel=1e-5)
    assert len({round(weight, 6) for weight in by_hand}) > 3


@pytest.mark.parametrize(
    ("kl", "changes"),
    [
        (LINEAR, {"gradient_accumulation_steps": 2, "num_iterations": 2}),
        (ADAPTIVE, {"gradient_accumulation_steps": 2}),
        (ADAPTIVE, {"gradient_accumulation_steps": 2, "num_iterations": 2}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value.schedule,
)
def test_an_update_has_one_weight_however_many_losses_it_has(
    mini_model: MiniModel, splits: Splits, tmp_path: Path, kl: KLSchedule, changes: dict[str, int]
) -> None:
    trainer = trainer_of(
        mini_model.path, splits["counting"]["train"], tmp_path, kl, max_steps=4, **changes
    )
    trainer.train()
    losses = 4 * changes["gradient_accumulation_steps"]
    assert len(trainer.applied) == losses
    of_updates = dict(trainer.applied)
    assert len(set(trainer.applied)) == len(of_updates) == 4
    controller = KLController(kl, 4)
    for update, kl_of_update in enumerate(curve(trainer, "kl")):
        assert of_updates[update] == pytest.approx(controller.next_weight(update, 0.0), rel=1e-5)
        controller.measured(kl_of_update)


def test_all_processes_apply_the_same_weights(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    """Each process sees rows of its own: the weight must follow from all of them."""
    examples = splits["counting"]["train"]
    examples.to_parquet(tmp_path / "examples.parquet")
    run_two_processes(__name__, str(mini_model.path), str(tmp_path), folder=tmp_path)
    for kl in ("adaptive", "accuracy"):
        first, second = (
            json.loads((tmp_path / f"{kl}-{rank}.json").read_text()) for rank in range(2)
        )
        assert first["weights"] == second["weights"]
        assert len(set(first["weights"])) > 2
        assert first["own_accuracies"] != second["own_accuracies"]


def main(model_path: Path, folder: Path) -> None:
    """Train with two schedules; write this process's weights and its own accuracies."""
    from datasets import load_dataset

    examples = load_dataset(
        "parquet", data_files=str(folder / "examples.parquet"), cache_dir=str(folder), split="train"
    )
    for kl in (ADAPTIVE, ACCURACY):
        own: list[float] = []

        def watched(completions: Any, kept: list[float] = own, **_: Any) -> list[float]:
            rewards = reward(completions)
            kept.append(sum(rewards) / len(rewards))
            return rewards

        watched.__name__ = reward.__name__
        trainer = trainer_of(model_path, examples, folder, kl)
        trainer.reward_funcs = [watched]
        trainer.train()
        outcome = {"weights": [weight for _, weight in trainer.applied], "own_accuracies": own}
        file = folder / f"{kl.schedule}-{os.environ['RANK']}.json"
        file.write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
