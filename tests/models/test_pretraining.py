"""Making the base model: what the loss is taken over, how often steps are shown, at what rate."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.models.load import load_model
from othink_pipeline.models.pretraining import IGNORED, _draw_rows, _encode, _rate, pretrain
from othink_pipeline.models.prompts import render_prompt
from tests.conftest import PROMPT, TASKS, MiniModel, tiny_rebuild

Splits = Mapping[str, Mapping[str, Any]]


@pytest.fixture(scope="module")
def processor(mini_model: MiniModel) -> Any:
    return load_model(str(mini_model.path))[1]


def rows_of(splits: Splits, count: int) -> list[dict[str, Any]]:
    return [splits[task]["base"][number] for number in range(count) for task in TASKS]


@pytest.mark.parametrize(("worked_rate", "worked"), [(0.0, False), (1.0, True)])
def test_labels_cover_the_target_and_its_end_and_nothing_else(
    splits: Splits, processor: Any, worked_rate: float, worked: bool
) -> None:
    rows = rows_of(splits, 4)
    inputs, labels = _encode(processor, rows, PROMPT, worked_rate, Random(0))
    tokenizer = processor.tokenizer
    assert labels.shape == inputs["input_ids"].shape
    lengths = inputs["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) > 1  # else no row is padded
    for row, ids, label, length in zip(rows, inputs["input_ids"], labels, lengths, strict=True):
        target = (
            f"<think>{row['steps'] if worked else ''}</think><answer>{row['answer']}</answer>"
            "<|im_end|>"
        )
        labelled = label != IGNORED  # True: in the loss
        assert tokenizer.decode(ids[labelled]) == target
        assert torch.equal(ids[labelled], label[labelled])
        assert ids[:length][~labelled[:length]].tolist() == _prompt_ids(processor, row)
        assert labelled.nonzero().squeeze(1).tolist() == list(
            range(length - int(labelled.sum()), length)
        )
        assert (ids[length:] == tokenizer.pad_token_id).all()


def _prompt_ids(processor: Any, row: dict[str, Any]) -> list[int]:
    text = render_prompt(processor, PROMPT, row["question"])
    ids: list[int] = processor(images=[row["image"]], text=[text])["input_ids"][0]
    return ids


def test_the_images_belong_to_their_questions(splits: Splits, processor: Any) -> None:
    rows = rows_of(splits, 2)
    inputs, _ = _encode(processor, rows, PROMPT, 0.0, Random(0))
    patches = inputs["pixel_values"].split(inputs["image_grid_thw"].prod(1).tolist())
    for row, pixels in zip(rows, patches, strict=True):
        alone = processor.image_processor(images=[row["image"]], return_tensors="pt")
        torch.testing.assert_close(pixels, alone["pixel_values"])


def test_the_share_of_worked_targets_is_the_one_asked_for(splits: Splits, processor: Any) -> None:
    rows = rows_of(splits, 1) * 200
    rng = Random(0)
    _, labels = _encode(processor, rows, PROMPT, 0.3, rng)
    closing = processor.tokenizer.convert_tokens_to_ids("</think>")
    second = [label[label != IGNORED][1].item() for label in labels]
    empty = sum(token == closing for token in second)
    assert 0.6 < empty / len(rows) < 0.8


def test_the_learning_rate_warms_up_then_falls_to_its_floor() -> None:
    assert _rate(0, 1000) == pytest.approx(1 / 50)
    assert _rate(24, 1000) == pytest.approx(0.5, abs=0.001)
    assert _rate(500, 1000) == pytest.approx(0.525)  # half-way between 1 and 0.05
    assert _rate(999, 1000) == pytest.approx(0.05, abs=1e-5)
    rates = [_rate(update, 1000) for update in range(1000)]
    assert rates[:50] == sorted(rates[:50])
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert max(rates) <= 1


def test_tasks_take_turns_and_each_pass_shows_every_example_once() -> None:
    examples: Any = {"a": list(range(4)), "b": list(range(10, 14))}
    orders: dict[str, list[int]] = {"a": [], "b": []}
    rng = Random(0)
    drawn: list[Any] = [row for _ in range(4) for row in _draw_rows(examples, orders, 4, rng)]
    assert [row >= 10 for row in drawn] == [False, True] * 8
    assert Counter(drawn[:8]) == Counter(drawn[8:]) == Counter([0, 1, 2, 3, 10, 11, 12, 13])
    assert drawn[:8] != drawn[8:]


def test_the_last_phase_shows_its_own_share(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []

    def record(processor: Any, rows: Any, prompt: str, share: float, rng: Random) -> Any:
        shares.append(share)
        return _encode(processor, rows, prompt, share, rng)

    monkeypatch.setattr("othink_pipeline.models.pretraining._encode", record)
    logged: dict[int, float] = {}
    model, _, facts = pretrain(
        base_of(splits),
        PROMPT,
        three_updates(),
        lambda update, metrics: logged.update({update: metrics["train/loss"]}),
        tmp_path / "state.pt",
    )
    assert shares == [0.9, 0.9, 0.3]
    assert list(logged) == [1, 2, 3]
    assert facts["final_loss"] == pytest.approx(sum(logged.values()) / 3, abs=1e-3)
    assert facts["updates"] == 3
    assert not model.training


def test_one_that_was_stopped_goes_on_to_the_same_end(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("othink_pipeline.models.pretraining.SAVED_EVERY", 2)
    trained = {}
    updates: dict[str, list[int]] = {"at once": [], "in parts": []}

    def log(update: int, _: Any) -> None:
        updates[name].append(update)
        if name == "in parts" and updates[name] == [1, 2, 3]:
            raise KeyboardInterrupt

    for name in ("at once", "in parts", "in parts"):
        with suppress(KeyboardInterrupt):
            state = tmp_path / name
            trained[name] = pretrain(base_of(splits), PROMPT, three_updates(), log, state)
    assert updates == {"at once": [1, 2, 3], "in parts": [1, 2, 3, 3]}
    (whole, _, facts), (model, _, facts_in_parts) = trained.values()
    assert facts["final_loss"] == facts_in_parts["final_loss"]
    weights = model.state_dict()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, weights[key]), key


def test_one_too_large_to_ship_is_refused_before_it_is_trained(
    splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("othink_pipeline.models.pretraining.LIMIT_MB", 0.1)
    with pytest.raises(ConfigurationError, match=r"over the limit of 0\.1 MB"):
        pretrain(base_of(splits), PROMPT, three_updates(), pytest.fail, tmp_path / "state.pt")


def base_of(splits: Splits) -> Any:
    return {task: splits[task]["base"] for task in TASKS}


def three_updates() -> Any:
    return tiny_rebuild(
        updates=3, batch_size=2, worked_rate=0.9, last_phase_updates=1, last_phase_worked_rate=0.3
    )
