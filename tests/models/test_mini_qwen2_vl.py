"""The mini Qwen2-VL must behave like its big siblings: same template, same tokens, same files."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel

from othink_pipeline.models.load import load_model, save_model
from othink_pipeline.models.mini_qwen2_vl import TAGS, build_model, build_processor
from othink_pipeline.models.prompts import render_prompt
from tests.conftest import PROMPT, MiniModel, tiny_rebuild

TEXTS = ["How many red circles are there? 2*5=10, 10+4=14", "Find angle 4. 60+20=80, 360-80=280"]


@pytest.fixture(scope="module")
def built() -> tuple[Any, Any]:
    """Model with random weights, and processor."""
    processor = build_processor(TEXTS, vocab_size=400, context_tokens=256, image_size_px=64)
    return build_model(processor, tiny_rebuild()).eval(), processor


def encode(processor: Any, *questions: str) -> Any:
    images = [Image.new("RGB", (64, 64), (40 * i, 90, 200)) for i in range(len(questions))]
    texts = [render_prompt(processor, PROMPT, question) for question in questions]
    return processor(images=images, text=texts, padding=True, return_tensors="pt")


def test_a_loaded_model_computes_what_the_saved_one_did(
    built: tuple[Any, Any], tmp_path: Path
) -> None:
    model, processor = built
    save_model(model, processor, tmp_path / "model")
    loaded_model, loaded_processor = load_model(str(tmp_path / "model"))
    inputs = encode(processor, "Find angle 4.", "How many?")
    again = encode(loaded_processor, "Find angle 4.", "How many?")
    assert {key: value.tolist() for key, value in inputs.items()} == {
        key: value.tolist() for key, value in again.items()
    }
    with torch.inference_mode():
        torch.testing.assert_close(
            loaded_model(**again).logits, model(**inputs).logits, rtol=0, atol=0
        )
    assert not loaded_model.training
    assert loaded_model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    assert loaded_model.generation_config.pad_token_id == processor.tokenizer.pad_token_id


def test_weights_depend_on_the_seed_alone(built: tuple[Any, Any]) -> None:
    model, processor = built
    weight = model.get_input_embeddings().weight
    torch.rand(3)
    same = build_model(processor, tiny_rebuild()).get_input_embeddings().weight
    other = build_model(processor, tiny_rebuild(seed=1)).get_input_embeddings().weight
    assert torch.equal(weight, same)
    assert not torch.equal(weight, other)


def test_a_picture_becomes_16_image_tokens_and_as_many_features(built: tuple[Any, Any]) -> None:
    model, processor = built
    inputs = encode(processor, "How many?")
    placeholders = inputs["input_ids"] == model.config.image_token_id
    assert placeholders.sum() == 16
    assert inputs["image_grid_thw"].tolist() == [[1, 8, 8]]  # 8 x 8 patches, merged 2 x 2
    features = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    features = torch.cat(list(getattr(features, "pooler_output", features)))
    assert features.shape == (16, 64)
    ids = inputs["input_ids"][0].tolist()
    first = ids.index(model.config.image_token_id)
    assert ids[first - 1] == model.config.vision_start_token_id
    assert ids[first + 16] == model.config.vision_end_token_id


def test_the_picture_changes_the_prediction(built: tuple[Any, Any]) -> None:
    model, processor = built
    logits = model(**encode(processor, "How many?", "How many?")).logits
    assert (logits[0, -1] - logits[1, -1]).abs().max() > 1e-6


def test_the_prompt_is_the_image_then_the_question_without_a_system_message(
    built: tuple[Any, Any],
) -> None:
    _, processor = built
    assert render_prompt(processor, "{question} Think.", "How many {items}?") == (
        "<|im_start|>user\n"
        "<|vision_start|><|image_pad|><|vision_end|>How many {items}? Think.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_the_template_renders_a_whole_conversation(built: tuple[Any, Any]) -> None:
    _, processor = built
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
        {"role": "assistant", "content": "<answer>3</answer>"},
    ]
    assert processor.apply_chat_template(conversation, tokenize=False) == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>How many?<|im_end|>\n"
        "<|im_start|>assistant\n<answer>3</answer><|im_end|>\n"
    )


def test_digits_and_tags_are_single_tokens(built: tuple[Any, Any]) -> None:
    tokenizer = built[1].tokenizer
    assert tokenizer.tokenize("2026") == ["2", "0", "2", "6"]
    assert tokenizer.tokenize("360-150=210") == list("360-150=210")
    written = "<think>2</think><answer>7</answer>"
    assert tokenizer.tokenize(written) == ["<think>", "2", "</think>", "<answer>", "7", "</answer>"]
    assert len({tokenizer.convert_tokens_to_ids(tag) for tag in TAGS}) == 4


def test_tags_survive_what_strips_special_tokens(built: tuple[Any, Any]) -> None:
    tokenizer = built[1].tokenizer
    written = "<think>3+4=7</think><answer> 7 </answer>"
    ids = tokenizer(f"{written}<|im_end|><|endoftext|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == written
    assert len(ids) == len(tokenizer(written)["input_ids"]) + 2


@pytest.mark.parametrize(
    "text", ["straße 30° – “ok” 你好 🦉\t\n\x00", "  two  spaces \n\n", "ΔABC"]
)
def test_every_text_can_be_encoded_and_comes_back(built: tuple[Any, Any], text: str) -> None:
    tokenizer = built[1].tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_byte_has_a_token_and_the_vocabulary_its_size(built: tuple[Any, Any]) -> None:
    model, processor = built
    tokenizer = processor.tokenizer
    assert len(ByteLevel.alphabet()) == 256
    assert set(ByteLevel.alphabet()) <= set(tokenizer.get_vocab())
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 64)
    assert len(tokenizer) <= 400 + len(TAGS)


def test_prompts_are_padded_on_the_left(built: tuple[Any, Any]) -> None:
    _, processor = built
    assert processor.tokenizer.padding_side == "left"
    inputs = encode(processor, "Find angle 4, which is the one at the top.", "How many?")
    long, short = inputs["attention_mask"].tolist()  # 1: keep
    missing = short.count(0)
    assert 0 not in long
    assert missing > 0
    assert short == [0] * missing + [1] * (len(short) - missing)
    assert processor.tokenizer.pad_token_id != processor.tokenizer.eos_token_id


def test_pretraining_teaches_the_format(mini_model: MiniModel) -> None:
    facts = mini_model.facts
    assert facts["updates"] == 80
    assert facts["parameters"] == load_model(str(mini_model.path))[0].num_parameters()
    assert facts["final_loss"] < 0.6 * math.log(400)  # that of a guess among all tokens
