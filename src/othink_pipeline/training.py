"""Train one cell: what SFT and RL have in common, one budget above all.

What sets them apart is in ``sft_training.py`` and ``rl_training.py``, and neither imports the
other: a cell's content key covers the code that its own algorithm imports.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from transformers import PrinterCallback, TrainerCallback

from othink_pipeline.models import load_model
from othink_pipeline.training_data import prompt_order

if TYPE_CHECKING:
    from datasets import Dataset

    from othink_pipeline.parameters import RL, SFT, Compute, Method

logger = logging.getLogger(__name__)

CURVES = {
    "loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "entropy": "train/entropy",
    "reward": "train/reward",
    "rewards/accuracy_reward/mean": "train/accuracy_reward",
    "rewards/accuracy_any_reward/mean": "train/accuracy_any_reward",
    "rewards/format_reward/mean": "train/format_reward",
    "frac_reward_zero_std": "train/zero_advantage_rate",
    "kl": "train/kl",
    "kl_weight": "train/kl_weight",
    "completions/mean_length": "train/completion_tokens",
    "completions/clipped_ratio": "train/clipped_rate",
    "mean_token_accuracy": "train/token_accuracy",
    "shared_prompts": "train/shared_prompts",
}
"""TRL's names of what is logged at every update -> ours, the same for every method."""

Log = Callable[[int, dict[str, float]], None]
Checkpoint = Callable[[int, Any, Any], dict[str, float]]


class Trained(NamedTuple):
    """What training one cell came to."""

    updates: int
    prompts: int
    completion_tokens: int
    """Tokens that the loss was taken over."""
    seconds: float
    """Without the time that scoring checkpoints took."""
    weights_changed: float
    """Euclidean norm of all weights' change, relative to that of the weights; above 0."""


class Watcher(TrainerCallback):
    """Hands every update's metrics and every due checkpoint on, and keeps a line on the screen."""

    def __init__(
        self,
        name: str,
        parameters: Method,
        processor: Any,
        log: Log,
        checkpoint: Checkpoint,
    ) -> None:
        self.name, self.parameters = name, parameters
        self.processor, self.log, self.checkpoint = processor, log, checkpoint
        self.seconds_apart = 0.0
        self.completion_tokens = 0.0  # mean over an update's completions, summed over updates
        self.started = time.perf_counter()

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Score the base model, update 0."""
        self._take_checkpoint(0, model)
        self.started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """One call an update."""
        metrics = {ours: float(logs[theirs]) for theirs, ours in CURVES.items() if theirs in logs}
        if not metrics or "train_runtime" in logs:
            return
        self.log(state.global_step, metrics)
        self.completion_tokens += metrics.get("train/completion_tokens", 0.0)
        if state.global_step % 10 == 0 or state.global_step == 1:
            done, total = state.global_step, state.max_steps
            left = (time.perf_counter() - self.started) / done * (total - done)
            shown = {
                key: metrics[f"train/{key}"]
                for key in ("loss", "reward", "kl_weight")
                if f"train/{key}" in metrics
            }
            text = "  ".join(f"{key} {value:.3g}" for key, value in shown.items())
            logger.info("%s  update %d/%d  %s  %.0f s left", self.name, done, total, text, left)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Take a checkpoint when one is due, and after the last update."""
        every = self.parameters.checkpoint_every_updates
        if state.global_step % every and state.global_step < state.max_steps:
            return
        self._take_checkpoint(state.global_step, model)

    def _take_checkpoint(self, update: int, model: Any) -> None:
        before = time.perf_counter()
        rng = torch.get_rng_state()
        scores = self.checkpoint(update, model, self.processor)
        torch.set_rng_state(rng)  # so that scoring leaves no trace in what is sampled next
        shown = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        logger.info("%s  update %d  validation: %s", self.name, update, shown)
        self.seconds_apart += time.perf_counter() - before


class Algorithm(Protocol):
    """What ``sft_training`` and ``rl_training`` each provide."""

    def make_rows(self, examples: Dataset, prompt: str, parameters: Any, processor: Any) -> Dataset:
        """The rows that the trainer is fed, in the order of ``examples``."""

    def build_trainer(
        self,
        model: Any,
        processor: Any,
        rows: Dataset,
        parameters: Any,
        compute: Compute,
        seed: int,
        folder: Path,
        callbacks: list[TrainerCallback],
    ) -> Any:
        """A TRL trainer that takes the rows in their order, ``prompts_per_update`` at a time."""

    def completion_tokens(
        self, rows: Dataset, parameters: Any, processor: Any, mean_tokens: float
    ) -> int:
        """Tokens that the loss was taken over.

        ``mean_tokens``: the mean over an update's completions, summed over the updates.
        """


def train(
    algorithm: Algorithm,
    name: str,
    model_path: str,
    examples: Dataset,
    prompt: str,
    parameters: SFT | RL,
    compute: Compute,
    seed: int,
    folder: Path,
    log: Log,
    checkpoint: Checkpoint,
) -> Trained:
    """Train one cell from the base model.

    Args:
        algorithm: the module ``sft_training`` or ``rl_training``.
        name: the cell's name, for the progress line.
        model_path: the base model: a Hugging Face model folder.
        examples: the train split.
        prompt: template with ``{question}``.
        folder: for whatever TRL wants to write; nothing there is needed afterwards.
        log: called with (update, metrics) after every update.
        checkpoint: called with (update, model, processor) before the first update (update 0), when
            one is due and after the last update; returns scores by name.
    """
    model, processor = load_model(model_path)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    stream = examples.select(
        prompt_order(len(examples), parameters.updates * parameters.prompts_per_update, seed)
    )
    watcher = Watcher(name, parameters, processor, log, checkpoint)
    rows = algorithm.make_rows(stream, prompt, parameters, processor)
    trainer = algorithm.build_trainer(
        model, processor, rows, parameters, compute, seed, folder, [watcher]
    )
    trainer.remove_callback(PrinterCallback)  # the watcher's line says it shorter
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started - watcher.seconds_apart
    return Trained(
        updates=trainer.state.global_step,
        prompts=len(stream),
        completion_tokens=algorithm.completion_tokens(
            rows, parameters, processor, watcher.completion_tokens
        ),
        seconds=seconds,
        weights_changed=_relative_change(before, model.named_parameters()),
    )


def trainer_settings(
    parameters: Method, compute: Compute, seed: int, folder: Path
) -> dict[str, Any]:
    """TRL's settings that both algorithms share."""
    return {
        "output_dir": str(folder),
        "max_steps": parameters.updates,
        "learning_rate": parameters.learning_rate,
        "lr_scheduler_type": parameters.lr_schedule,
        "warmup_steps": round(parameters.warmup_ratio * parameters.updates),
        "max_grad_norm": parameters.max_grad_norm,
        "weight_decay": parameters.weight_decay,
        "seed": seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "activation_checkpointing": False,
        "bf16": torch.cuda.is_available(),
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "dataloader_num_workers": compute.data_workers,
    }


def _relative_change(
    before: Mapping[str, torch.Tensor], after: Iterable[tuple[str, torch.Tensor]]
) -> float:
    changed = total = 0.0
    for name, weight in after:
        changed += float((weight.detach() - before[name]).square().sum())
        total += float(before[name].square().sum())
    return float((changed / total) ** 0.5)
