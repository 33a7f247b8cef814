"""Tiny models with random weights of every family, and prompts made for them by hand."""

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText

from othink_pipeline.models.prompts import Prompt

VOCABULARY, IMAGE_TOKEN, START, END = 64, 60, 61, 62
TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MROPE = {"rope_type": "default", "type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
TOKENS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 63,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
}


def qwen2_vl() -> dict[str, Any]:
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 4}
    return {"text_config": {**TEXT, "rope_parameters": MROPE}, "vision_config": vision, **TOKENS}


def qwen2_5_vl() -> dict[str, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 64,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return {"text_config": {**TEXT, "rope_parameters": MROPE}, "vision_config": vision, **TOKENS}


def qwen3_vl() -> dict[str, Any]:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    text = {**TEXT, "head_dim": 16, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
    return {"text_config": text, "vision_config": vision, **TOKENS}


def smolvlm() -> dict[str, Any]:
    vision = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    text = {**TEXT, "model_type": "llama"}
    return {
        "text_config": text,
        "vision_config": vision,
        "image_token_id": IMAGE_TOKEN,
        "scale_factor": 2,
        "pad_token_id": 0,
    }


FAMILIES: dict[str, Callable[[], dict[str, Any]]] = {
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": smolvlm,
}


def build(family: str, **text_changes: Any) -> Any:
    """A model whose every logit depends on the whole sequence: large random weights."""
    sizes = FAMILIES[family]()
    sizes["text_config"] = {**sizes["text_config"], **text_changes}
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **sizes))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
    return model.eval()


def prompt(family: str, seed: int, words: int, pictures: int = 1) -> Prompt:
    """``words`` random text tokens before, between and after so many random pictures."""
    noise = torch.Generator().manual_seed(seed)

    def text() -> list[int]:
        return torch.randint(3, IMAGE_TOKEN, (words,), generator=noise).tolist()

    if family == "smolvlm":  # 16 patches a picture, 2 x 2 of them a token
        ids = text()
        for _ in range(pictures):
            ids += [IMAGE_TOKEN] * 4 + text()
        pixels = torch.randn(1, pictures, 3, 16, 16, generator=noise)
        fields = {"pixel_values": pixels}
        return Prompt(torch.tensor(ids), {}, fields, (None,) * pictures)  # type: ignore[arg-type]
    grids = [[1, 4, 4], [1, 2, 6]]  # patches in time, height, width; 2 x 2 of them a token
    ids, patches = text(), 0
    for picture in range(pictures):
        grid = grids[(seed + picture) % 2]
        tokens = grid[1] * grid[2] // 4
        patches += grid[1] * grid[2]
        ids += [START, *[IMAGE_TOKEN] * tokens, END, *text()]
    fields = {
        "pixel_values": torch.randn(patches, 3 * 2 * 4 * 4, generator=noise),
        "image_grid_thw": torch.tensor([grids[(seed + p) % 2] for p in range(pictures)]),
    }
    kinds = {"mm_token_type_ids": (torch.tensor(ids) == IMAGE_TOKEN).long()}
    return Prompt(torch.tensor(ids), kinds, fields, (None,) * pictures)  # type: ignore[arg-type]


def image_tokens(processor: Any, width: int, height: int) -> int:
    """How many image tokens a picture of so many pixels becomes, the marks around it left out."""
    blank = Image.new("RGB", (width, height))
    made = processor(images=[[blank]], text=[processor.image_token], return_tensors="pt")
    return int((made["input_ids"] == processor.image_token_id).sum())
