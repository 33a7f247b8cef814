"""A packed batch gives every completion what it gets in a sequence of its own."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_vl import modeling_qwen2_vl

from othink_pipeline.models.prompts import CannotShareError, Prompt, collate
from othink_pipeline.training import prompt_attention
from othink_pipeline.training.packing import LAYOUTS, Stream, pack
from tests.support import families

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
    return chosen[0, packed.places] * mask


def batch(family: str) -> tuple[list[Prompt], torch.Tensor, torch.Tensor]:
    """Groups of 3, 1, 2 and 1 completions, out of order, some as short as one token or none.

    The first and the last prompt are of one length.
    """
    first, second, third, fourth = (
        families.prompt(family, 0, words=2),
        families.prompt(family, 1, words=5, pictures=2),
        families.prompt(family, 2, words=3),
        families.prompt(family, 4, words=2),
    )
    prompts = [first, second, fourth, third, first, third, first]
    lengths = torch.tensor([4, 1, 3, 6, 2, 0, 5])
    noise = torch.Generator().manual_seed(7)
    ids = torch.randint(3, families.IMAGE_TOKEN, (7, 6), generator=noise)
    mask = (torch.arange(6) < lengths[:, None]).long()
    return prompts, ids.masked_fill(mask == 0, PAD), mask


def flash_attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """FlashAttention of sequences of several lengths, as documented: the last query sees all."""
    assert mask is None
    read = [heads[0].repeat_interleave(module.num_key_value_groups, 0) for heads in (key, value)]
    asking_ends, read_ends = options["cu_seq_lens_q"], options["cu_seq_lens_k"]
    assert asking_ends.dtype == read_ends.dtype == torch.int32
    assert options["max_length_q"] == int(asking_ends.diff().max())
    assert options["max_length_k"] == int(read_ends.diff().max())
    found = []
    for number in range(len(asking_ends) - 1):
        asking = query[0, :, asking_ends[number] : asking_ends[number + 1]]
        keys, values = (heads[:, read_ends[number] : read_ends[number + 1]] for heads in read)
        scores = asking @ keys.mT * options["scaling"]
        ahead = torch.ones(scores.shape[1:], dtype=torch.bool).triu(
            1 + keys.shape[1] - asking.shape[1]
        )
        found.append(scores.masked_fill(ahead, -torch.inf).softmax(-1) @ values)
    return torch.cat(found, 1).transpose(0, 1)[None], None


@pytest.fixture
def use_attention(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], None]:
    """Have a model compute text with an attention; FlashAttention, which takes a GPU, by hand."""

    def use(model: Any, attention: str) -> None:
        monkeypatch.setitem(prompt_attention._STOCK, "flash_attention_2", flash_attention)
        model.config.get_text_config()._attn_implementation = attention

    return use


def test_another_attention_is_refused() -> None:
    model = families.build("qwen2_vl")
    model.config.get_text_config()._attn_implementation = "flex_attention"
    with pytest.raises(CannotShareError, match="'flash_attention_2', not 'flex_attention'"):
        pack(model, *batch("qwen2_vl"), PAD)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sliding_window_is_refused(attention: str, use_attention: Any) -> None:
    model = families.build("qwen2_vl")
    use_attention(model, attention)
    model.model.language_model.layers[1].self_attn.sliding_window = 8
    with pytest.raises(CannotShareError, match="sliding window"):
        packed_log_probs(model, *batch("qwen2_vl"))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_what_is_not_packed_is_computed_as_ever(attention: str) -> None:
    """The attention functions that are registered anew are otherwise Transformers' own."""
    model = families.build("qwen2_vl")
    model.set_attn_implementation(attention)
    inputs = collate(batch("qwen2_vl")[0], PAD, torch.device("cpu"))
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        found = model(**inputs).logits
        stock = {**prompt_attention._STOCK, "eager": modeling_qwen2_vl.eager_attention_forward}
        for name, function in stock.items():
            patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, name, function)
        assert torch.equal(model(**inputs).logits, found)


Learnt = tuple[torch.Tensor, dict[str, torch.Tensor]]


def learn(model: Any, family: str, compute: Callable[..., torch.Tensor]) -> Learnt:
    """Log-probabilities, and the gradients of a loss over them."""
    weights = torch.randn(7, 6, generator=torch.Generator().manual_seed(1))
    found = compute(model, *batch(family))
    (found * weights).sum().backward()
    named = model.named_parameters()
    return found.detach(), {name: weight.grad for name, weight in named if weight.grad is not None}


@cache
def learnt_alone(family: str) -> Learnt:
    """Once for all attentions."""
    return learn(families.build(family), family, one_by_one)


@pytest.mark.parametrize(
    ("family", "attention", "chunk"),
    [
        *((family, attention, 2) for family in families.FAMILIES for attention in LAYOUTS),
        # Longer than all completions; FlashAttention has no chunks, and they know no family.
        *(("qwen2_vl", attention, 128) for attention in ("sdpa", "eager")),
    ],
)
def test_log_probs_and_gradients_are_those_of_each_completion_alone(
    family: str,
    attention: str,
    chunk: int,
    use_attention: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = families.build(family)
    use_attention(model, attention)
    monkeypatch.setattr(prompt_attention, "CHUNK_TOKENS", chunk)
    expected, alone = learnt_alone(family)
    found, together = learn(model, family, packed_log_probs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 1
    assert together.keys() == alone.keys()
    assert any("visual" in name or "vision" in name for name in alone)
    largest = max(float(gradient.abs().max()) for gradient in alone.values())
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, rtol=1e-3, atol=1e-6 * largest)


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
    assert packed.labels.shape == (1, tokens)  # no padding
    assert int((packed.labels != -100).sum()) == int(mask.sum())


def test_no_mask_is_as_long_as_the_row() -> None:
    """Scores: of a prompt with itself, of a chunk with its prompt and what came before it."""
    model = families.build("qwen2_vl")
    first, second = (families.prompt("qwen2_vl", seed, words=3 + seed) for seed in (0, 1))
    lengths = torch.tensor([300, 130, 40, 40])
    mask = (torch.arange(300) < lengths[:, None]).long()
    computed: list[tuple[int, int, int]] = []
    stock = torch.nn.functional.scaled_dot_product_attention

    def watch(query: Any, key: Any, *args: Any, **options: Any) -> Any:
        computed.append((len(query), query.shape[2], key.shape[2]))
        return stock(query, key, *args, **options)

    packed = pack(model, [first, first, second, second], mask + 2, mask, PAD)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        hidden = model.model.language_model.embed_tokens(packed.inputs["input_ids"])
        rest = {name: packed.inputs[name] for name in ("position_ids", "prompt_layout")}
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
        model.model.language_model(
            inputs_embeds=hidden, attention_mask=packed.inputs["attention_mask"], **rest
        )
    one, two = len(first.ids) - 1, len(second.ids) - 1
    layer = [(1, one, one), (2, 128, one + 128), (2, 128, one + 256), (1, 44, one + 300)]
    layer += [(1, two, two), (2, 40, two + 40)]
    assert computed == layer * 2


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), max_size=12),
)
def test_everything_stands_in_the_stream_once(
    prompts: list[int], completions: list[tuple[int, int]]
) -> None:
    of = [prompt % len(prompts) for prompt, _ in completions]
    tokens = [length for _, length in completions]
    stream = Stream.order(prompts, tokens, of)
    places = [
        place
        for start, length in zip(
            stream.prompt_starts + stream.completion_starts, prompts + tokens, strict=True
        )
        for place in range(start, start + length)
    ]
    assert sorted(places) == list(range(sum(prompts) + sum(tokens)))
    for group, rows in stream.groups:
        assert len({prompts[prompt] for prompt in group}) == 1
        assert all(of[row] in group and tokens[row] for row in rows)
        assert [tokens[row] for row in rows] == sorted((tokens[row] for row in rows), reverse=True)
