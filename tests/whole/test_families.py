"""Every model family from its published layout through loading, training, testing and saving."""

import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import trl
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.models import generation
from othink_pipeline.models.generation import Decoding, complete
from othink_pipeline.models.load import load_model, save_model
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.models.pixels import limit_pixels
from othink_pipeline.models.prompts import collate, encode, render_prompt
from othink_pipeline.scoring.kinds import EXACT
from othink_pipeline.training import rl as rl_training
from othink_pipeline.training import sft as sft_training
from othink_pipeline.training.kl import Linear
from othink_pipeline.training.loop import Job, train
from othink_pipeline.training.parameters import RL, SFT
from othink_pipeline.training.rewards import ACCURACY_REWARDS
from othink_pipeline.training.rows import rl_rows, sft_rows
from tests.conftest import shipped, shipped_health
from tests.support.families import image_tokens
from tests.support.family_checkpoints import FAMILIES, SYSTEM, TEMPLATES, make_checkpoint

ROOT = Path(__file__).parents[2]
PROMPT = "{question} Answer in <think> </think> and <answer> </answer> tags."
CAP = 100_000
"""Pixels: less than a picture of 480 x 320 has, and a single tile for the families that tile."""

LONGEST = 16

CLASSES = {
    "qwen2_vl": ("Qwen2VLForConditionalGeneration", "Qwen2VLProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLProcessor"),
    "qwen3_vl": ("Qwen3VLForConditionalGeneration", "Qwen3VLProcessor"),
    "idefics3": ("Idefics3ForConditionalGeneration", "Idefics3Processor"),
    "smolvlm": ("SmolVLMForConditionalGeneration", "SmolVLMProcessor"),
}
ENDS = {
    "qwen2_vl": ["<|im_end|>", "<|endoftext|>"],
    "qwen2_5_vl": ["<|im_end|>", "<|endoftext|>"],
    "qwen3_vl": ["<|im_end|>", "<|endoftext|>"],
    "idefics3": ["<end_of_utterance>"],
    "smolvlm": ["<end_of_utterance>"],
}
PADS = {family: ends[-1] for family, ends in ENDS.items()} | {
    "idefics3": "<|im_end|>",
    "smolvlm": "<|im_end|>",
}
USER = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{}<|im_end|>\n"
PROMPTS = {
    "qwen2_vl": SYSTEM + USER + "<|im_start|>assistant\n",
    "qwen2_5_vl": SYSTEM + USER + "<|im_start|>assistant\n",
    "qwen3_vl": USER + "<|im_start|>assistant\n",
    "idefics3": "<|im_start|>User:<image>{}<end_of_utterance>\nAssistant:",
    "smolvlm": "<|im_start|>User:<image>{}<end_of_utterance>\nAssistant:",
}
PUBLISHED = {
    "qwen2_vl": "qwen2_5_vl",  # the two are byte for byte the same
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "idefics3": "smolvlm",
    "smolvlm": "smolvlm",
}
"""The file in which TRL keeps the template that a family is published with."""
# Of a picture of 480 x 320 and one of 97 x 211, as published and with CAP; by hand.
QWEN = ((17 * 11, 3 * 8), (13 * 9, 3 * 8))
TILED = (((4 * 3 + 1) * 64, (2 * 4 + 1) * 64), (64, 64))
IMAGE_TOKENS = {
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": ((15 * 10, 6 * 12), (12 * 8, 6 * 12)),
    "idefics3": TILED,
    "smolvlm": TILED,
}


class Loaded(NamedTuple):
    family: str
    path: Path
    """With pictures of any size."""
    capped: Path
    """The same weights with CAP in the processor's files."""
    model: Any
    processor: Any
    """Capped."""


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    path = make_checkpoint(family, folder / "published")
    model, processor = load_model(str(path), settings(max_pixels=CAP))
    save_model(model, processor, folder / "capped")
    return Loaded(family, path, folder / "capped", model, processor)


def settings(**changes: Any) -> ModelSettings:
    return ModelSettings(**{**shipped("model"), **changes})


def picture(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


@pytest.fixture(scope="module")
def examples() -> Any:
    """Six of them: pictures of several shapes and modes, questions of several lengths."""
    pictures = [
        picture(480, 320),
        picture(97, 211, "L"),
        picture(64, 64, "P"),
        picture(150, 97, seed=1),
        picture(320, 480, seed=2),
        picture(200, 33, seed=3),
    ]
    files = []
    for image in pictures:
        image.save(file := io.BytesIO(), "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    questions = ["How many?", "What do all items cost?", "Find angle 4.", "How many items? " * 4]
    text = {name: Value("string") for name in ("question", "answer", "steps")}
    columns = {
        "question": [*questions, "Cost?", "How many items are there in the image?"],
        "answer": ["3", "12", "210", "1", "0", "7"],
        "steps": ["1+2=3", "2+10=12", "360-150=210", "", "0*1=0", "3+4=7"],
        "image": files,
    }
    return Dataset.from_dict(columns, Features({**text, "image": ImageColumn()}))


def end_ids(loaded: Loaded) -> list[int]:
    return [loaded.processor.tokenizer.convert_tokens_to_ids(end) for end in ENDS[loaded.family]]


def asked(loaded: Loaded, examples: Any, rows: list[int]) -> list[Any]:
    texts = [render_prompt(loaded.processor, PROMPT, examples["question"][row]) for row in rows]
    return encode(loaded.processor, texts, [[examples[row]["image"]] for row in rows])


def test_the_published_files_load_through_the_familys_own_classes(loaded: Loaded) -> None:
    model, processor = load_model(str(loaded.path))
    assert (type(model).__name__, type(processor).__name__) == CLASSES[loaded.family]
    tokenizer = processor.tokenizer
    ends = ENDS[loaded.family]
    assert tokenizer.eos_token == ends[0]
    assert tokenizer.pad_token == PADS[loaded.family]
    listed = model.generation_config.eos_token_id
    assert (listed if isinstance(listed, list) else [listed]) == end_ids(loaded)
    assert model.config.image_token_id == processor.image_token_id
    assert model.get_input_embeddings().weight.shape[0] > len(tokenizer)
    for token in (*ends, PADS[loaded.family], processor.image_token, "<|im_start|>"):
        assert tokenizer(token)["input_ids"] == [tokenizer.convert_tokens_to_ids(token)]
        assert tokenizer.decode(tokenizer(token)["input_ids"], skip_special_tokens=True) == ""
    text = "60+20=80, <think>é</think>"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_prompt_is_what_the_published_template_makes_of_one_user_message(loaded: Loaded) -> None:
    processor = loaded.processor
    shown = render_prompt(processor, PROMPT, "How many?")
    assert shown == PROMPTS[loaded.family].format(PROMPT.replace("{question}", "How many?"))
    assert shown.count(processor.image_token) == 1
    file = Path(trl.__file__).parent / f"chat_templates/{PUBLISHED[loaded.family]}.jinja"
    published = file.read_text()
    user = [{"type": "image"}, {"type": "text", "text": "Which?"}]
    talks = [
        [{"role": "user", "content": user}],
        [{"role": "user", "content": user[::-1]}],
        [
            {"role": "system", "content": [{"type": "text", "text": "Be short."}]},
            {"role": "user", "content": user},
            {"role": "assistant", "content": [{"type": "text", "text": "This."}]},
        ],
    ]
    for talk in talks:
        for go_on in (True, False):
            ours, theirs = (
                processor.apply_chat_template(
                    talk, chat_template=template, add_generation_prompt=go_on, tokenize=False
                )
                for template in (TEMPLATES[loaded.family], published)
            )
            assert ours == theirs


def test_a_picture_takes_as_many_tokens_as_the_published_processor_says(loaded: Loaded) -> None:
    _, whole = load_model(str(loaded.path))
    for processor, expected in zip(
        (whole, loaded.processor), IMAGE_TOKENS[loaded.family], strict=True
    ):
        found = image_tokens(processor, 480, 320), image_tokens(processor, 97, 211)
        assert found == expected


def test_pictures_of_two_sizes_in_a_batch_are_each_what_they_are_alone(loaded: Loaded) -> None:
    model, processor = load_model(str(loaded.path))  # uncapped: tiles, of two numbers
    image = [[picture(480, 320)], [picture(97, 211)]]
    texts = [render_prompt(processor, PROMPT, question) for question in ("Which?", "How many?")]
    pad = processor.tokenizer.pad_token_id
    together = encode(processor, texts, image)
    alone = [encode(processor, texts[row : row + 1], image[row : row + 1])[0] for row in (0, 1)]
    with torch.no_grad():
        batched = model(**collate(together, pad, model.device)).logits[:, -1]
        for row, one in enumerate(alone):
            assert torch.equal(together[row].ids, one.ids)
            count = int((one.ids == model.config.image_token_id).sum())
            assert count == IMAGE_TOKENS[loaded.family][0][row]
            single = model(**collate([one], pad, model.device)).logits[0, -1]
            torch.testing.assert_close(batched[row], single, rtol=1e-3, atol=1e-3)
        assert (batched[0] - batched[1]).abs().max() > 0.1


def test_the_picture_reaches_the_answer(loaded: Loaded) -> None:
    texts = [render_prompt(loaded.processor, PROMPT, "Which?")]
    pad = loaded.processor.tokenizer.pad_token_id
    first, second = (
        loaded.model(
            **collate(
                encode(loaded.processor, texts, [[picture(150, 97, seed=seed)]]),
                pad,
                loaded.model.device,
            )
        ).logits[0, -1]
        for seed in (0, 1)
    )
    assert (first - second).abs().max() > 1e-3


def test_grey_and_palette_pictures_become_colour(loaded: Loaded) -> None:
    text = [render_prompt(loaded.processor, PROMPT, "Which?")]
    for mode in ("L", "P"):
        image = picture(97, 61, mode)
        (as_it_is,) = encode(loaded.processor, text, [[image]])
        (coloured,) = encode(loaded.processor, text, [[image.convert("RGB")]])
        assert torch.equal(as_it_is.ids, coloured.ids)
        for name, values in coloured.image_fields.items():
            assert torch.equal(as_it_is.image_fields[name], values)


def test_greedy_completions_do_not_depend_on_the_batch_and_end_where_the_family_ends(
    loaded: Loaded, examples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = loaded.model, loaded.processor
    ends = end_ids(loaded)
    asked_for: list[Any] = []
    stock = generation.sample

    def watch(*arguments: Any, **options: Any) -> Any:
        asked_for.append(options["eos_token_ids"])
        return stock(*arguments, **options)

    monkeypatch.setattr(generation, "sample", watch)
    made = [
        complete(model, processor, examples, PROMPT, Decoding(size, LONGEST)) for size in (1, 4, 6)
    ]
    assert made[0] == made[1] == made[2]
    assert all(sorted(ids) == sorted(ends) for ids in asked_for)
    last = []
    for row, (text, tokens) in enumerate(made[0]):
        inputs = collate(
            asked(loaded, examples, [row]), processor.tokenizer.pad_token_id, model.device
        )
        ids = model.generate(  # transformers' own, with the end tokens of the checkpoint
            **inputs, max_new_tokens=LONGEST, do_sample=False, repetition_penalty=1.0
        )[0, inputs["input_ids"].shape[1] :].tolist()
        assert tokens == len(ids)
        assert text == processor.tokenizer.decode(ids, skip_special_tokens=True)
        last += [ids[-1]] if ids[-1] in ends else []
        assert ids[-1] in ends or tokens == LONGEST
    assert 0 < len(last) < len(examples)


def job(loaded: Loaded, examples: Any, parameters: SFT | RL, folder: Path) -> Job:
    return Job(
        name="a cell",
        model_path=str(loaded.path),
        model=settings(max_pixels=CAP),
        examples=examples,
        prompt=PROMPT,
        parameters=parameters,
        compute=Compute(**shipped("compute")),
        health=shipped_health(),
        seed=0,
        folder=folder,
    )


def parameters(algorithm: str, **changes: Any) -> dict[str, Any]:
    return {
        **shipped("training"),
        **shipped(algorithm),
        "algorithm": algorithm,
        "prompts_per_update": 3,
        "checkpoint_every_updates": 2,
        "lr_schedule": "constant",
        "warmup_ratio": 0.0,
        "learning_rate": 1e-3,
        **changes,
    }


def sft(**changes: Any) -> SFT:
    return SFT(**parameters("sft", updates=1, target="steps", **changes))


def rl(**changes: Any) -> RL:
    kl = Linear(schedule="linear", start=0.01, end=0.1)
    options = {"completions_per_prompt": 2, "max_completion_tokens": 8, **changes}
    return RL(**parameters("rl", updates=2, kl=kl, **options))


def test_training_and_tests_show_the_model_the_same(
    loaded: Loaded, examples: Any, tmp_path: Path
) -> None:
    model, processor = loaded.model, loaded.processor
    shown = asked(loaded, examples, [0, 1, 2])
    rows = rl_rows(examples, PROMPT, processor)
    for row, prompt in enumerate(shown):
        trained = rows[row]["encoded"]
        assert torch.equal(trained.ids, prompt.ids)
        assert torch.equal(
            trained.image_fields["pixel_values"], prompt.image_fields["pixel_values"]
        )
    rows = sft_rows(examples, PROMPT, sft(), EXACT)
    task = job(loaded, examples, sft(), tmp_path)
    trainer = sft_training.build_trainer(model, processor, rows, task, None, lambda *_: None, [])
    batch = next(iter(trainer.get_train_dataloader()))
    pad = processor.tokenizer.pad_token_id
    for name, values in collate(shown, pad, torch.device("cpu")).items():
        if name.startswith(("pixel", "image")):
            assert torch.equal(batch[name].cpu(), values)
    counted = 0
    for row, prompt in enumerate(shown):
        labels, ids = batch["labels"][row].cpu(), batch["input_ids"][row].cpu()
        start = int((labels != -100).nonzero()[0])
        assert torch.equal(ids[:start], prompt.ids)
        target = processor.tokenizer.decode(labels[labels != -100], skip_special_tokens=True)
        example = examples[row]
        written = f"<think>{example['steps']}</think><answer>{example['answer']}</answer>"
        assert target.strip() == written
        assert processor.tokenizer.eos_token_id in labels
        counted += int((labels != -100).sum())
    three = rows.select(range(3))
    assert sft_training.completion_tokens(three, task, processor, 0.0) == counted


def accuracy_reward(completions: Any, **_: Any) -> list[float]:
    """What an untrained model earns something with: the share of small letters."""
    texts = [messages[0]["content"] for messages in completions]
    return [sum(letter.islower() for letter in text) / (len(text) + 1) for text in texts]


def test_rl_ends_completions_where_tests_do(loaded: Loaded, examples: Any, tmp_path: Path) -> None:
    model, processor = loaded.model, loaded.processor
    rows, task = rl_rows(examples, PROMPT, processor), job(loaded, examples, rl(), tmp_path)
    trainer = rl_training.build_trainer(model, processor, rows, task, None, lambda *_: None, [])
    assert sorted(trainer.eos_token_ids) == sorted(end_ids(loaded))


@pytest.mark.parametrize("algorithm", [sft, rl])
def test_a_cell_trains_and_its_checkpoint_answers_as_it_did(
    loaded: Loaded,
    examples: Any,
    tmp_path: Path,
    algorithm: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ACCURACY_REWARDS, "tagged", accuracy_reward)
    asked = PROMPT, Decoding(6, 8)
    answers = []
    history: list[dict[str, float]] = []

    def checkpoint(update: int, model: Any, processor: Any, state: Any) -> dict[str, float]:
        save_model(model, processor, tmp_path / str(update))
        answers.append(complete(model, processor, examples, *asked))
        return {}

    task = job(loaded, examples, algorithm(), tmp_path / "trl")
    trained = train(
        rl_training if algorithm is rl else sft_training,
        task,
        lambda _, metrics: history.append(metrics),
        checkpoint,
        lambda fault, *_: pytest.fail(fault),
    )
    assert trained.weights_changed > 1e-5
    for metrics in history:
        assert all(np.isfinite(value) for value in metrics.values())
    if algorithm is rl:
        assert [metrics["train/shared_prompts"] for metrics in history] == [1.0, 1.0]
        assert [metrics["train/kl_weight"] for metrics in history] == pytest.approx([0.01, 0.1])
        assert history[0]["train/kl"] == pytest.approx(0, abs=1e-5)
        assert history[1]["train/kl"] > 0
    model, processor = load_model(str(tmp_path / str(trained.updates)))
    assert complete(model, processor, examples, *asked) == answers[-1] != answers[0]
    # Checkpoint 0 answers as the base model.
    assert complete(loaded.model, loaded.processor, examples, *asked) == answers[0]
    assert image_tokens(processor, 480, 320) == IMAGE_TOKENS[loaded.family][1][0]


def test_a_cap_is_saved_with_the_checkpoint(loaded: Loaded) -> None:
    _, processor = load_model(str(loaded.capped))
    found = image_tokens(processor, 480, 320), image_tokens(processor, 97, 211)
    assert found == IMAGE_TOKENS[loaded.family][1]
    limit_pixels(processor, None, None)
    assert (image_tokens(processor, 480, 320), image_tokens(processor, 97, 211)) == found


def test_bounds_that_a_processor_cannot_keep_are_named(loaded: Loaded) -> None:
    _, processor = load_model(str(loaded.path))
    if loaded.family in ("idefics3", "smolvlm"):
        with pytest.raises(ConfigurationError, match=r"model.min_pixels = 3136: .* null"):
            limit_pixels(processor, 3136, CAP)
        for most, edge in ((1, 512), (4 * 512**2 - 1, 512), (4 * 512**2, 1024), (5_000_000, 2048)):
            limit_pixels(processor, None, most)
            assert processor.image_processor.size["longest_edge"] == edge
        return
    limit_pixels(processor, 500 * 500, None)
    assert image_tokens(processor, 64, 64) >= 250_000 // 32**2
    with pytest.raises(ConfigurationError, match=r"min_pixels = 250000, model.max_pixels = 1000:"):
        limit_pixels(processor, None, 1000)
    limit_pixels(processor, 1000, 200_000)
    assert dict(processor.video_processor.size)["longest_edge"] == 200_000


def test_a_processor_of_another_kind_is_named() -> None:
    class Strange:
        image_processor = object()

    limit_pixels(Strange(), None, None)
    with pytest.raises(ConfigurationError, match=r"model.max_pixels = 9, .*object has bounds"):
        limit_pixels(Strange(), None, 9)
