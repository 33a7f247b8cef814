"""Train one cell: what SFT and RL have in common, one budget above all.

What sets them apart is in ``sft.py`` and ``rl.py``, and neither imports the
other: a cell's content key covers the code that its own algorithm imports.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, TrainerCallback

from othink_pipeline.models.load import load_model
from othink_pipeline.scoring.kinds import EXACT, AnswerKind
from othink_pipeline.training.gather import whole_model
from othink_pipeline.training.resume import newest_checkpoint, update_of
from othink_pipeline.training.rows import prompt_order
from othink_pipeline.training.trainable import choose_weights, keep_precise

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftConfig

    from othink_pipeline.models.parameters import Compute, ModelSettings
    from othink_pipeline.training.health import Report
    from othink_pipeline.training.parameters import RL, SFT, Health, Method

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
    "clip_ratio/region_mean": "train/clipped_ratio_rate",
    "mean_token_accuracy": "train/token_accuracy",
    "shared_prompts": "train/shared_prompts",
    "skipped_batches": "train/skipped_batches",
}
"""TRL's names of what is logged at every update -> ours, the same for every method."""

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}
"""Our names of the optimizers -> those of Transformers."""

Log = Callable[[int, dict[str, float]], None]
Checkpoint = Callable[[int, Any, Any, dict[str, torch.Tensor] | None], dict[str, float]]


class Trained(NamedTuple):
    """What training one cell came to."""

    updates: int
    prompts: int
    completion_tokens: int
    """Tokens that the loss was taken over."""
    seconds: float
    """Of all attempts, without what was lost and what scoring and saving took."""
    skipped_batches: int
    """Updates that changed no weight, because a number had gone wrong."""
    faults: dict[str, int]
    """How often each fault occurred; see ``health``."""
    weights_changed: float
    """Euclidean norm of the trained weights' change, relative to that of these weights; above 0.
    NaN where no process holds them whole."""


class Watcher(TrainerCallback):
    """Hands every update's metrics and every due checkpoint on, and keeps a line on the screen.

    Both are handed on before the state of that update is saved: a training that is resumed hands
    on nothing but what came after.
    """

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
        self.trainer: Any = None
        self.completion_tokens = 0.0  # mean over an update's completions, summed over updates
        self.mean_tokens = 0.0  # of the last ones that were sampled
        self.seconds, self._since = 0.0, time.perf_counter()  # of training, so far and since when
        self.started, self.updates_before = self._since, 0

    def state(self) -> dict[str, Any]:
        """All that changes, fit for JSON."""
        return {
            "seconds": self.seconds,
            "completion_tokens": self.completion_tokens,
            "mean_tokens": self.mean_tokens,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.seconds = state["seconds"]
        self.completion_tokens, self.mean_tokens = state["completion_tokens"], state["mean_tokens"]

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Score the base model, update 0."""
        if state.global_step == 0:
            self._take_checkpoint(0, model)
        self.started, self.updates_before = time.perf_counter(), state.global_step
        self._since = self.started

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any
    ) -> None:
        """One call an update; take a checkpoint when one is due, and after the last update."""
        metrics = {ours: float(logs[theirs]) for theirs, ours in CURVES.items() if theirs in logs}
        if not metrics or "train_runtime" in logs:
            return
        self.seconds += time.perf_counter() - self._since
        self.log(state.global_step, metrics)
        # An update that learns from the same completions again does not say how long they are.
        self.mean_tokens = metrics.get("train/completion_tokens", self.mean_tokens)
        self.completion_tokens += self.mean_tokens
        if state.global_step % 10 == 0 or state.global_step == 1:
            self._show(state.global_step, state.max_steps, metrics)
        every = self.parameters.checkpoint_every_updates
        if state.global_step % every == 0 or state.global_step == state.max_steps:
            self._take_checkpoint(state.global_step, model)
        self._since = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The state of an update was saved, which is not training."""
        self._since = time.perf_counter()

    def _show(self, done: int, total: int, metrics: dict[str, float]) -> None:
        an_update = (time.perf_counter() - self.started) / (done - self.updates_before)
        shown = {
            key: metrics[f"train/{key}"]
            for key in ("loss", "reward", "kl_weight")
            if f"train/{key}" in metrics
        }
        text = "  ".join(f"{key} {value:.3g}" for key, value in shown.items())
        left = an_update * (total - done)
        logger.info("%s  update %d/%d  %s  %.0f s left", self.name, done, total, text, left)

    def _take_checkpoint(self, update: int, model: Any) -> None:
        # Scoring leaves no trace in what is sampled next, on this device either.
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices), whole_model(self.trainer, model) as (whole, state):
            scores = self.checkpoint(update, whole, self.processor, state)
        if shown := "  ".join(f"{name} {value:.3f}" for name, value in scores.items()):
            logger.info("%s  update %d  validation: %s", self.name, update, shown)


@dataclass(frozen=True, slots=True)
class Job:
    """One training.

    Attributes:
        name: the cell's name, for the progress line.
        model_path: the base model: a Hugging Face model folder.
        model: how it is loaded.
        examples: the train split.
        prompt: template with ``{question}``.
        answers: how the reward judges them.
        folder: for checkpoints to go on from; of this training alone, not needed afterwards.
    """

    name: str
    model_path: str
    model: ModelSettings
    examples: Dataset
    prompt: str
    parameters: Any  # SFT or RL, as the algorithm takes it
    compute: Compute
    health: Health
    seed: int
    folder: Path
    answers: AnswerKind = EXACT


class Algorithm(Protocol):
    """What ``sft`` and ``rl`` each provide."""

    def make_rows(self, examples: Dataset, job: Job, processor: Any) -> Dataset:
        """The rows that the trainer is fed, in the order of ``examples``."""

    def build_trainer(
        self,
        model: Any,
        processor: Any,
        rows: Dataset,
        job: Job,
        adapters: PeftConfig | None,
        report: Report,
        callbacks: list[TrainerCallback],
    ) -> Any:
        """A TRL trainer that takes the rows in their order, ``prompts_per_update`` at a time."""

    def completion_tokens(self, rows: Dataset, job: Job, processor: Any, mean_tokens: float) -> int:
        """Tokens that the loss was taken over.

        ``mean_tokens``: the mean over an update's completions, summed over the updates.
        """


def train(
    algorithm: Algorithm,
    job: Job,
    log: Log,
    checkpoint: Checkpoint,
    report: Report,
    callbacks: Sequence[Any] = (),
) -> Trained:
    """Train one cell from the base model, or go on from the newest checkpoint in ``job.folder``.

    A training that was killed and is started again ends as an uninterrupted one: with the same
    weights, and on a CPU with the same bits.

    Args:
        algorithm: the module ``sft`` or ``rl``.
        log: called with (update, metrics) after every update, once more for those that are repeated
            after a crash, with the same metrics; on all processes, the first one's are of all.
        checkpoint: called with (update, model, processor, state) on all processes, before the first
            update (update 0), when one is due and after the last update, and once more if that is
            repeated; returns scores by name. ``state``: see ``whole_model``.
        report: called with (fault, update, figures) when a number goes wrong for the first time.
        callbacks: more of Transformers' callbacks; their ``trainer`` is set to the trainer.

    Raises:
        ConfigurationError: the checkpoint to go on from holds more than numbers.
        TrainingFault: a number went wrong, and its policy is to stop.
    """
    model, processor = load_model(job.model_path, job.model)
    watcher = Watcher(job.name, job.parameters, processor, log, checkpoint)
    # Chosen last: to add a column to chosen rows `datasets` would write their pictures once more.
    rows = algorithm.make_rows(job.examples, job, processor).select(
        prompt_order(len(job.examples), job.parameters.prompts, job.seed)
    )
    adapters = choose_weights(model, job.parameters)
    seats = [watcher, *callbacks]
    trainer = algorithm.build_trainer(model, processor, rows, job, adapters, report, seats)
    for callback in seats:
        callback.trainer = trainer
    if not trainer.is_deepspeed_enabled:  # which keeps float32 weights of its own
        keep_precise(trainer.model)
    whole = not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)
    whole = whole and trainer.is_world_process_zero()  # one copy a machine is enough
    before = dict(_trained_weights(trainer.model)) if whole else {}
    trainer.remove_callback(PrinterCallback)  # the watcher's line says it shorter
    trainer.parts |= {"watcher": watcher, "health": trainer.monitor}
    found = [newest_checkpoint(job.folder) if trainer.is_world_process_zero() else None]
    (newest,) = broadcast_object_list(found)  # to verify it takes a reading of all of it
    if newest is not None:
        logger.info("%s goes on from update %d: %s", job.name, update_of(newest), newest)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    return Trained(
        updates=trainer.state.global_step,
        prompts=len(rows),
        completion_tokens=algorithm.completion_tokens(
            rows, job, processor, watcher.completion_tokens
        ),
        seconds=watcher.seconds,
        skipped_batches=trainer.monitor.skipped,
        faults=dict(trainer.monitor.counts),
        weights_changed=_relative_change(before, _trained_weights(trainer.model))
        if whole
        else math.nan,
    )


def trainer_settings(job: Job) -> dict[str, Any]:
    """TRL's settings that both algorithms share."""
    parameters: SFT | RL = job.parameters
    rows, passes = job.compute.share_rows(parameters.rows_per_update)
    warmup = round(parameters.warmup_ratio * parameters.updates)
    schedule: str = parameters.lr_schedule
    if schedule == "constant" and warmup:  # Transformers' own knows no warming up
        schedule = "constant_with_warmup"
    return {
        "output_dir": str(job.folder),
        "max_steps": parameters.updates,
        "learning_rate": parameters.learning_rate,
        "lr_scheduler_type": schedule,
        "warmup_steps": warmup,
        "max_grad_norm": parameters.max_grad_norm,
        "weight_decay": parameters.weight_decay,
        "seed": job.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": job.compute.resume_every_updates,
        "report_to": "none",
        "disable_tqdm": True,
        "activation_checkpointing": job.compute.gradient_checkpointing,
        "optim": OPTIMIZERS[parameters.optimizer],
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": passes,
        "bf16": job.compute.bf16,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
    }


def _trained_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Copies, in the main memory: a GPU has better use for its own."""
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            yield name, weight.detach().to("cpu", copy=True)


def _relative_change(
    before: Mapping[str, torch.Tensor], after: Iterable[tuple[str, torch.Tensor]]
) -> float:
    changed = total = 0.0
    for name, weight in after:
        changed += float((weight - before[name]).square().sum())
        total += float(before[name].square().sum())
    return float((changed / total) ** 0.5)
