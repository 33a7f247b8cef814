"""One GRPO update: ours against stock TRL's GRPOTrainer, at the sizes of the embedded default."""

from __future__ import annotations

from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import Peer, Turn, record, take_turns

UPDATES = 48  # as conf/base: the completions grow from 11 to some 40 tokens on the way


def train(turn: Turn, kind: str, image_tokens: int, copies: int, updates: int, tokens: int) -> Any:
    """Train GRPO on counting from the shipped base model; what TRL logged at every update."""
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from benchmarks.inputs import (
        BASE_MODEL,
        PROMPT,
        counting_examples,
        show_image_tokens,
        stock_rows,
    )
    from othink_pipeline.models.load import load_model
    from othink_pipeline.training.rewards import accuracy_reward, format_reward
    from othink_pipeline.training.rows import rl_rows
    from othink_pipeline.training.shared_prompts import SharedPromptTrainer

    model, processor = load_model(str(BASE_MODEL))
    examples = counting_examples(16 * (updates + 1), image_tokens)
    show_image_tokens(processor, examples, image_tokens)
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


def run(image_tokens: int, copies: int, updates: int, tokens: int) -> tuple[Any, Any]:
    """Both trainers in turns: the peers, and for each what it logged and its peak memory."""
    sizes = (image_tokens, copies, updates, tokens)
    peers = {name: Peer(train, name, *sizes) for name in ("stock", "ours")}
    take_turns(peers.values(), updates)
    return peers, {name: peer.finish() for name, peer in peers.items()}


def compare(peers: Any, ended: Any, updates: slice) -> dict[str, Any]:
    """Seconds an update over some updates, their ratio, memory, and how far the losses differ."""
    stock, ours = (peers[name].seconds[updates] for name in ("stock", "ours"))
    logged = {name: result[updates] for name, (result, _) in ended.items()}
    return {
        "updates": f"{updates.start + 1} to {updates.stop}",
        "tokens a completion": mean(row["completions/mean_length"] for row in logged["ours"]),
        "stock s": median(stock),
        "ours s": median(ours),
        "times faster": sum(stock) / sum(ours),
        "stock GB": ended["stock"][1],
        "ours GB": ended["ours"][1],
        "largest loss": max(abs(row["loss"]) for row in logged["stock"]),
        "largest difference": max(
            abs(mine["loss"] - theirs["loss"])
            for mine, theirs in zip(logged["ours"], logged["stock"], strict=True)
        ),
    }


def parting(ended: Any) -> int:
    """The first update whose completions differ, or the number of updates."""
    rewards = [[row["reward"] for row in ended[name][0]] for name in ("stock", "ours")]
    lengths = [[row["completions/mean_length"] for row in ended[name][0]] for name in ended]
    differs = [a != b or c != d for a, b, c, d in zip(*rewards, *lengths, strict=True)]
    return differs.index(True) if any(differs) else len(differs)


if __name__ == "__main__":
    peers, ended = run(16, 8, UPDATES, 72)
    same = parting(ended)
    parts = [slice(1, same), slice(same, UPDATES)] if 1 < same < UPDATES else []
    record(
        "grpo_step",
        "One GRPO update against stock TRL",
        [compare(peers, ended, part) for part in [*parts, slice(1, UPDATES)]],
        "Counting, from the shipped mini Qwen2-VL: 16 prompts x 8 completions of at most 72 "
        f"tokens, {UPDATES} updates. Stock: TRL's `GRPOTrainer` with the same model, data, seed "
        "and settings. s: median of an update; times faster: ratio of the sums. The first update "
        "warms up and is left out (ours also tests itself against TRL's computation in it). Until "
        "one token falls out otherwise by rounding, both sample the same tokens and have the same "
        "losses; after that they are two runs of one experiment. Completions grow as the policy "
        "learns to think, and with them what cannot be shared.",
    )
