"""The mini Qwen2-VL: the real architecture, tokenizer kind, chat template and processor, small.

About 1.4 M parameters; a 64 x 64 image becomes 16 image tokens, as a 448 x 448 image becomes 256
in Qwen2-VL-2B. It is saved and loaded like any Hugging Face model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from othink_pipeline.models.parameters import MiniModel

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
"""Ordinary tokens (they survive ``skip_special_tokens``), whole so that format is learnt first."""

# Qwen2-VL's template, which adds "You are a helpful assistant." to a conversation without a system
# message. The mini model goes without.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH_PX = 8
MERGE = 2
HEAD_SIZE = 32
MROPE_SECTION = [4, 6, 6]  # time, height, width: half a head in all


def build_processor(
    texts: Iterable[str], vocab_size: int, context_tokens: int, image_size_px: int
) -> Qwen2VLProcessor:
    """Train a byte-level BPE on ``texts`` and wrap it with the Qwen2-VL image processor.

    Digits are single tokens, so that arithmetic is digit by digit.

    Args:
        texts: what the tokenizer learns from.
        vocab_size: tokens, the special ones among them.
        context_tokens: the longest prompt with its answer.
        image_size_px: width and height that every picture is scaled to have the pixels of.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|[^\s\w]| ?[^\s\d]+|\s+"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.add_tokens(list(TAGS))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens(list(TAGS))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=context_tokens,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    pixels = {"shortest_edge": image_size_px**2, "longest_edge": image_size_px**2}
    geometry: dict[str, Any] = {"patch_size": PATCH_PX, "merge_size": MERGE, "size": pixels}
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**geometry),
        tokenizer=fast,
        video_processor=Qwen2VLVideoProcessor(**geometry),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(processor: Qwen2VLProcessor, rebuild: MiniModel) -> Qwen2VLForConditionalGeneration:
    """A model with random weights that fits ``processor``."""
    tokenizer = processor.tokenizer
    token_id = tokenizer.convert_tokens_to_ids
    heads = rebuild.hidden_size // HEAD_SIZE
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": rebuild.hidden_size,
            "intermediate_size": 3 * rebuild.hidden_size,
            "num_hidden_layers": rebuild.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": rebuild.context_tokens,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": MROPE_SECTION,
            },
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": rebuild.vision_layers,
            "embed_dim": rebuild.vision_size,
            "hidden_size": rebuild.hidden_size,
            "num_heads": rebuild.vision_size // HEAD_SIZE,
            "patch_size": PATCH_PX,
            "spatial_merge_size": MERGE,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    torch.manual_seed(rebuild.seed)
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
