"""How many tokens prompts, pictures and targets have, and whether the model has room for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from datasets import Dataset, Image

from othink_pipeline.cells.parameters import Evaluation
from othink_pipeline.data.pictures import picture_size
from othink_pipeline.models.prompts import Prompt, encode, render_prompt, user_message
from othink_pipeline.preflight.rows import Row
from othink_pipeline.scoring.kinds import EXACT, AnswerKind
from othink_pipeline.training.parameters import RL, SFT
from othink_pipeline.training.rows import sft_rows

Splits = Mapping[str, Dataset]
"""The examples of a task by split."""

LOOKED_AT = 64
"""Pictures of a split whose sizes are looked at."""

LARGEST = 4
"""Of these so many go through the processor: those with the most pixels."""

MEASURED = 8
"""Texts of a split that are measured to the token: those that are longest by themselves."""


class TaskExamples(NamedTuple):
    """The examples of a task, and how the model is asked them."""

    splits: Splits
    prompts: Mapping[str, str]
    """Split -> template with ``{question}``."""
    answers: AnswerKind = EXACT
    """Of what kind they are: it says what SFT teaches."""


class Longest(NamedTuple):
    """A prompt, with its target where it has one, that is as long as any in the data."""

    tokens: int
    """The picture's included."""
    prompt: str
    """Template with ``{question}``."""
    example: dict[str, Any]
    """The fields of an example; its picture, undecoded, is the one with the most tokens."""
    answers: AnswerKind
    """Of what kind its answer is."""


class Lengths(NamedTuple):
    """What is longest in the data."""

    prompt: Longest
    """Of all splits."""
    image: int
    """Tokens of the largest picture."""
    sft: dict[str, Longest]
    """By method, of the train splits: a prompt and its target."""


def measure_lengths(
    processor: Any, tasks: Iterable[TaskExamples], methods: Mapping[str, SFT | RL]
) -> Lengths:
    """The longest prompts and targets, behind the largest of ``LOOKED_AT`` pictures of a split."""
    supervised = {name: method for name, method in methods.items() if isinstance(method, SFT)}
    images: list[int] = []
    asked: list[Longest] = []
    taught: dict[str, list[Longest]] = {name: [] for name in supervised}
    for task in tasks:
        picture = _largest_picture(processor, task.splits)
        images.append(picture.tokens)
        for split in task.splits:
            asked += _measure_prompts(processor, picture, task, split)
        for name, method in supervised.items():
            taught[name] += _measure_targets(processor, picture, task, method)
    # The template holds one token for the picture already.
    sft = {name: max(found, key=_by_tokens) for name, found in taught.items()}
    return Lengths(max(asked, key=_by_tokens), max(images) + 1, sft)


def encode_example(processor: Any, examples: Dataset, row: int, prompt: str) -> Prompt:
    """An example's prompt, as the model is asked it."""
    text = render_prompt(processor, prompt, examples["question"][row])
    return encode(processor, [text], [[examples[row]["image"]]])[0]


def check_context(
    path: str,
    model: Any,
    lengths: Lengths,
    methods: Mapping[str, SFT | RL],
    evaluation: Evaluation,
) -> list[Row]:
    """Check that the longest prompt and its completion fit the model's positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    needs = {"evaluation": lengths.prompt.tokens + evaluation.max_completion_tokens}
    for name, method in methods.items():
        if isinstance(method, RL):
            needs[name] = lengths.prompt.tokens + method.max_completion_tokens
        else:
            needs[name] = lengths.sft[name].tokens
    if limit is None:
        return [Row(f"context of {path}", "note", "config.json names no max_position_embeddings")]
    rows = []
    for name, need in needs.items():
        what = (
            f"{need:,} tokens needed, the model has {limit:,}; up to {lengths.image:,} are the "
            f"picture, the largest of {LOOKED_AT} of each split"
        )
        if need <= limit:
            rows.append(Row(f"context of {path} for {name}", "ok", what))
            continue
        asked = lengths.prompt.tokens
        detail = f"{what} (config.json: max_position_embeddings); {asked:,} are the prompt"
        if name in lengths.sft:
            lower = f"Set methods.{name}.target: answer"
        elif name in methods:
            lower = f"Lower max_completion_tokens of rl or methods.{name}"
        else:
            lower = "Lower evaluation.max_completion_tokens"
        remedy = (
            f"{lower}, lower model.max_pixels, shorten data_preparation.prompt, or take a model "
            "with a longer context."
        )
        rows.append(Row(f"context of {path} for {name}", "FAILED", f"{detail}.", remedy))
    return rows


class _Picture(NamedTuple):
    """A picture, undecoded, and the tokens that it adds to its prompt."""

    tokens: int
    file: dict[str, Any]


def _largest_picture(processor: Any, splits: Splits) -> _Picture:
    """Of those looked at, of all splits."""
    chosen = [
        (split, row)
        for split, rows in splits.items()
        for row in Random(0).sample(range(len(rows)), min(LOOKED_AT, len(rows)))
    ]
    undecoded = {
        split: rows.cast_column("image", Image(decode=False)) for split, rows in splits.items()
    }

    def pixels(place: tuple[str, int]) -> int:
        width, height = picture_size(undecoded[place[0]][place[1]]["image"]["bytes"])
        return width * height

    pictures = []
    for split, row in sorted(chosen, key=pixels, reverse=True)[:LARGEST]:
        text = render_prompt(processor, "{question}", splits[split]["question"][row])
        whole = len(encode_example(processor, splits[split], row, "{question}").ids)
        added = whole - len(processor.tokenizer(text)["input_ids"])
        pictures.append(_Picture(added, undecoded[split][row]["image"]))
    return max(pictures, key=lambda picture: picture.tokens)


def _measure_prompts(
    processor: Any, picture: _Picture, task: TaskExamples, split: str
) -> Iterator[Longest]:
    """The longest prompts of a split, behind that picture."""
    questions = task.splits[split]["question"][:]
    for row in _longest(processor, questions):
        text = render_prompt(processor, task.prompts[split], questions[row])
        yield _measure(processor, picture, task, split, text, row)


def _measure_targets(
    processor: Any, picture: _Picture, task: TaskExamples, method: SFT
) -> Iterator[Longest]:
    """The longest prompts of the train split with their targets."""
    examples, prompt = task.splits["train"], task.prompts["train"]
    questions = examples["question"][:]
    made = sft_rows(examples, prompt, method, task.answers)["completion"]
    targets = [messages[0]["content"] for messages in made]
    joined = [f"{q} {t}" for q, t in zip(questions, targets, strict=True)]
    for row in _longest(processor, joined):
        text = _render_target(processor, prompt, questions[row], targets[row])
        yield _measure(processor, picture, task, "train", text, row)


def _measure(
    processor: Any, picture: _Picture, task: TaskExamples, split: str, text: str, row: int
) -> Longest:
    tokens = picture.tokens + len(processor.tokenizer(text)["input_ids"])
    example = task.splits[split].remove_columns("image")[row]
    fields = {**example, "image": picture.file}
    return Longest(tokens, task.prompts[split], fields, task.answers)


def _by_tokens(found: Longest) -> int:
    return found.tokens


def _longest(processor: Any, texts: Sequence[str]) -> list[int]:
    """Places of the longest texts by tokens: a template adds the same to all, up to its seams."""
    lengths = [len(ids) for ids in processor.tokenizer(list(texts))["input_ids"]]
    return sorted(range(len(texts)), key=lambda row: -lengths[row])[:MEASURED]


def _render_target(processor: Any, prompt: str, question: str, target: str) -> str:
    user = [{"type": "image"}, {"type": "text", "text": user_message(prompt, question)}]
    messages = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "text", "text": target}]},
    ]
    rendered: str = processor.apply_chat_template(messages, tokenize=False)
    return rendered
