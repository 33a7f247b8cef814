"""The models as they are published: their sizes, and how many tokens a picture takes.

No weight is made: the models stand on torch's meta device.
"""

from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, Qwen2VLImageProcessor

from tests.support.family_checkpoints import VISION

# The entries of each config.json that decide a model's shape, as the files lay them out.
QWEN2_VL_2B: dict[str, Any] = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_size": 1536,
        "num_heads": 16,
        "mlp_ratio": 4,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    },
}
QWEN2_5_VL_3B: dict[str, Any] = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "rope_theta": 1000000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    },
}
QWEN3_VL_2B: dict[str, Any] = {
    "tie_word_embeddings": True,
    "text_config": {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
        "rope_theta": 5000000,
        "rope_scaling": {
            "rope_type": "default",
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
        },
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2048,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}
SMOLVLM_256M: dict[str, Any] = {
    "scale_factor": 4,
    "image_token_id": 49190,
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49280,
    },
    "vision_config": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 512,
        "patch_size": 16,
    },
}
WEIGHT_FILES_BYTES = 3_988_609_112 + 429_441_656  # Qwen2-VL-2B-Instruct, in bfloat16


def on_paper(family: str, published: dict[str, Any]) -> Any:
    config = AutoConfig.for_model(family, **published)
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


@pytest.mark.parametrize(
    ("family", "published", "parameters"),
    [
        ("qwen2_vl", QWEN2_VL_2B, 2_208_985_600),
        ("qwen2_5_vl", QWEN2_5_VL_3B, 3_754_622_976),
        ("qwen3_vl", QWEN3_VL_2B, 2_127_532_032),
        ("idefics3", SMOLVLM_256M, 256_484_928),
    ],
)
def test_the_published_shape_has_the_published_number_of_parameters(
    family: str, published: dict[str, Any], parameters: int
) -> None:
    model = on_paper(family, published)
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_qwen2_vl_2b_fills_its_weight_files_but_for_their_headers() -> None:
    model = on_paper("qwen2_vl", QWEN2_VL_2B)
    weights = list(model.parameters())
    headers = WEIGHT_FILES_BYTES - 2 * sum(weight.numel() for weight in weights)
    assert 50 < headers / len(weights) < 200  # a name, a type, a shape and two offsets each
    text = model.config.get_text_config()
    assert text.rope_parameters["mrope_section"] == [16, 24, 24]
    assert text.rope_parameters["rope_theta"] == 1e6
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_tiny_models_cut_pictures_as_the_published_ones_do() -> None:
    published = {"qwen2_vl": QWEN2_VL_2B, "qwen2_5_vl": QWEN2_5_VL_3B, "qwen3_vl": QWEN3_VL_2B}
    for family, config in published.items():
        for name in ("patch_size", "spatial_merge_size", "temporal_patch_size"):
            assert VISION[family][name] == config["vision_config"][name]


@pytest.mark.parametrize("max_pixels", [None, 16384 * 28 * 28, 401_408])
def test_a_clevr_picture_takes_187_tokens_of_qwen2_vl(max_pixels: int | None) -> None:
    # R1-V trains with at most 401,408 pixels and tests without a bound: for pictures of 480 x 320
    # it is the same.
    processor = Qwen2VLImageProcessor(**({} if max_pixels is None else {"max_pixels": max_pixels}))
    made = processor(Image.new("RGB", (480, 320)), return_tensors="pt")
    assert made["image_grid_thw"].tolist() == [[1, 22, 34]]
    assert 22 * 34 // processor.merge_size**2 == 17 * 11 == 187
    assert made["pixel_values"].shape == (22 * 34, 3 * 2 * 14 * 14)
