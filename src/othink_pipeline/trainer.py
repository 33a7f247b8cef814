"""Train one cell: one budget for every method, the KL weight of every update under our control.

GRPO here departs from TRL's defaults where the paper does: ``loss_type="grpo"`` (mean over a
sequence's tokens, then over sequences), one update a batch, and the KL weight set before each
loss instead of once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, SFTConfig, SFTTrainer

from othink_pipeline.dynamic_kl import DynamicKLTrainer
from othink_pipeline.kl import FLOOR
from othink_pipeline.models import load_model
from othink_pipeline.parameters import RL, SFT, Compute, Method
from othink_pipeline.rewards import ACCURACY_REWARDS, format_reward
from othink_pipeline.training_data import prompt_order, rl_rows, sft_rows

if TYPE_CHECKING:
    from datasets import Dataset

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


def train(
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
    trainer: DynamicKLTrainer | SFTTrainer
    if isinstance(parameters, RL):
        rows = rl_rows(stream, prompt, processor)
        trainer = build_rl_trainer(
            model, processor, rows, parameters, compute, seed, folder, [watcher]
        )
    else:
        rows = sft_rows(stream, prompt, parameters)
        trainer = build_sft_trainer(
            model, processor, rows, parameters, compute, seed, folder, [watcher]
        )
    trainer.remove_callback(PrinterCallback)  # the watcher's line says it shorter
    started = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - started - watcher.seconds_apart
    if isinstance(parameters, RL):
        completions = parameters.prompts_per_update * parameters.completions_per_prompt
        tokens = round(watcher.completion_tokens * completions)
    else:
        targets = [row[0]["content"] for row in rows["completion"]]
        # Each ends with the chat template's end of turn and line feed, which TRL trains on as well.
        tokens = sum(len(ids) + 2 for ids in processor.tokenizer(targets)["input_ids"])
    return Trained(
        updates=trainer.state.global_step,
        prompts=len(stream),
        completion_tokens=tokens,
        seconds=seconds,
        weights_changed=_relative_change(before, model.named_parameters()),
    )


def _common(parameters: Method, compute: Compute, seed: int, folder: Path) -> dict[str, Any]:
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


def build_rl_trainer(
    model: Any,
    processor: Any,
    rows: Dataset,
    parameters: RL,
    compute: Compute,
    seed: int,
    folder: Path,
    callbacks: list[TrainerCallback],
) -> DynamicKLTrainer:
    """A GRPO trainer that takes ``rl_rows`` in their order, ``prompts_per_update`` at a time."""
    config = GRPOConfig(
        **_common(parameters, compute, seed, folder),
        per_device_train_batch_size=parameters.prompts_per_update
        * parameters.completions_per_prompt,
        num_generations=parameters.completions_per_prompt,
        max_completion_length=parameters.max_completion_tokens,
        temperature=parameters.temperature,
        beta=FLOOR,  # above 0, so that the reference is loaded; set anew before every loss
        loss_type="grpo",
        reward_weights=[parameters.rewards.accuracy, parameters.rewards.format],
        shuffle_dataset=False,
    )
    return DynamicKLTrainer(
        model=model,
        reward_funcs=[ACCURACY_REWARDS[parameters.rewards.answer], format_reward],
        args=config,
        train_dataset=rows,
        processing_class=processor,
        callbacks=callbacks,
        kl=parameters.kl,
        share_prompts=compute.share_prompts,
    )


def build_sft_trainer(
    model: Any,
    processor: Any,
    rows: Dataset,
    parameters: SFT,
    compute: Compute,
    seed: int,
    folder: Path,
    callbacks: list[TrainerCallback],
) -> SFTTrainer:
    """An SFT trainer that takes ``rows`` in their order, with the loss on the completion alone."""
    config = SFTConfig(
        **_common(parameters, compute, seed, folder),
        per_device_train_batch_size=parameters.prompts_per_update,
        completion_only_loss=True,
        max_length=None,  # TRL's default cuts long examples without a word
        train_sampling_strategy="sequential",
    )
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=processor,
        callbacks=callbacks,
    )


def _relative_change(
    before: Mapping[str, torch.Tensor], after: Iterable[tuple[str, torch.Tensor]]
) -> float:
    changed = total = 0.0
    for name, weight in after:
        changed += float((weight.detach() - before[name]).square().sum())
        total += float(before[name].square().sum())
    return float((changed / total) ** 0.5)
