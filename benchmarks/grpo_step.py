"""One GRPO update: ours against stock TRL's GRPOTrainer, on the embedded default's own cell."""

from __future__ import annotations

from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import Peer, Turn, record, take_turns

UPDATES = 48  # as conf/base: the completions grow from 11 to some 40 tokens on the way


def train(turn: Turn, kind: str, image_pixels: int, copies: int, updates: int, tokens: int) -> Any:
    """Train GRPO on counting from the shipped base model; the logged losses and rewards."""
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.inputs import BASE_MODEL, PROMPT, counting_examples, stock_rows
    from othink_pipeline.grpo import SharedPromptTrainer
    from othink_pipeline.models import load_model
    from othink_pipeline.rewards import accuracy_reward, format_reward
    from othink_pipeline.training_data import rl_rows

    model, processor = load_model(str(BASE_MODEL))
    examples = counting_examples(16 * (updates + 1), image_pixels)
    rows = stock_rows(examples) if kind == "stock" else rl_rows(examples, PROMPT, processor)
    with TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            beta=0.04,
            loss_type="grpo",
            max_steps=updates,
            per_device_train_batch_size=16 * copies,
            num_generations=copies,
            max_completion_length=tokens,
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            shuffle_dataset=False,
            activation_checkpointing=False,
            bf16=False,
            use_cpu=True,
            seed=0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = (GRPOTrainer if kind == "stock" else SharedPromptTrainer)(
            model=model,
            reward_funcs=[accuracy_reward, format_reward],
            args=config,
            train_dataset=rows,
            processing_class=processor,
        )
        trainer.remove_callback(PrinterCallback)
        step = trainer.training_step

        def timed_step(*args: Any, **kwargs: Any) -> Any:
            turn()
            return step(*args, **kwargs)

        trainer.training_step = timed_step
        trainer.train()
        turn()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    shared = {entry.get("shared_prompts", 0.0) for entry in logged}
    if kind != "stock" and shared != {1.0}:
        raise RuntimeError("the shared computation fell back to TRL's own: this measures nothing")
    names = ("loss", "reward", "kl", "completions/mean_length")
    return [{name: entry[name] for name in names} for entry in logged]


def compare(image_pixels: int, copies: int, updates: int, tokens: int) -> dict[str, Any]:
    """Both trainers in turns: seconds an update, their ratio, memory, and how the losses differ."""
    peers = {
        name: Peer(train, name, image_pixels, copies, updates, tokens) for name in ("stock", "ours")
    }
    take_turns(peers.values(), updates)
    ended = {name: peer.finish() for name, peer in peers.items()}
    stock, ours = (peers[name].seconds[1:] for name in ("stock", "ours"))  # the first warms up
    logged = {name: result for name, (result, _) in ended.items()}
    different = [
        abs(mine["loss"] - theirs["loss"])
        for mine, theirs in zip(logged["ours"], logged["stock"], strict=True)
    ]
    return {
        "stock s": median(stock),
        "ours s": median(ours),
        "times faster": sum(stock) / sum(ours),
        "stock GB": ended["stock"][1],
        "ours GB": ended["ours"][1],
        "tokens a completion": sum(entry["completions/mean_length"] for entry in logged["ours"])
        / updates,
        "largest |loss difference|": max(different),
        "largest |loss|": max(abs(entry["loss"]) for entry in logged["stock"]),
    }


if __name__ == "__main__":
    record(
        "grpo_step",
        "One GRPO update against stock TRL",
        [compare(64, 8, UPDATES, 72)],
        "The default cell `counting.grpo`: mini Qwen2-VL, 16 prompts x 8 completions, 48 "
        "updates, seed 0. Stock: TRL's `GRPOTrainer`, same model, data, seed and settings. "
        "Seconds an update: medians; times faster: ratio of the sums. Both sample the same "
        "tokens as long as rounding lets them.",
    )
