"""The 2B model as it is published: its size."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

# The entries of config.json that decide the model's shape, as the file lays them out.
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
PARAMETERS = 2_208_985_600  # docs/paper.md names it
WEIGHT_FILES_BYTES = 3_988_609_112 + 429_441_656  # Qwen2-VL-2B-Instruct, in bfloat16


def test_qwen2_vl_2b_fills_its_weight_files_but_for_their_headers() -> None:
    config = AutoConfig.for_model("qwen2_vl", **QWEN2_VL_2B)
    with torch.device("meta"):  # no weight is made
        model = AutoModelForImageTextToText.from_config(config)
    weights = list(model.parameters())
    assert sum(weight.numel() for weight in weights) == PARAMETERS
    headers = WEIGHT_FILES_BYTES - 2 * PARAMETERS
    assert 50 < headers / len(weights) < 200  # a name, a type, a shape and two offsets each
    text = model.config.get_text_config()
    assert text.rope_parameters["mrope_section"] == [16, 24, 24]
    assert text.rope_parameters["rope_theta"] == 1e6
    assert model.lm_head.weight is model.get_input_embeddings().weight
