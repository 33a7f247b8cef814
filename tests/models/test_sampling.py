"""The tokens are those of transformers' generate, with each prompt computed once."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from othink_pipeline.models import sampling
from othink_pipeline.models.prompts import CannotShareError, Prompt, collate
from othink_pipeline.models.sampling import Samples, sample
from tests.support import families

PAD, ENDS = 0, [2, 5, 11, 17, 23]
LONGEST = 12


@pytest.fixture(scope="module", params=families.FAMILIES)
def family(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, families.build(request.param)


def groups(name: str) -> list[Prompt]:
    """Groups of 4, 1 and 3 completions of prompts of different lengths."""
    several = [
        families.prompt(name, seed, words, pictures)
        for seed, words, pictures in [(0, 2, 1), (1, 7, 2), (2, 4, 1)]
    ]
    return [several[group] for group in (0, 0, 0, 0, 1, 2, 2, 2)]


def stock(model: Any, prompts: list[Prompt], temperature: float | None) -> list[list[int]]:
    """What transformers' generate makes of the same rows, cut after their end."""
    inputs = collate(prompts, PAD, torch.device("cpu"))
    whole = model.generate(
        **inputs,
        max_new_tokens=LONGEST,
        do_sample=temperature is not None,
        temperature=temperature,
        top_k=None if temperature is None else 0,
        eos_token_id=ENDS,
        pad_token_id=PAD,
        suppress_tokens=[families.IMAGE_TOKEN],
    )
    rows = whole[:, inputs["input_ids"].shape[1] :].tolist()
    ends = [next((i for i, token in enumerate(row) if token in ENDS), LONGEST) for row in rows]
    return [row[: end + 1] for row, end in zip(rows, ends, strict=True)]


def ours(model: Any, prompts: list[Prompt], temperature: float | None, **changes: Any) -> Samples:
    settings: dict[str, Any] = {
        "max_tokens": LONGEST,
        "eos_token_ids": ENDS,
        "pad_token_id": PAD,
        "temperature": temperature,
        "suppressed": [families.IMAGE_TOKEN],
    }
    return sample(model, prompts, **{**settings, **changes})


@pytest.mark.parametrize("temperature", [None, 1.0, 3.0])
def test_tokens_are_those_of_generate_under_the_same_noise(
    family: tuple[str, Any], temperature: float | None
) -> None:
    name, model = family
    prompts = groups(name)
    torch.manual_seed(3)
    expected = stock(model, prompts, temperature)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    assert ours(model, prompts, temperature).ids == expected
    assert torch.equal(torch.get_rng_state(), state)  # what is drawn next is the same too
    if temperature:
        assert len({len(row) for row in expected}) > 2  # rows end at different steps
        assert len({tuple(row) for row in expected[:4]}) > 1


@pytest.mark.parametrize("prefill_tokens", [1, 40])
def test_reading_in_parts_and_growing_often_change_nothing(
    monkeypatch: pytest.MonkeyPatch, prefill_tokens: int
) -> None:
    model = families.build("qwen2_vl")
    prompts = groups("qwen2_vl")
    torch.manual_seed(3)
    expected = ours(model, prompts, 2.0)
    monkeypatch.setattr(sampling, "PREFILL_TOKENS", {"cpu": prefill_tokens})
    monkeypatch.setattr(sampling, "ROOM", 2)
    torch.manual_seed(3)
    found = ours(model, prompts, 2.0)
    assert found.ids == expected.ids


def test_log_probs_are_those_of_the_tokens(family: tuple[str, Any]) -> None:
    name, model = family
    prompts = groups(name)
    torch.manual_seed(0)
    samples = ours(model, prompts, 2.0)
    for row, (prompt, ids) in enumerate(zip(prompts, samples.ids, strict=True)):
        inputs = collate([prompt], PAD, torch.device("cpu"))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
        del inputs["attention_mask"]
        for field in prompt.token_fields:
            kinds = inputs[field], torch.zeros(1, len(ids), dtype=torch.long)
            inputs[field] = torch.cat(kinds, 1)
        with torch.no_grad():
            logits = model(**inputs).logits[0, len(prompt.ids) - 1 : -1]
        expected = torch.log_softmax(logits / 2.0, -1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(
            samples.log_probs[row, : len(ids)], expected, rtol=1e-4, atol=1e-5
        )


def test_each_prompt_is_read_once_and_ended_rows_are_dropped() -> None:
    model = families.build("qwen2_vl")
    prompts = groups("qwen2_vl")
    rows: list[int] = []
    patches: list[int] = []

    def watch(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        rows.append(len(inputs["input_ids"]))
        if inputs.get("pixel_values") is not None:
            patches.append(len(inputs["pixel_values"]))

    handle = model.register_forward_pre_hook(watch, with_kwargs=True)
    torch.manual_seed(3)
    lengths = [len(ids) for ids in ours(model, prompts, 2.0).ids]
    handle.remove()
    assert rows[0] == 3
    once = {prompt: len(prompt.image_fields["pixel_values"]) for prompt in prompts}
    assert patches == [sum(once.values())]
    # Step s computes the rows that have not ended before it.
    assert rows[1:] == [sum(length > s for length in lengths) for s in range(1, max(lengths))]


def test_what_is_suppressed_at_the_start_may_come_later() -> None:
    model = families.build("qwen2_vl")
    prompts = [families.prompt("qwen2_vl", 0, 3)] * 300
    torch.manual_seed(0)
    banned = list(range(3, 50))
    ids = ours(model, prompts, 50.0, suppressed_first=banned).ids
    assert not {row[0] for row in ids} & set(banned)
    assert {token for row in ids for token in row[1:]} & set(banned)
    assert families.IMAGE_TOKEN not in {token for row in ids for token in row}


def test_a_model_that_forgets_tokens_is_refused() -> None:
    model = families.build(
        "qwen2_vl", use_sliding_window=True, sliding_window=8, max_window_layers=0
    )
    with pytest.raises(CannotShareError, match="DynamicSlidingWindowLayer: it needs full"):
        ours(model, groups("qwen2_vl"), None)


@pytest.mark.parametrize("decoder", [SimpleNamespace(), SimpleNamespace(layers=[object()])])
def test_a_decoder_whose_parts_have_other_names_is_read_as_it_is(decoder: Any) -> None:
    with sampling._last_token_alone(SimpleNamespace(get_decoder=lambda: decoder)):
        pass
