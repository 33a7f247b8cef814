"""Checkpoints of every model family, laid out as they are published, but tiny and untrained.

Real are the classes, the layout of the files, the names and roles of the special tokens, the chat
format, the end tokens, and all that decides how many tokens a picture takes. Small are the layers
and the vocabulary, a byte-level BPE of a few texts.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    GPT2Tokenizer,
    Qwen2Tokenizer,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from othink_pipeline.models.mini_qwen2_vl import CHAT_TEMPLATE
from tests.support.families import MROPE, TEXT

QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TILE_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row, column in product(range(1, 7), repeat=2)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
)

# Qwen2-VL and Qwen2.5-VL say this by themselves where a conversation has no system message.
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
SYSTEM_TEMPLATE = f"{{% if messages[0]['role'] != 'system' %}}{SYSTEM}{{% endif %}}{CHAT_TEMPLATE}"
TILE_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% if message['content'][0]['type'] != 'image' %} {% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
TEMPLATES = {
    "qwen2_vl": SYSTEM_TEMPLATE,
    "qwen2_5_vl": SYSTEM_TEMPLATE,
    "qwen3_vl": CHAT_TEMPLATE,
    "idefics3": TILE_TEMPLATE,  # SmolVLM-256M and -500M
    "smolvlm": TILE_TEMPLATE,  # SmolVLM2
}
FAMILIES = tuple(TEMPLATES)

TEXTS = (
    "How many items are there in the image? What do all items cost? Find angle 4.",
    "A circle costs 2, a square 5, a triangle 1. 1*2=2, 2*5=10, 0*1=0, 2+10=12, 12+0=12",
    "with angle 4 they fill the shape. 60+20=80, 80+70=150, 360-150=210",
    "Output the thinking process in <think> </think> and final answer (number) in <answer> </answer"
    "> tags. system You are a helpful assistant. user assistant User: Assistant:",
)

SHAPE: dict[str, Any] = {**TEXT, "max_position_embeddings": 4096}
QWEN_VISION = {"spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 2}
VISION: dict[str, dict[str, Any]] = {
    "qwen2_vl": {**QWEN_VISION, "depth": 1, "embed_dim": 32, "hidden_size": 64, "patch_size": 14},
    "qwen2_5_vl": {
        **QWEN_VISION,
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    },
    "qwen3_vl": {
        **QWEN_VISION,
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "patch_size": 16,
        "num_position_embeddings": 48 * 48,
        "deepstack_visual_indexes": [0, 1],
    },
}
TILE_VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 512,
    "patch_size": 16,
}


def make_checkpoint(family: str, folder: Path) -> Path:
    """Write a checkpoint of one of ``FAMILIES`` with large random weights; returns its folder.

    Every logit depends on the whole prompt, and the end tokens are likely enough to come up.
    """
    tiles = family in ("idefics3", "smolvlm")
    tokenizer = _tokenizer(tiles)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (TILE_TOKENS + QWEN_TOKENS)}
    # As in the published ones, there are more embeddings than tokens.
    text = {**SHAPE, "vocab_size": len(tokenizer) + 10, "tie_word_embeddings": True}
    if tiles:
        ends = ids["<end_of_utterance>"]
        text |= {"model_type": "llama", "bos_token_id": ids["<|im_start|>"], "eos_token_id": ends}
        text["pad_token_id"] = ids["<|im_end|>"]
        sizes = {"vision_config": TILE_VISION, "scale_factor": 4, "image_token_id": ids["<image>"]}
        generation = {"bos_token_id": text["bos_token_id"], "eos_token_id": ends}
    else:
        text |= {"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]}
        text |= {"pad_token_id": None, "rope_parameters": dict(MROPE)}
        if family == "qwen3_vl":
            text |= {"head_dim": 16, "rope_parameters": {**MROPE, "mrope_interleaved": True}}
        sizes = {
            "vision_config": VISION[family],
            "image_token_id": ids["<|image_pad|>"],
            "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"],
            "vision_end_token_id": ids["<|vision_end|>"],
        }
        ends = [ids["<|im_end|>"], ids["<|endoftext|>"]]
        generation = {"bos_token_id": ends[1], "eos_token_id": ends, "do_sample": True}
        generation |= {"temperature": 0.1, "top_p": 0.001, "top_k": 1, "repetition_penalty": 1.05}
    config = AutoConfig.for_model(family, text_config=text, tie_word_embeddings=True, **sizes)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
        model.get_output_embeddings().weight[ends] *= 1.75
    model.generation_config = GenerationConfig(
        pad_token_id=ids["<|im_end|>" if tiles else "<|endoftext|>"], **generation
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _write_processor(family, folder)
    return folder


def _tokenizer(tiles: bool) -> Any:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    bpe.train_from_iterator(TEXTS, trainer)
    learnt = json.loads(bpe.to_str())["model"]
    parts = {
        "vocab": learnt["vocab"],
        "merges": [tuple(pair) for pair in learnt["merges"]],
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
    }
    if tiles:
        return _with_special(
            GPT2Tokenizer(
                **parts,
                bos_token="<|im_start|>",
                eos_token="<end_of_utterance>",
                pad_token="<|im_end|>",
                unk_token="<|endoftext|>",
            ),
            TILE_TOKENS,
        )
    return _with_special(
        Qwen2Tokenizer(**parts, eos_token="<|im_end|>", pad_token="<|endoftext|>"), QWEN_TOKENS
    )


def _with_special(tokenizer: Any, tokens: Sequence[str]) -> Any:
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return tokenizer


def _write_processor(family: str, folder: Path) -> None:
    qwen = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    clip = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    files: dict[str, dict[str, Any]] = {"chat_template": {"chat_template": TEMPLATES[family]}}
    if family in ("qwen2_vl", "qwen2_5_vl"):
        name = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}[family]
        files["preprocessor_config"] = {
            **qwen,
            **clip,
            "min_pixels": 56 * 56,
            "max_pixels": 16384 * 28 * 28,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": name,
        }
    elif family == "qwen3_vl":
        shared = {**qwen, **half, "patch_size": 16, "processor_class": "Qwen3VLProcessor"}
        files["preprocessor_config"] = {
            **shared,
            "size": {"shortest_edge": 256**2, "longest_edge": 4096**2},
            "image_processor_type": "Qwen2VLImageProcessorFast",
        }
        files["video_preprocessor_config"] = {
            **shared,
            "size": {"shortest_edge": 4096, "longest_edge": 25165824},
            "video_processor_type": "Qwen3VLVideoProcessor",
        }
    else:
        name = {"idefics3": "Idefics3", "smolvlm": "SmolVLM"}[family]
        files["preprocessor_config"] = {
            **half,
            "do_image_splitting": True,
            "do_pad": True,
            "resample": 1,
            "max_image_size": {"longest_edge": 512},
            "size": {"longest_edge": 2048},
            "image_processor_type": f"{name}ImageProcessor",
            "processor_class": f"{name}Processor",
        }
        files["processor_config"] = {"image_seq_len": 64, "processor_class": f"{name}Processor"}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
