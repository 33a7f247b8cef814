"""Where a GRPO update of Qwen2-VL-2B goes on a GPU: ours against stock, part by part.

The model has the 2B's real shape and random weights; prompts hold a 480 x 320 picture. Completions
are of fixed length, since random weights never end one. The default lengths are meant to take less
than 8 minutes and 60 GB. ``--shape tiny`` runs the same code on a CPU in seconds, to try it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from benchmarks.harness import record
from othink_pipeline.models.prompts import Prompt, collate
from othink_pipeline.models.sampling import sample
from othink_pipeline.training.packing import pack

COPIES, TEXT_TOKENS = 8, 80
LENGTHS = (64, 128, 256, 512, 1024)
ROUNDS_OF_TOKENS = 320
"""So many completion tokens are measured in turns again and again, longer ones once."""
PICTURE = (480, 320)
PARTS = ("generate", "reference", "forward + backward")
SPECIAL = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")


def build(shape: str, device: str) -> Any:
    """A Qwen2-VL with random weights: the shape of the 2B, or a tiny one."""
    if shape == "2b":  # config.json of Qwen/Qwen2-VL-2B-Instruct
        text = {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "max_position_embeddings": 32768,
        }
        vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16}
        sections, first_special = [16, 24, 24], 151652
    else:
        text = {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 512,
            "max_position_embeddings": 1024,
        }
        vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
        sections, first_special = [2, 3, 3], 500
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e6}
    config = Qwen2VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={**vision, "patch_size": 14},
        tie_word_embeddings=True,
        **{name: first_special + number for number, name in enumerate(SPECIAL)},
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration._from_config(
            config, dtype=torch.bfloat16 if device == "cuda" else torch.float32
        )
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return model.train()


def draw_prompt(model: Any, seed: int) -> Prompt:
    """Random text around a random picture of 480 x 320, as many tokens as the processor makes."""
    noise = torch.Generator().manual_seed(seed)
    high, wide = (2 * round(side / 28) for side in reversed(PICTURE))  # patches: 28 is two of them
    text = torch.randint(0, model.config.vision_start_token_id, (TEXT_TOKENS,), generator=noise)
    picture = torch.full((high * wide // 4,), model.config.image_token_id)
    ids = torch.cat([text[:20], picture, text[20:]])
    return Prompt(
        ids,
        {"mm_token_type_ids": (ids == model.config.image_token_id).long()},
        {
            "pixel_values": torch.randn(high * wide, 3 * 2 * 14 * 14, generator=noise),
            "image_grid_thw": torch.tensor([[1, high, wide]]),
        },
        (),
    )


def paths(
    model: Any, prompts: list[Prompt], completions: torch.Tensor, mask: torch.Tensor
) -> dict[str, dict[str, Callable[[], Any]]]:
    """Ours and stock TRL's way to do each part, on the same rows."""
    tokens = completions.shape[1]
    rows = [prompt for prompt in prompts for _ in range(COPIES)]

    def ours_log_probs() -> torch.Tensor:
        packed = pack(model, rows, completions, mask, 0)
        outputs = model(**packed.inputs, shift_labels=packed.labels, fused_lm_head=True)
        found: torch.Tensor = outputs.log_probs[0, packed.places]
        return found

    def stock_log_probs() -> torch.Tensor:
        inputs = collate(rows, 0, model.device)
        ids = torch.cat([inputs["input_ids"], completions], 1)
        labels = torch.nn.functional.pad(
            completions.where(mask == 1, -100), (ids.shape[1] - tokens, 0), value=-100
        )
        read = torch.cat([inputs["attention_mask"], mask], 1)
        inputs |= {"input_ids": ids, "attention_mask": read}
        kinds = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, tokens))
        found: torch.Tensor = model(**inputs, labels=labels, fused_lm_head=True).log_probs
        return found[:, -tokens:]

    def without_gradient(log_probs: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        return torch.no_grad()(log_probs)

    def with_gradient(log_probs: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            model.zero_grad(set_to_none=True)
            log_probs().mean().backward()

        return run

    def ours_generate() -> None:
        sample(
            model,
            rows,
            max_tokens=tokens,
            eos_token_ids=[-1],
            pad_token_id=0,
            temperature=1.0,
            suppressed=[model.config.image_token_id],
        )

    def stock_generate() -> None:
        inputs = collate(rows, 0, model.device)
        model.generate(
            **inputs,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=True,
            top_k=0,
            suppress_tokens=[model.config.image_token_id],
            pad_token_id=0,
            disable_compile=True,
        )

    return {
        "ours": dict(
            zip(
                PARTS,
                (ours_generate, without_gradient(ours_log_probs), with_gradient(ours_log_probs)),
                strict=True,
            )
        ),
        "stock": dict(
            zip(
                PARTS,
                (stock_generate, without_gradient(stock_log_probs), with_gradient(stock_log_probs)),
                strict=True,
            )
        ),
    }


def timed(function: Callable[[], Any], device: str) -> tuple[float, float]:
    """Seconds, and peak memory in GB (0 on a CPU)."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = perf_counter() - started
    return seconds, torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0


def matrix_rate(device: str) -> float:
    """Floating point operations a second of a large matrix product: the ceiling."""
    size = 8192 if device == "cuda" else 512
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: a @ b, device)[0] for _ in range(20)]
    return 2 * size**3 / min(seconds)


def measure(
    shape: str, device: str, prompts: int, lengths: tuple[int, ...]
) -> list[dict[str, Any]]:
    """A row for each completion length and part: seconds, ratio, memory, share of the ceiling."""
    model = build(shape, device)
    # As in training: the 2B's activations of 1,024 tokens would fill more than 100 GB.
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ceiling = matrix_rate(device)
    vision = sum(weight.numel() for weight in model.model.visual.parameters())
    layers = sum(weight.numel() for weight in model.model.language_model.layers.parameters())
    head = model.lm_head.weight.numel()
    drawn = [draw_prompt(model, seed) for seed in range(prompts)]
    patches = len(drawn[0].image_fields["pixel_values"])
    table = []
    for tokens in lengths:
        shape_of = (prompts * COPIES, tokens)
        completions = torch.randint(0, model.config.vision_start_token_id, shape_of, device=device)
        both = paths(model, drawn, completions, torch.ones_like(completions))
        model.eval()
        with torch.no_grad():
            difference = (both["ours"]["reference"]() - both["stock"]["reference"]()).abs().max()
        read = len(drawn[0].ids)
        # Operations: 2 a weight and token, matrices alone; the head works on completions alone.
        answered = prompts * COPIES * tokens * (layers + head)
        done = {
            "ours": 2 * (prompts * (vision * patches + layers * read) + answered),
            "stock": 2 * (prompts * COPIES * (vision * patches + layers * read) + answered),
        }
        rounds = max(1, ROUNDS_OF_TOKENS // tokens)
        for part in PARTS:
            model.train(part == "forward + backward")  # else no activations are kept, but a cache
            for name in both:
                timed(both[name][part], device)  # warm up
            seconds: dict[str, list[float]] = {name: [] for name in both}
            memory: dict[str, float] = {}
            for _ in range(rounds):
                for name in both:
                    taken, memory[name] = timed(both[name][part], device)
                    seconds[name].append(taken)
            middle = {name: median(seconds[name]) for name in both}
            passes = 4 if model.training else 1  # forward twice, backward for inputs and weights
            table.append(
                {
                    "completion tokens": tokens,
                    "part": part,
                    "stock s": middle["stock"],
                    "ours s": middle["ours"],
                    "times faster": middle["stock"] / middle["ours"],
                    "ours tokens/s": round(prompts * COPIES * tokens / middle["ours"]),
                    "stock GB": memory["stock"],
                    "ours GB": memory["ours"],
                    "stock share of ceiling": passes * done["stock"] / middle["stock"] / ceiling,
                    "ours share of ceiling": passes * done["ours"] / middle["ours"] / ceiling,
                    "largest difference": float(difference),
                }
            )
    return table


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("2b", "tiny"), default="2b")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--completion-tokens", type=int, nargs="+", default=LENGTHS)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if options.shape == "2b" and not on_gpu:
        raise SystemExit("no GPU: --shape tiny runs the same code on the CPU")
    rows = measure(
        options.shape,
        "cuda" if on_gpu else "cpu",
        options.prompts,
        tuple(options.completion_tokens),
    )
    if options.shape == "2b":
        record(
            "gpu_step",
            "The parts of a GRPO update of Qwen2-VL-2B on a GPU",
            rows,
            f"The 2B's shape with random weights in bfloat16, {options.prompts} prompts x "
            f"{COPIES} completions of fixed length, pictures of 480 x 320. Share of ceiling: "
            "matrix operations of the model, those done again for the backward pass included, over "
            "those of a plain matrix product in the same time.",
        )
    else:
        for row in rows:
            print(row)
