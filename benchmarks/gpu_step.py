"""Where a GRPO update of Qwen2-VL-2B goes on a GPU: ours against stock, part by part.

The model has the 2B's real shape and random weights; prompts hold a 480 x 320 picture. Completions
are of fixed length, since random weights never end one. The default lengths are meant to take less
than 8 minutes and 60 GB. ``--shape tiny`` runs the same code on a CPU in seconds, to try it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isnan, nan
from statistics import median
from time import perf_counter
from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from trl.trainer.utils import add_fused_lm_head

from benchmarks.harness import merge, store
from othink_pipeline.models.prompts import Prompt, collate
from othink_pipeline.models.sampling import sample
from othink_pipeline.training.packing import pack

COPIES, TEXT_TOKENS = 8, 80
LENGTHS = (64, 128, 256, 512, 1024)
ROUNDS_OF_TOKENS = 320
"""So many completion tokens are measured in turns again and again, longer ones once."""
WARM_UP_TOKENS = 8
"""Of a completion: the first ones take all that the later ones do."""
PICTURE = (480, 320)
PARTS = ("generate", "reference", "forward + backward")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
SPECIAL = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")


def build(shape: str, device: str, attention: str = "sdpa") -> Any:
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
            config,
            dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            attn_implementation=attention,
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


def generators(
    model: Any, rows: Sequence[Prompt], ends: Sequence[int] = ()
) -> dict[str, Callable[[int], list[list[int]]]]:
    """Ours and stock's way to sample so many tokens for each row, or up to one of ``ends``."""

    def ours(tokens: int) -> list[list[int]]:
        return sample(
            model,
            rows,
            max_tokens=tokens,
            eos_token_ids=ends or [-1],
            pad_token_id=0,
            temperature=1.0,
            suppressed=[model.config.image_token_id],
        ).ids

    def stock(tokens: int) -> list[list[int]]:
        inputs = collate(rows, 0, model.device)
        options = {"eos_token_id": list(ends)} if ends else {"min_new_tokens": tokens}
        generated = model.generate(
            **inputs,
            **options,
            max_new_tokens=tokens,
            do_sample=True,
            top_k=0,
            suppress_tokens=[model.config.image_token_id],
            pad_token_id=0,
            disable_compile=True,
        )
        found: list[list[int]] = generated[:, inputs["input_ids"].shape[1] :].tolist()
        return found

    return {"stock": stock, "ours": ours}


def paths(
    model: Any, prompts: list[Prompt], completions: torch.Tensor, mask: torch.Tensor
) -> dict[str, dict[str, Callable[..., Any]]]:
    """Ours and stock TRL's way to do each part, on the same rows.

    ``one by one``: stock's reference at batch size 1, whose difference is that of rounding.
    """
    tokens = completions.shape[1]
    rows = [prompt for prompt in prompts for _ in range(COPIES)]

    def ours_log_probs() -> torch.Tensor:
        packed = pack(model, rows, completions, mask, 0)
        outputs = model(**packed.inputs, shift_labels=packed.labels, fused_lm_head=True)
        found: torch.Tensor = outputs.log_probs[0, packed.places]
        return found

    def stock_log_probs(some: slice = slice(None)) -> torch.Tensor:
        inputs = collate(rows[some], 0, model.device)
        ids = torch.cat([inputs["input_ids"], completions[some]], 1)
        labels = torch.nn.functional.pad(
            completions[some].where(mask[some] == 1, -100),
            (ids.shape[1] - tokens, 0),
            value=-100,
        )
        read = torch.cat([inputs["attention_mask"], mask[some]], 1)
        inputs |= {"input_ids": ids, "attention_mask": read}
        kinds = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, tokens))
        found: torch.Tensor = model(**inputs, labels=labels, fused_lm_head=True).log_probs
        return found[:, -tokens:]

    def one_by_one() -> torch.Tensor:
        return torch.cat([stock_log_probs(slice(row, row + 1)) for row in range(len(rows))])

    def without_gradient(log_probs: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        return torch.no_grad()(log_probs)

    def with_gradient(log_probs: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def run() -> None:
            try:
                log_probs().mean().backward()
            finally:  # or they would stand in the next part's memory
                model.zero_grad(set_to_none=True)

        return run

    log_probs = {"ours": ours_log_probs, "stock": stock_log_probs}
    both: dict[str, dict[str, Callable[..., Any]]] = {
        name: {
            "generate": partial(generate, tokens),
            "warm up": partial(generate, min(tokens, WARM_UP_TOKENS)),
            "reference": without_gradient(log_probs[name]),
            "forward + backward": with_gradient(log_probs[name]),
        }
        for name, generate in generators(model, rows).items()
    }
    both["stock"]["one by one"] = without_gradient(one_by_one)
    return both


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


def timed_if_it_fits(function: Callable[[], Any], device: str) -> tuple[float, float]:
    """As ``timed``; NaN where the memory runs out."""
    try:
        return timed(function, device)
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()  # not before: the exception holds what was computed
    return nan, nan


def take_turns(
    both: dict[str, dict[str, Callable[[], Any]]], part: str, rounds: int, device: str
) -> dict[str, tuple[float, float]]:
    """Of each its median seconds and its peak memory in GB; NaN where that ran out."""
    warm_up = "warm up" if part == "generate" else part
    taken = {name: [timed_if_it_fits(both[name][warm_up], device)] for name in both}
    for _ in range(rounds):
        for name, so_far in taken.items():
            if not isnan(so_far[-1][0]):
                so_far.append(timed_if_it_fits(both[name][part], device))
    return {
        name: (nan, nan)
        if isnan(so_far[-1][0])
        else (median(seconds for seconds, _ in so_far[1:]), so_far[-1][1])
        for name, so_far in taken.items()
    }


def compare(both: dict[str, dict[str, Callable[[], Any]]]) -> tuple[float, float]:
    """How far ours is from stock, and stock from itself at batch size 1; NaN: out of memory."""
    try:
        stock = both["stock"]["reference"]()
        ours, alone = both["ours"]["reference"](), both["stock"]["one by one"]()
        return float((ours - stock).abs().max()), float((alone - stock).abs().max())
    except torch.OutOfMemoryError:
        pass
    torch.cuda.empty_cache()
    return nan, nan


def matrix_rate(device: str) -> float:
    """Floating point operations a second of a large matrix product: the ceiling."""
    size = 8192 if device == "cuda" else 512
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = [timed(lambda: a @ b, device)[0] for _ in range(20)]
    return 2 * size**3 / min(seconds)


def measure(
    shape: str, device: str, prompts: int, lengths: Sequence[int], attention: str = "sdpa"
) -> Iterator[dict[str, Any]]:
    """A row for each completion length and part: seconds, ratio, memory, share of the ceiling."""
    model = build(shape, device, attention)
    # As in training: the 2B's activations of 1,024 tokens would fill more than 100 GB.
    model.gradient_checkpointing_enable({"use_reentrant": False})
    ceiling = matrix_rate(device)
    vision = sum(weight.numel() for weight in model.model.visual.parameters())
    layers = sum(weight.numel() for weight in model.model.language_model.layers.parameters())
    head = model.lm_head.weight.numel()
    drawn = [draw_prompt(model, seed) for seed in range(prompts)]
    patches = len(drawn[0].image_fields["pixel_values"])
    for tokens in lengths:
        shape_of = (prompts * COPIES, tokens)
        completions = torch.randint(0, model.config.vision_start_token_id, shape_of, device=device)
        both = paths(model, drawn, completions, torch.ones_like(completions))
        model.eval()
        difference, rounding = compare(both)
        read = len(drawn[0].ids)
        # Operations: 2 a weight and token, matrices alone; the head works on completions alone.
        answered = prompts * COPIES * tokens * (layers + head)
        done = {
            "ours": 2 * (prompts * (vision * patches + layers * read) + answered),
            "stock": 2 * (prompts * COPIES * (vision * patches + layers * read) + answered),
        }
        for part in PARTS:
            model.train(part == "forward + backward")  # else no activations are kept, but a cache
            found = take_turns(both, part, max(1, ROUNDS_OF_TOKENS // tokens), device)
            (stock, stock_gb), (ours, ours_gb) = found["stock"], found["ours"]
            passes = 4 if model.training else 1  # forward twice, backward for inputs and weights
            yield {
                "attention": attention,
                "prompts": prompts,
                "completion tokens": tokens,
                "part": part,
                "stock s": stock,
                "ours s": ours,
                "times faster": stock / ours,
                "ours tokens/s": nan if isnan(ours) else round(prompts * COPIES * tokens / ours),
                "stock GB": stock_gb,
                "ours GB": ours_gb,
                "stock share of ceiling": passes * done["stock"] / stock / ceiling,
                "ours share of ceiling": passes * done["ours"] / ours / ceiling,
                "largest difference": difference,
                "stock at batch size 1": rounding,
            }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("2b", "tiny"), default="2b")
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--completion-tokens", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--attention", choices=ATTENTIONS, default="sdpa")
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if options.shape == "2b" and not on_gpu:
        raise SystemExit("no GPU: --shape tiny runs the same code on the CPU")
    sizes = options.prompts, options.completion_tokens, options.attention
    for row in measure(options.shape, "cuda" if on_gpu else "cpu", *sizes):
        print(row, flush=True)
        if options.shape == "2b":
            rows = merge("gpu_step", row, ("attention", "prompts", "completion tokens", "part"))
            store(
                "gpu_step",
                "The parts of a GRPO update of Qwen2-VL-2B on a GPU",
                rows,
                f"The 2B's shape with random weights in bfloat16, {COPIES} completions of fixed "
                "length to each prompt, pictures of 480 x 320. Share of ceiling: matrix operations "
                "of the model, those done again for the backward pass included, over those of a "
                "plain matrix product in the same time. Largest difference: of log-probabilities, "
                "beside how far stock's own at batch size 1 are from its batch's. –: the memory "
                "ran out.",
            )
