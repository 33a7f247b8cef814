"""Generating: what a completion says must be what the model said."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from datasets import concatenate_datasets

from othink_pipeline.models import generation
from othink_pipeline.models.generation import Completion, Decoding, complete
from othink_pipeline.models.load import load_model
from othink_pipeline.scoring.strict import score
from tests.conftest import PROMPT, MiniModel

Splits = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def erratic(mini_model: MiniModel) -> tuple[Any, Any]:
    """A model whose every token depends on the whole prompt, and that ends at many tokens.

    Weights this large make a chaos of it: a prompt that is padded wrongly, or a picture that is
    not its own, changes the completion. Ends of different lengths leave padding to be counted.
    """
    model, processor = load_model(str(mini_model.path))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.5)
    vocabulary = range(7, len(processor.tokenizer))
    model.generation_config.eos_token_id = [processor.tokenizer.eos_token_id, *vocabulary[::9]]
    return model, processor


@pytest.fixture(scope="module")
def mixed(splits: Splits) -> Any:
    """Test examples of both tasks: questions of many lengths, short ones among long ones."""
    return concatenate_datasets([splits["counting"]["test"], splits["geometry"]["test"]])


def generate(model: Any, processor: Any, examples: Any, **changes: Any) -> list[Completion]:
    images = changes.pop("images", None)
    decoding = Decoding(16, 16)._replace(**changes)
    return complete(model, processor, examples, PROMPT, decoding, images)


def test_a_batch_gives_what_its_examples_give_alone(erratic: tuple[Any, Any], mixed: Any) -> None:
    batched = generate(*erratic, mixed)
    alone = [generate(*erratic, mixed.select([row]))[0] for row in range(len(mixed))]
    assert batched == alone
    # The comparison means something: the completions differ, in text and in length.
    assert len({completion.text for completion in alone}) > len(mixed) // 2
    assert len({completion.tokens for completion in alone}) > 2
    assert min(completion.tokens for completion in alone) < 16


def test_tokens_count_the_end_once_and_no_padding(loaded: tuple[Any, Any], mixed: Any) -> None:
    _, processor = loaded
    whole = generate(*loaded, mixed)
    ended = [(text, tokens) for text, tokens in whole if text.endswith("</answer>") and tokens < 16]
    assert len(ended) > len(whole) / 2  # the mini model knows the format
    for text, tokens in ended:
        assert tokens == len(processor.tokenizer(text)["input_ids"]) + 1
    for text, tokens in generate(*loaded, mixed, max_completion_tokens=3):  # cut: no end there
        assert tokens == len(processor.tokenizer(text)["input_ids"]) == 3


def test_an_empty_think_block_can_be_forced(loaded: tuple[Any, Any], mixed: Any) -> None:
    model, processor = loaded
    for text, tokens in generate(model, processor, mixed, think=False, max_completion_tokens=12):
        assert text.startswith("<think></think>")
        assert not score(text, "1").thought
        assert tokens <= 12
    # The model goes on from the forced opening: its free answer, where that opens alike.
    free = generate(model, processor, mixed)
    forced = generate(model, processor, mixed, think=False)
    alike = [
        i for i, completion in enumerate(free) if completion.text.startswith("<think></think>")
    ]
    assert alike
    assert [forced[i] for i in alike] == [free[i] for i in alike]


def test_worked_steps_can_be_forced(loaded: tuple[Any, Any], mixed: Any) -> None:
    free = generate(*loaded, mixed)
    assert any(completion.text.startswith("<think></think>") for completion in free)
    for text, tokens in generate(*loaded, mixed, think=True, max_completion_tokens=10):
        assert text.startswith("<think>")
        assert not text.startswith("<think></think>")
        assert tokens <= 10


def test_sampling_follows_the_temperature_and_torchs_seed(
    erratic: tuple[Any, Any], splits: Splits
) -> None:
    examples = splits["counting"]["base"].select([0] * 200)  # one prompt, many times
    settings: dict[str, Any] = {"max_completion_tokens": 1, "batch_size": 200}

    def first_tokens(seed: int, temperature: float) -> list[str]:
        torch.manual_seed(seed)
        completions = generate(*erratic, examples, temperature=temperature, **settings)
        return [completion.text for completion in completions]

    greedy = [completion.text for completion in generate(*erratic, examples, **settings)]
    assert len(set(greedy)) == 1
    assert first_tokens(0, temperature=1e-4) == greedy
    anything = first_tokens(0, temperature=1e6)
    assert anything == first_tokens(0, temperature=1e6)
    assert anything != first_tokens(1, temperature=1e6)
    assert len(set(anything)) > 100  # from the whole vocabulary: no top-k, as in training


def test_the_samples_of_an_example_share_its_prompt_and_stand_side_by_side(
    erratic: tuple[Any, Any], mixed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[Any]] = []
    stock = generation.sample

    def record(model: Any, prompts: Any, **settings: Any) -> Any:
        batches.append(prompts)
        return stock(model, prompts, **settings)

    monkeypatch.setattr(generation, "sample", record)
    greedy = generate(*erratic, mixed)
    batches.clear()
    thrice = generate(*erratic, mixed, temperature=1e-4, samples=3)  # as good as greedy
    assert thrice == [completion for completion in greedy for _ in range(3)]
    # 16 completions at a time: five prompts, each as one object three times.
    assert [len(prompts) for prompts in batches] == [15, 15, 15, 3]
    for prompts in batches:
        assert prompts == [prompt for prompt in prompts[::3] for _ in range(3)]
        assert len(set(prompts)) == len(prompts) // 3
    torch.manual_seed(0)
    hot = generate(*erratic, mixed, temperature=1e6, samples=3)
    assert len({completion.text for completion in hot}) == 3 * len(mixed)
    groups = [hot[start : start + 3] for start in range(0, len(hot), 3)]
    assert any(group != sorted(group) for group in groups)  # in the order they were drawn
    # However few fit a batch, an example's samples stay together.
    assert generate(*erratic, mixed, temperature=1e-4, samples=3, batch_size=1) == thrice


def test_pictures_can_come_from_elsewhere(erratic: tuple[Any, Any], mixed: Any) -> None:
    order = list(range(len(mixed)))[::-1]
    pictures = mixed.select(order).select_columns("image")
    swapped = concatenate_datasets([mixed.remove_columns("image"), pictures], axis=1)
    expected = generate(*erratic, swapped)
    assert generate(*erratic, mixed, images=mixed.select(order)) == expected
    assert expected != generate(*erratic, mixed)


def test_a_batch_that_does_not_fit_is_halved_for_good(
    erratic: tuple[Any, Any],
    mixed: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = generate(*erratic, mixed)
    tried: list[int] = []
    stock = generation.sample

    def sample_little(model: Any, prompts: Any, **settings: Any) -> Any:
        tried.append(len(prompts))
        if len(prompts) > 5:
            raise torch.OutOfMemoryError
        return stock(model, prompts, **settings)

    monkeypatch.setattr(generation, "sample", sample_little)
    monkeypatch.setattr(generation, "_largest_batch", {})
    assert generate(*erratic, mixed) == expected  # 16 examples
    assert tried == [16, 8, 4, 4, 4, 4]
    assert "16 completions at a time do not fit the memory: 8 from now on" in caplog.text
    assert "answers may differ, by rounding alone" in caplog.text
    tried.clear()
    generate(*erratic, mixed)
    assert tried == [4, 4, 4, 4]  # remembered
    monkeypatch.setattr(generation, "_largest_batch", {"cpu": 1})
    monkeypatch.setattr(generation, "sample", lambda *_, **__: sample_little(None, range(9)))
    with pytest.raises(torch.OutOfMemoryError):
        generate(*erratic, mixed)


def test_one_batch_is_read_ahead_and_no_more() -> None:
    begun: list[int] = []

    def read(rows: Any) -> Any:
        begun.append(rows[0])
        return list(rows)

    for number, found in enumerate(generation._read_ahead(read, [[0], [1], [2], [3]])):
        assert found == [number]
        assert begun[: number + 1] == list(range(number + 1))
        assert len(begun) <= number + 2
    assert begun == [0, 1, 2, 3]
    assert list(generation._read_ahead(read, [])) == []


def test_what_reading_raises_is_raised(loaded: tuple[Any, Any], mixed: Any) -> None:
    with pytest.raises(ValueError, match="Column 'image' doesn't exist"):
        generate(*loaded, mixed, images=mixed.remove_columns("image"))


@pytest.mark.parametrize("training", [True, False])
def test_generating_leaves_no_trace(loaded: tuple[Any, Any], mixed: Any, training: bool) -> None:
    model, processor = loaded
    model.train(training)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    weights = [weight.clone() for weight in model.parameters()]
    generate(model, processor, mixed)
    assert model.training is training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(weight.requires_grad for weight in model.parameters())
