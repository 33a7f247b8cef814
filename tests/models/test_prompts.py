"""A prompt is the same tensors whether it is processed alone or among others."""

from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers.processors import TemplateProcessing

from othink_pipeline.models.prompts import (
    CannotShareError,
    Prompt,
    collate,
    distinct,
    encode,
    positions,
    render_prompt,
    user_message,
)
from tests.conftest import PROMPT

CPU = torch.device("cpu")


@pytest.fixture
def texts_and_images(loaded: tuple[Any, Any]) -> tuple[list[str], list[list[Image.Image]]]:
    """Prompts of different lengths, with one and with two pictures of different sizes."""
    _, processor = loaded
    once = render_prompt(processor, PROMPT, "How many?")
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert once.count(picture) == 1
    sizes = [(64, 64), (32, 64), (64, 96)]
    images = [Image.new("RGB", size, (40 * n, 90, 200)) for n, size in enumerate(sizes)]
    texts = [once, once.replace(picture, 2 * picture), render_prompt(processor, PROMPT, "2?" * 9)]
    return texts, [images[:1], images[1:], images[:1]]


def test_a_prompt_among_others_is_as_the_processor_makes_it_alone(
    loaded: tuple[Any, Any], texts_and_images: tuple[list[str], list[list[Image.Image]]]
) -> None:
    _, processor = loaded
    for prompt, text, images in zip(
        encode(processor, *texts_and_images), *texts_and_images, strict=True
    ):
        alone = processor(images=images, text=[text], return_tensors="pt")
        assert torch.equal(prompt.ids, alone.pop("input_ids")[0])
        assert list(alone.pop("attention_mask")[0]) == [1] * len(prompt.ids)
        assert torch.equal(
            prompt.token_fields["mm_token_type_ids"], alone.pop("mm_token_type_ids")[0]
        )
        assert prompt.image_fields.keys() == alone.keys() == {"pixel_values", "image_grid_thw"}
        for name, values in alone.items():
            assert torch.equal(prompt.image_fields[name], values)
        assert list(prompt.images) == images


def test_a_batch_is_what_the_processor_makes_of_it(
    loaded: tuple[Any, Any], texts_and_images: tuple[list[str], list[list[Image.Image]]]
) -> None:
    _, processor = loaded
    texts, images = texts_and_images
    batch = collate(encode(processor, texts, images), processor.tokenizer.pad_token_id, CPU)
    whole = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert batch.keys() == whole.keys()
    assert len({int(row.sum()) for row in batch["attention_mask"]}) == 3  # padding is at work
    for name, values in whole.items():
        assert torch.equal(batch[name], values), name


def test_an_opening_token_that_the_template_writes_stands_once(
    loaded: tuple[Any, Any], texts_and_images: tuple[list[str], list[list[Image.Image]]]
) -> None:
    """Tokenizers as Llama 3's put one before every text."""
    _, processor = loaded
    texts, images = texts_and_images
    plain = [prompt.ids for prompt in encode(processor, texts, images)]
    tokenizer = processor.tokenizer
    # The one that the template writes, and another.
    for opening, times in (("<|im_start|>", 0), ("<|endoftext|>", 1)):
        number = tokenizer.convert_tokens_to_ids(opening)
        tokenizer.bos_token = opening
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{opening} $A", special_tokens=[(opening, number)]
        )
        assert tokenizer("")["input_ids"] == [number]
        for prompt, alone in zip(encode(processor, texts, images), plain, strict=True):
            assert prompt.ids.tolist() == times * [number] + alone.tolist()


def test_one_row_a_prompt_is_padded_to_the_most_pictures() -> None:
    """As SmolVLM has it: [prompts x pictures x channels x height x width]."""
    few, many = torch.ones(1, 2, 3, 4, 4), torch.full((1, 5, 3, 4, 4), 2.0)
    prompts = [
        Prompt(torch.tensor([1, 2]), {}, {"pixel_values": pixels}, ()) for pixels in (few, many)
    ]
    pixels = collate(prompts, 0, CPU)["pixel_values"]
    assert pixels.shape == (2, 5, 3, 4, 4)
    assert torch.equal(pixels[0, :2], few[0])
    assert not pixels[0, 2:].any()
    assert torch.equal(pixels[1], many[0])


def test_a_processor_with_another_layout_is_refused(loaded: tuple[Any, Any]) -> None:
    """As InternVL has it: a row a tile, and no telling whose."""
    tokenizer = loaded[1].tokenizer

    def tiled(**inputs: Any) -> dict[str, torch.Tensor]:
        made = tokenizer(inputs["text"], padding=True, return_tensors="pt")
        return {**made, "pixel_values": torch.zeros(5, 3, 4, 4)}

    tiled.tokenizer = tokenizer  # type: ignore[attr-defined]
    with pytest.raises(CannotShareError, match="pixel_values are not one row a prompt"):
        encode(tiled, ["one", "two"], [[Image.new("RGB", (4, 4))]] * 2)


def test_prompts_are_told_apart_by_being_one_object() -> None:
    one, other = (Prompt(torch.tensor([1]), {}, {}, ()) for _ in range(2))
    once, rows = distinct([one, other, one, one])
    assert [prompt is kept for prompt, kept in zip((one, other), once, strict=True)] == [True] * 2
    assert rows.tolist() == [0, 1, 0, 0]


def test_positions_are_those_the_model_would_take(
    loaded: tuple[Any, Any], texts_and_images: tuple[list[str], list[list[Image.Image]]]
) -> None:
    model, processor = loaded
    batch = collate(encode(processor, *texts_and_images), processor.tokenizer.pad_token_id, CPU)
    found = positions(model, batch)
    assert found.shape == (3, *batch["input_ids"].shape)
    with torch.no_grad():
        told = model(**batch, position_ids=found).logits
        itself = model(**batch).logits
    assert torch.equal(told, itself)
    texts, _ = texts_and_images
    same = [[Image.new("RGB", (64, 64))] * text.count("<|image_pad|>") for text in texts]
    alike = encode(processor, [*texts, texts[0]], [*same, same[0]])
    batch = collate(alike, processor.tokenizer.pad_token_id, CPU)
    found = positions(model, batch)
    with torch.no_grad():
        assert torch.equal(model(**batch, position_ids=found).logits, model(**batch).logits)
    text_only = {"attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])}
    assert positions(model, text_only).tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]


def test_the_question_is_put_into_the_prompt_as_it_stands() -> None:
    assert user_message("{question} {x}", r"{0} \1 {question}") == r"{0} \1 {question} {x}"
