"""Make the mini base model from nothing: supervised training in two phases.

Every target has the asked format. In the first phase nearly all of them show worked steps, so that
the model learns to work; in the last phase most think blocks are empty, so that it mostly does
not. What post-training can find out is that working pays.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import publish_file
from othink_pipeline.models.mini_qwen2_vl import build_model, build_processor
from othink_pipeline.models.parameters import MiniModel
from othink_pipeline.models.prompts import render_prompt, user_message

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

LIMIT_MB = 8
"""The weights of a shipped model are at most this large."""

WARMUP_UPDATES = 50
FINAL_RATE = 0.05  # of the peak learning rate
SAVED_EVERY = 50  # updates: as often is the loss told, a mean of as many
TOKENIZER_EXAMPLES = 2000  # of each task
IGNORED = -100  # label of a token that the loss skips


def pretrain(
    examples: Mapping[str, Dataset],
    prompt: str,
    rebuild: MiniModel,
    log: Callable[[int, dict[str, float]], None],
    state: Path,
) -> tuple[Any, Any, dict[str, float]]:
    """Train tokenizer and model on the base splits of all tasks, mixed evenly.

    Args:
        examples: task to base split.
        prompt: template with ``{question}``.
        log: called with (update, metrics) after every update.
        state: the file that holds all of a training that was begun. One that is there is gone on
            with, and ends with the bits of an uninterrupted one: it must be of the same arguments.

    Returns:
        model, processor, and facts for the manifest: parameters, updates, seconds, final loss.

    Raises:
        ConfigurationError: the model would be too large to be shipped.
    """
    texts = [
        f"{user_message(prompt, question)} {steps}"
        for split in examples.values()
        for question, steps in zip(
            split["question"][:TOKENIZER_EXAMPLES], split["steps"][:TOKENIZER_EXAMPLES], strict=True
        )
    ]
    first = next(iter(examples.values()))[0]  # drawn pictures are square and of one size
    image_size_px = first["image"].width
    processor = build_processor(texts, rebuild.vocab_size, rebuild.context_tokens, image_size_px)
    model = build_model(processor, rebuild)
    if (size_mb := model.get_memory_footprint() / 1e6) > LIMIT_MB:
        raise ConfigurationError(
            f"the base model would have {size_mb:.1f} MB, over the limit of {LIMIT_MB} MB: make "
            "rebuild.hidden_size or .layers smaller"
        )
    training = _Training(model.train(), rebuild, list(examples))
    if state.exists():
        training.restore(state)
        logger.info("base model  goes on from update %d/%d", training.updates, rebuild.updates)
    losses, begun, before_s = training.losses, training.updates, training.seconds
    started = time.perf_counter()
    for update in range(begun, rebuild.updates):
        last_phase = update >= rebuild.updates - rebuild.last_phase_updates
        worked_rate = rebuild.last_phase_worked_rate if last_phase else rebuild.worked_rate
        rows = _draw_rows(examples, training.orders, rebuild.batch_size, training.rng)
        inputs, labels = _encode(processor, rows, prompt, worked_rate, training.rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=rebuild.bf16):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        training.optimizer.step()
        training.scheduler.step()
        training.optimizer.zero_grad()
        losses.append(loss.item())
        log(update + 1, {"train/loss": losses[-1]})
        seconds = time.perf_counter() - started
        training.seconds = before_s + seconds
        if (update + 1) % SAVED_EVERY == 0 or update + 1 == rebuild.updates:
            training.save(state)
            logger.info(
                "base model  update %d/%d  loss %.3f  %.0f s left",
                update + 1,
                rebuild.updates,
                _latest(losses),
                seconds / (update + 1 - begun) * (rebuild.updates - update - 1),
            )
    facts = {
        "parameters": model.num_parameters(),
        "updates": rebuild.updates,
        "seconds": round(training.seconds),
        "final_loss": round(_latest(losses), 4),
    }
    return model.eval(), processor, facts


class _Training:
    """All that an update depends on and changes."""

    _STATEFUL = ("model", "optimizer", "scheduler")
    _PLAIN = ("orders", "losses", "seconds")

    def __init__(self, model: Any, rebuild: MiniModel, tasks: list[str]) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=rebuild.learning_rate, betas=(0.9, 0.98), weight_decay=0.05
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda update: _rate(update, rebuild.updates)
        )
        self.rng = Random(rebuild.seed)
        self.orders: dict[str, list[int]] = {task: [] for task in tasks}
        self.losses: list[float] = []
        self.seconds = 0.0

    @property
    def updates(self) -> int:
        """So many are done."""
        return len(self.losses)

    def save(self, file: Path) -> None:
        """Write all of it, as plain values and tensors."""
        saved = {name: getattr(self, name).state_dict() for name in self._STATEFUL}
        saved |= {name: getattr(self, name) for name in self._PLAIN}
        with publish_file(file) as scratch:
            torch.save({**saved, "rng": self.rng.getstate()}, scratch)

    def restore(self, file: Path) -> None:
        """Go on from what was saved."""
        saved = torch.load(file, weights_only=True)
        for name in self._STATEFUL:
            getattr(self, name).load_state_dict(saved[name])
        for name in self._PLAIN:
            setattr(self, name, saved[name])
        self.rng.setstate(saved["rng"])


def _latest(losses: list[float]) -> float:
    """The mean of the last ones."""
    return sum(losses[-SAVED_EVERY:]) / len(losses[-SAVED_EVERY:])


def _rate(update: int, updates: int) -> float:
    """Learning rate relative to its peak: linear warm-up, then a cosine down to ``FINAL_RATE``."""
    cosine = 0.5 * (1 + math.cos(math.pi * update / updates))
    return min(1.0, (update + 1) / WARMUP_UPDATES) * (FINAL_RATE + (1 - FINAL_RATE) * cosine)


def _draw_rows(
    examples: Mapping[str, Dataset], orders: dict[str, list[int]], count: int, rng: Random
) -> list[dict[str, Any]]:
    """``count`` rows, task by task in turn, each task's split shuffled anew for every pass."""
    rows = []
    tasks = list(examples)
    for number in range(count):
        task = tasks[number % len(tasks)]
        if not orders[task]:
            orders[task] = rng.sample(range(len(examples[task])), len(examples[task]))
        rows.append(examples[task][orders[task].pop()])
    return rows


def _encode(
    processor: Any, rows: list[dict[str, Any]], prompt: str, worked_rate: float, rng: Random
) -> tuple[Any, torch.Tensor]:
    """Inputs and labels, both [B x T], padded on the right; labels skip prompt and padding."""
    prompts = [render_prompt(processor, prompt, row["question"]) for row in rows]
    targets = [
        f"<think>{row['steps'] if rng.random() < worked_rate else ''}</think>"
        f"<answer>{row['answer']}</answer>{processor.tokenizer.eos_token}"
        for row in rows
    ]
    inputs = processor(
        images=[row["image"] for row in rows],
        text=[start + target for start, target in zip(prompts, targets, strict=True)],
        padding=True,
        padding_side="right",
        return_tensors="pt",
    )
    target_tokens = [len(ids) for ids in processor.tokenizer(targets)["input_ids"]]
    labels = inputs["input_ids"].clone()
    position = torch.arange(labels.shape[1])
    for row, length in enumerate(inputs["attention_mask"].sum(1).tolist()):
        in_target = (position >= length - target_tokens[row]) & (position < length)
        labels[row, ~in_target] = IGNORED
    return inputs, labels
