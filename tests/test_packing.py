"""A packed batch gives every completion what it gets in a sequence of its own."""

from typing import Any

import families
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from othink_pipeline.packing import _first_fit, pack
from othink_pipeline.prompts import CannotShareError, Prompt, collate

PAD = 0


def one_by_one(
    model: Any, prompts: list[Prompt], ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Log-probabilities of completions [R x C], each row forwarded alone, nothing padded."""
    found = torch.zeros(ids.shape)
    for row, prompt in enumerate(prompts):
        completion = ids[row][mask[row].bool()]
        inputs = collate([prompt], PAD, torch.device("cpu"))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], completion[None]], 1)
        del inputs["attention_mask"]
        for name in prompt.token_fields:
            longer = inputs[name], torch.zeros(1, len(completion), dtype=torch.long)
            inputs[name] = torch.cat(longer, 1)
        logits = model(**inputs).logits[0, len(prompt.ids) - 1 : -1]
        chosen = torch.log_softmax(logits, -1).gather(1, completion[:, None])[:, 0]
        found[row, : len(completion)] = chosen
    return found


def packed_log_probs(
    model: Any, prompts: list[Prompt], ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    packed = pack(model, prompts, ids, mask, PAD)
    logits = model(**packed.inputs).logits
    chosen = torch.log_softmax(logits, -1).gather(2, packed.labels.clamp(min=0)[..., None])[..., 0]
    return chosen[packed.rows, packed.columns] * mask


def batch(family: str) -> tuple[list[Prompt], torch.Tensor, torch.Tensor]:
    """Groups of 3, 1 and 2 completions, out of order, some as short as one token or none."""
    first, second, third = (
        families.prompt(family, 0, words=2),
        families.prompt(family, 1, words=5, pictures=2),
        families.prompt(family, 2, words=3),
    )
    prompts = [first, second, third, first, third, first]
    lengths = torch.tensor([4, 1, 6, 2, 0, 5])
    noise = torch.Generator().manual_seed(7)
    ids = torch.randint(3, families.IMAGE_TOKEN, (6, 6), generator=noise)
    mask = (torch.arange(6) < lengths[:, None]).long()
    return prompts, ids.masked_fill(mask == 0, PAD), mask


def test_any_attention_that_takes_a_mask_will_do_and_no_other() -> None:
    model = families.build("qwen2_vl")
    prompts, ids, mask = batch("qwen2_vl")
    with torch.no_grad():
        expected = packed_log_probs(model, prompts, ids, mask)
        model.set_attn_implementation("eager")
        torch.testing.assert_close(packed_log_probs(model, prompts, ids, mask), expected)
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(CannotShareError, match="'sdpa' or 'eager', not 'flash_attention_2'"):
        pack(model, prompts, ids, mask, PAD)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_log_probs_and_gradients_are_those_of_each_completion_alone(family: str) -> None:
    model = families.build(family)
    weights = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    gradients = []
    log_probs = []
    for compute in (one_by_one, packed_log_probs):
        model.zero_grad()
        found = compute(model, *batch(family))
        (found * weights).sum().backward()
        log_probs.append(found.detach())
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    torch.testing.assert_close(*log_probs, rtol=1e-4, atol=1e-5)
    assert log_probs[0].abs().max() > 1
    alone, together = gradients
    reached = {name for name, gradient in alone.items() if gradient is not None}
    assert reached == {name for name, gradient in together.items() if gradient is not None}
    assert any("visual" in name or "vision" in name for name in reached)
    largest = max(float(alone[name].abs().max()) for name in reached)
    for name in reached:
        torch.testing.assert_close(together[name], alone[name], rtol=1e-3, atol=1e-6 * largest)


def test_completions_do_not_see_each_other_nor_another_prompt() -> None:
    model = families.build("qwen2_vl")
    prompts, ids, mask = batch("qwen2_vl")
    with torch.no_grad():
        before = packed_log_probs(model, prompts, ids, mask)
        for changed in range(len(prompts)):
            other = ids.clone()
            other[changed] = torch.where(mask[changed] == 1, (ids[changed] + 1) % 50 + 3, PAD)
            after = packed_log_probs(model, prompts, other, mask)
            same = [row for row in range(len(prompts)) if row != changed]
            torch.testing.assert_close(after[same], before[same])
            if mask[changed].any():
                assert (after[changed] - before[changed]).abs().max() > 1e-2


def test_each_prompt_and_picture_is_computed_once() -> None:
    model = families.build("qwen2_vl")
    prompts, ids, mask = batch("qwen2_vl")
    packed = pack(model, prompts, ids, mask, PAD)
    once = {prompt: None for prompt in prompts}
    assert int((packed.inputs["input_ids"] == families.IMAGE_TOKEN).sum()) == sum(
        int(prompt.token_fields["mm_token_type_ids"].sum()) for prompt in once
    )
    patches = sum(len(prompt.image_fields["pixel_values"]) for prompt in once)
    assert len(packed.inputs["pixel_values"]) == patches
    tokens = sum(len(prompt.ids) - 1 for prompt in once) + int(mask.sum())
    assert packed.labels.numel() - tokens < packed.labels.shape[1]  # padding: less than a row
    assert int((packed.labels != -100).sum()) == int(mask.sum())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
def test_bins_hold_everything_once_and_none_overflows(sizes: list[int]) -> None:
    bins = _first_fit(sizes)
    assert sorted(index for members in bins for index in members) == list(range(len(sizes)))
    assert all(sum(sizes[index] for index in members) <= max(sizes) for members in bins)
    half_full = [members for members in bins if 2 * sum(sizes[i] for i in members) <= max(sizes)]
    assert len(half_full) <= 1  # two such would have become one
