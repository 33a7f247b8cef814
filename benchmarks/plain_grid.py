"""The grid of the embedded default as a plain script on stock TRL: the peer of ``grid.py``.

One process, one cell after the other: no pipeline, no tracking, no report. Only rewards and scores
are the project's own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    PrinterCallback,
    TrainerCallback,
)
from transformers.utils.logging import disable_progress_bar
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from benchmarks.inputs import BASE_MODEL, PROMPT
from othink_pipeline.scoring.strict import score
from othink_pipeline.training.rewards import accuracy_reward, format_reward

# The settings of conf/base.
TASKS = ("counting", "geometry")
METHODS = ("sft", "grpo", "grpo_d")
SEED = 0
PROMPTS, COPIES = 16, 8  # of an update; completions of each prompt
TOKENS = 72
VALIDATION_ITEMS, CHECKPOINTS = 200, 3
KL_WEIGHT = {"counting": 0.04, "geometry": 0.01}
KL_BOUNDS = {"counting": (0.04, 0.1), "geometry": (0.0, 0.02)}
EXPLORE_SHARE = 0.3
KL_FLOOR = 1e-6  # with a weight of 0 TRL loads no reference
SFT_RATE, RL_RATE = 1e-5, 1e-4
BATCH = 64

GPU = torch.cuda.is_available()

seconds: dict[str, float] = {}


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Add the block's seconds to a part of the work."""
    started = perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + perf_counter() - started


def load() -> tuple[Any, Any]:
    """The base model and its processor."""
    model: Any = AutoModelForImageTextToText.from_pretrained(BASE_MODEL)
    processor = AutoProcessor.from_pretrained(BASE_MODEL)
    processor.tokenizer.padding_side = "left"
    return model.to("cuda" if GPU else "cpu"), processor


def read(file: Path, items: int | None = None) -> Dataset:
    """The first examples of a split."""
    examples = Dataset.from_file(str(file), in_memory=True)
    return examples if items is None else examples.select(range(items))


def user_turn(question: str) -> list[dict[str, str]]:
    """The prompt as the trainers take it; they put the picture in."""
    return [{"role": "user", "content": PROMPT.replace("{question}", question)}]


def accuracy(model: Any, processor: Any, examples: Dataset) -> float:
    """Share of right greedy answers."""
    training = model.training
    model.eval()
    right = 0
    for start in range(0, len(examples), BATCH):
        rows = examples[start : start + BATCH]
        texts = [
            processor.apply_chat_template(
                [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image"},
                            {"type": "text", "text": PROMPT.replace("{question}", question)},
                        ],
                    }
                ],
                add_generation_prompt=True,
                tokenize=False,
            )
            for question in rows["question"]
        ]
        inputs = processor(images=rows["image"], text=texts, padding=True, return_tensors="pt")
        inputs = inputs.to(model.device)
        with torch.no_grad():
            generated = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        answers = processor.batch_decode(
            generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        right += sum(
            score(answer, gold).correct
            for answer, gold in zip(answers, rows["answer"], strict=True)
        )
    model.train(training)
    return right / len(examples)


class ScoreCheckpoints(TrainerCallback):
    """Saves and scores the model in the course of training; update 0 is the base model."""

    def __init__(self, processor: Any, validation: dict[str, Dataset], folder: Path) -> None:
        self.processor, self.validation, self.folder = processor, validation, folder
        self.accuracies: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Score the base model."""
        self.score(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and score a checkpoint when one is due."""
        step, last = state.global_step, state.max_steps
        if step % max(last // CHECKPOINTS, 1) and step < last:
            return
        kwargs["model"].save_pretrained(self.folder / f"update-{step}")
        self.processor.save_pretrained(self.folder / f"update-{step}")
        self.score(kwargs["model"])

    def score(self, model: Any) -> None:
        """Accuracy on every task's validation examples."""
        with timed("validation"):
            self.accuracies.append(
                {
                    task: accuracy(model, self.processor, examples)
                    for task, examples in self.validation.items()
                }
            )


class SetKLWeight(TrainerCallback):
    """GRPO-D: from the middle down to the least KL weight, then up to the greatest."""

    def __init__(self, trainer: GRPOTrainer, low: float, high: float) -> None:
        self.trainer, self.low, self.high = trainer, low, high

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Set the weight of the update that begins."""
        progress = state.global_step / max(state.max_steps - 1, 1)
        if progress <= EXPLORE_SHARE:
            weight = self.low + (self.high - self.low) / 2 * (1 - progress / EXPLORE_SHARE)
        else:
            rise = (progress - EXPLORE_SHARE) / (1 - EXPLORE_SHARE)
            weight = self.low + (self.high - self.low) * rise
        self.trainer.beta = max(weight, KL_FLOOR)


def train_sft(
    model: Any, processor: Any, examples: Dataset, common: dict[str, Any], watch: ScoreCheckpoints
) -> None:
    """Fine-tune on bare answers."""
    rows = examples.select_columns("image")
    rows = rows.add_column("prompt", [user_turn(question) for question in examples["question"]])
    rows = rows.add_column(
        "completion",
        [
            [{"role": "assistant", "content": f"<answer> {answer} </answer>"}]
            for answer in examples["answer"]
        ],
    )
    config = SFTConfig(
        **common,
        per_device_train_batch_size=PROMPTS,
        learning_rate=SFT_RATE,
        lr_scheduler_type="cosine",
        warmup_steps=round(0.1 * common["max_steps"]),
        completion_only_loss=True,
        max_length=None,
        train_sampling_strategy="sequential",
    )
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=rows,
        processing_class=processor,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def train_grpo(
    model: Any,
    processor: Any,
    examples: Dataset,
    common: dict[str, Any],
    watch: ScoreCheckpoints,
    task: str,
    dynamic: bool,
) -> None:
    """GRPO, or GRPO-D, with the KL weights of the task that is trained on."""
    rows = examples.select_columns(["image", "answer"])
    rows = rows.add_column("prompt", [user_turn(question) for question in examples["question"]])
    config = GRPOConfig(
        **common,
        per_device_train_batch_size=PROMPTS * COPIES,
        num_generations=COPIES,
        max_completion_length=TOKENS,
        learning_rate=RL_RATE,
        lr_scheduler_type="constant",
        temperature=1.0,
        beta=KL_WEIGHT[task],
        use_bias_correction_kl=False,
        loss_type="grpo",
        shuffle_dataset=False,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=[accuracy_reward, format_reward],
        args=config,
        train_dataset=rows,
        processing_class=processor,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    if dynamic:
        trainer.add_callback(SetKLWeight(trainer, *KL_BOUNDS[task]))
    trainer.train()


def main(updates: int, test_items: int, folder: Path, scratch: Path) -> dict[str, Any]:
    """The whole grid: the base model, then task by task and method by method."""
    train = {task: read(folder / task / "train.arrow") for task in TASKS}
    validation = {
        task: read(folder / task / "validation.arrow", VALIDATION_ITEMS) for task in TASKS
    }
    test = {task: read(folder / task / "test.arrow", test_items) for task in TASKS}
    accuracies: dict[str, float] = {}

    def test_on_all(name: str, model: Any, processor: Any) -> None:
        for task, examples in test.items():
            with timed("test"):
                accuracies[f"{name}.{task}"] = accuracy(model, processor, examples)
            print(f"{name} -> {task}: {accuracies[f'{name}.{task}']:.3f}", flush=True)

    test_on_all("none.base", *load())
    for task in TASKS:
        order = Random(SEED).sample(range(len(train[task])), len(train[task]))
        examples = train[task].select(order[: updates * PROMPTS])
        for method in METHODS:
            model, processor = load()
            watch = ScoreCheckpoints(processor, validation, scratch / task / method)
            common = {
                "output_dir": str(scratch / task / method),
                "max_steps": updates,
                "max_grad_norm": 1.0,
                "weight_decay": 0.0,
                "seed": SEED,
                "logging_steps": 1,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "activation_checkpointing": False,
                "bf16": GPU,
                "use_cpu": not GPU,
            }
            before = seconds.get("validation", 0.0)
            started = perf_counter()
            if method == "sft":
                train_sft(model, processor, examples, common, watch)
            else:
                is_dynamic = method == "grpo_d"
                train_grpo(model, processor, examples, common, watch, task, is_dynamic)
            apart = seconds["validation"] - before
            part = f"train {method}"
            seconds[part] = seconds.get(part, 0.0) + perf_counter() - started - apart
            test_on_all(f"{task}.{method}", model, processor)
    return {"seconds": seconds, "accuracies": accuracies}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--updates", type=int, default=48)
    parser.add_argument("--test-items", type=int, default=1000)
    parser.add_argument("--examples", type=Path, required=True, help="TASK/SPLIT.arrow are here")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of seconds, accuracies")
    options = parser.parse_args()
    disable_progress_bars()
    disable_progress_bar()
    with TemporaryDirectory() as scratch, timed("total"):
        result = main(options.updates, options.test_items, options.examples, Path(scratch))
    options.out.write_text(json.dumps(result, indent=2) + "\n")
