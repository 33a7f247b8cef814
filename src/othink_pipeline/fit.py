"""Do the base model, the examples and the parameters fit one another, and the machine?

A model is loaded and run once on an example of each task; nothing is trained. Import this module
inside functions: it imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import torch
from datasets import Dataset, Features, Image, Value

from othink_pipeline.examples import TEXT_FIELDS, draw_examples, find_fault
from othink_pipeline.launchers import find_device_fault
from othink_pipeline.model_parameters import Compute, ModelSettings
from othink_pipeline.models import load_model, render_prompt, user_message
from othink_pipeline.parameters import RL, SFT, Evaluation
from othink_pipeline.preflight import Row, Weights, read_weights
from othink_pipeline.prompts import Prompt, collate, encode
from othink_pipeline.scoring import score
from othink_pipeline.training_data import sft_rows
from othink_pipeline.validation import ConfigurationError

Splits = Mapping[str, Dataset]
"""The examples of a task by split."""

DRAWN = {"train": 16, "validation": 16, "test": 16}
"""Examples that stand for those of a task that is not prepared yet."""

TIGHT = 0.8
"""A larger share of the memory is worth a note."""

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


class Lengths(NamedTuple):
    """The most tokens, image included, of a prompt and, by method, of a prompt and its target."""

    prompt: int
    sft: dict[str, int]


def find_device() -> tuple[str, int]:
    """What computes, in words, and its memory in bytes: of the first GPU, else of the process."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return f"GPU {device.name}", device.total_memory
    limits = [psutil.virtual_memory().total]
    for file in CGROUP_LIMITS:
        if file.exists() and (text := file.read_text().strip()).isdecimal():
            limits.append(int(text))
    return f"CPU (threads: {torch.get_num_threads()})", min(limits)


def draw_splits(task: str, seed: int) -> dict[str, Dataset]:
    """A few examples of each split of ``task``, in memory.

    Raises:
        ConfigurationError: as ``draw_examples``.
    """
    features = Features({name: Value("string") for name in TEXT_FIELDS} | {"image": Image()})
    rows = list(draw_examples(task, DRAWN, seed))
    for row in rows:
        row["image"] = {"bytes": row["image"], "path": None}
    return {
        split: Dataset.from_list([row for row in rows if row["split"] == split], features)
        for split in DRAWN
    }


def check_examples(task: str, splits: Splits) -> list[Row]:
    """Check columns, one whole example and every answer of each split: a row a split."""
    rows = []
    remedy = f"Make them again: kedro run --pipelines=data_preparation; or mend tasks/{task}.py."
    for split, examples in splits.items():
        fault = _find_split_fault(examples)
        if fault:
            rows.append(Row(f"{task} {split}", "FAILED", f"{fault}.", remedy))
        else:
            detail = f"{len(examples):,} examples, the scorer reads every answer"
            rows.append(Row(f"{task} {split}", "ok", detail))
    return rows


def check_model(
    path: str,
    tasks: Mapping[str, Splits],
    prompt: str,
    methods: Mapping[str, SFT | RL],
    evaluation: Evaluation,
    settings: ModelSettings,
    compute: Compute,
) -> list[Row]:
    """Check that a base model loads, reads the tasks' examples and fits context and memory.

    Args:
        path: the model's folder.
        tasks: examples of every task, sound ones alone: see ``check_examples``.
        prompt: template with ``{question}``.
        methods: what the grid trains it by.
        settings: how it is loaded.
        compute: how it is trained.
    """
    if fault := find_device_fault(compute, torch.cuda.device_count()):
        return [Row("device", "FAILED", *fault)]
    name = f"model {path}"
    try:
        weights = read_weights(Path(path))
    except ConfigurationError as error:
        return [Row(name, "FAILED", error.message)]
    fixed = [_check_fixed_memory(path, weights, methods)]
    if fixed[0].outcome == "FAILED":
        return fixed  # it may not even load
    try:
        model, processor = load_model(path, settings)
    except ConfigurationError as error:
        return [*fixed, Row(name, "FAILED", error.message)]
    detail = f"loads: {weights.parameters:,} parameters, {_gigabytes(weights.stored_bytes)}"
    rows = [*fixed, Row(name, "ok", detail), *_check_tokens(path, model, processor)]
    if any(row.outcome == "FAILED" for row in rows):
        return rows  # a token without an embedding would break all that follows
    for task, splits in tasks.items():
        rows.append(_check_forward(path, model, processor, task, splits, prompt))
    if not tasks or any(row.outcome == "FAILED" for row in rows):
        return rows
    lengths = _measure(processor, tasks, prompt, methods)
    rows += _check_context(path, model, lengths, methods, evaluation)
    config = model.config.get_text_config()
    rows.append(_check_peak_memory(path, config, weights, lengths, methods, evaluation))
    return rows


def _find_split_fault(examples: Dataset) -> str | None:
    missing = sorted({*TEXT_FIELDS, "image"} - set(examples.column_names))
    if missing:
        return f"columns missing: {', '.join(missing)}"
    if not len(examples):
        return "no examples"
    first = examples.cast_column("image", Image(decode=False))[0]
    if fault := find_fault({**first, "image": (first["image"] or {}).get("bytes")}):
        return f"example {first['id']}: {fault}"
    answers: dict[str, str] = dict(zip(examples["answer"], examples["id"], strict=True))
    for answer, example in answers.items():
        if reason := score(f"<answer>{answer}</answer>", answer).reason:
            return f"example {example}: the answer {answer!r} would never be right ({reason})"
    for question, example in zip(examples["question"], examples["id"], strict=True):
        if not question or not question.strip():
            return f"example {example}: the question is empty"
    return None


def _check_tokens(path: str, model: Any, processor: Any) -> list[Row]:
    """Check that every token has an embedding, and that the special ones are there."""
    tokenizer, config = processor.tokenizer, model.config
    embeddings, tokens = model.get_input_embeddings().weight.shape[0], len(tokenizer)
    faults = []
    if tokens > embeddings:
        faults.append(f"the tokenizer has {tokens:,} tokens, the model embeds {embeddings:,}")
    if tokenizer.eos_token_id is None:
        faults.append("the tokenizer has no eos_token: completions would never end")
    if tokenizer.pad_token_id is None:
        faults.append("the tokenizer has no pad_token: prompts cannot share a batch")
    image_id = getattr(config, "image_token_id", None)
    image_token = getattr(processor, "image_token", None)
    if image_id is None or image_token is None:
        faults.append("model or processor has no image token: this is no vision-language model")
    elif tokenizer.convert_tokens_to_ids(image_token) != image_id:
        found = tokenizer.convert_tokens_to_ids(image_token)
        faults.append(f"image token {image_token!r} is {found}, config.json says {image_id}")
    if getattr(processor, "chat_template", None) is None:
        faults.append("the processor has no chat template")
    remedy = "Take tokenizer and processor files from the same place as the weights."
    if faults:
        return [Row(f"tokens {path}", "FAILED", "; ".join(faults) + ".", remedy)]
    return [Row(f"tokens {path}", "ok", f"{tokens:,} tokens, {embeddings:,} embeddings")]


def _check_forward(
    path: str, model: Any, processor: Any, task: str, splits: Splits, prompt: str
) -> Row:
    """Run the model once on an example: do picture and image tokens match?"""
    name = f"{task} through {path}"
    remedy = (
        "Take processor_config.json (preprocessor_config.json) and chat_template.jinja from the "
        "same place as the weights: patch_size, merge_size and temporal_patch_size must be those "
        "of config.json."
    )
    examples = next(iter(splits.values()))
    try:
        made = _encode(processor, examples, 0, prompt)
        inputs = collate([made], processor.tokenizer.pad_token_id, model.device)
        with torch.inference_mode():
            logits = model(**inputs).logits
    except Exception as error:  # a processor of another model breaks wherever it breaks first
        fault = " ".join(str(error).split()) or "no message"
        detail = f"processor and model do not belong together: {fault} ({type(error).__name__})."
        return Row(name, "FAILED", detail, remedy)
    images = int((made.ids == model.config.image_token_id).sum())
    if not bool(logits.isfinite().all()):
        return Row(name, "FAILED", "the model's outputs are not finite.", "Replace its weights.")
    return Row(name, "ok", f"a prompt of {len(made.ids)} tokens, {images} of them the image")


def _encode(processor: Any, examples: Dataset, row: int, prompt: str) -> Prompt:
    text = render_prompt(processor, prompt, examples["question"][row])
    return encode(processor, [text], [[examples[row]["image"]]])[0]


def _measure(
    processor: Any,
    tasks: Mapping[str, Splits],
    prompt: str,
    methods: Mapping[str, SFT | RL],
) -> Lengths:
    """The longest prompts and targets; every picture of a task is as large as the next."""
    count = processor.tokenizer
    supervised = {name: method for name, method in methods.items() if isinstance(method, SFT)}
    longest, sft = 0, dict.fromkeys(supervised, 0)
    for splits in tasks.values():
        first = next(iter(splits.values()))
        text = render_prompt(processor, prompt, first["question"][0])
        images = len(_encode(processor, first, 0, prompt).ids) - len(count(text)["input_ids"])
        for examples in splits.values():
            for row in _longest(processor, examples["question"][:]):
                text = render_prompt(processor, prompt, examples["question"][row])
                longest = max(longest, images + len(count(text)["input_ids"]))
        for name, method in supervised.items():
            made = sft_rows(splits["train"], prompt, method)
            targets = [messages[0]["content"] for messages in made["completion"]]
            questions = splits["train"]["question"][:]
            joined = [f"{q} {t}" for q, t in zip(questions, targets, strict=True)]
            for row in _longest(processor, joined):
                text = _render_target(processor, prompt, questions[row], targets[row])
                sft[name] = max(sft[name], images + len(count(text)["input_ids"]))
    return Lengths(longest, sft)


def _longest(processor: Any, texts: Sequence[str], most: int = 8) -> list[int]:
    """Places of the longest texts by tokens: a template adds the same to all, up to its seams."""
    lengths = [len(ids) for ids in processor.tokenizer(list(texts))["input_ids"]]
    return sorted(range(len(texts)), key=lambda row: -lengths[row])[:most]


def _render_target(processor: Any, prompt: str, question: str, target: str) -> str:
    user = [{"type": "image"}, {"type": "text", "text": user_message(prompt, question)}]
    messages = [
        {"role": "user", "content": user},
        {"role": "assistant", "content": [{"type": "text", "text": target}]},
    ]
    rendered: str = processor.apply_chat_template(messages, tokenize=False)
    return rendered


def _check_context(
    path: str,
    model: Any,
    lengths: Lengths,
    methods: Mapping[str, SFT | RL],
    evaluation: Evaluation,
) -> list[Row]:
    """Check that the longest prompt and its completion fit the model's positions."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    needs = {"evaluation": lengths.prompt + evaluation.max_completion_tokens}
    for name, method in methods.items():
        if isinstance(method, RL):
            needs[name] = lengths.prompt + method.max_completion_tokens
        else:
            needs[name] = lengths.sft[name]
    if limit is None:
        return [Row(f"context of {path}", "note", "config.json names no max_position_embeddings")]
    rows = []
    for name, need in needs.items():
        what = f"{need:,} tokens needed, the model has {limit:,}"
        if need <= limit:
            rows.append(Row(f"context of {path} for {name}", "ok", what))
            continue
        detail = f"{what} (config.json: max_position_embeddings); {lengths.prompt:,} are the prompt"
        if name in lengths.sft:
            lower = f"Set methods.{name}.target: answer"
        elif name in methods:
            lower = f"Lower max_completion_tokens of rl or methods.{name}"
        else:
            lower = "Lower evaluation.max_completion_tokens"
        remedy = f"{lower}, shorten data_preparation.prompt, or take a model with a longer context."
        rows.append(Row(f"context of {path} for {name}", "FAILED", f"{detail}.", remedy))
    return rows


def _fixed_bytes(weights: Weights, methods: Mapping[str, SFT | RL]) -> int:
    """Memory that training holds all the time.

    Weights, their copy from before, gradients and Adam's two moments; with RL also the reference
    model, which TRL loads in float32.
    """
    reference = 4 * weights.parameters if any(isinstance(m, RL) for m in methods.values()) else 0
    return 5 * weights.stored_bytes + reference


def _check_fixed_memory(path: str, weights: Weights, methods: Mapping[str, SFT | RL]) -> Row:
    device, memory = find_device()
    need = _fixed_bytes(weights, methods)
    detail = (
        f"{_gigabytes(need)} for weights, gradients, optimizer and reference; {device} has "
        f"{_gigabytes(memory)}"
    )
    if need <= memory:
        return Row(f"memory for {path}", "ok", detail)
    remedy = "Take a smaller base model or a device with more memory."
    return Row(f"memory for {path}", "FAILED", f"{detail}.", remedy)


def _check_peak_memory(
    path: str,
    config: Any,
    weights: Weights,
    lengths: Lengths,
    methods: Mapping[str, SFT | RL],
    evaluation: Evaluation,
) -> Row:
    """Estimate the most memory that training and evaluation take; a note, as the rule is rough.

    To what stays there all the time comes the larger of two. The backward pass: 17 numbers for
    each token, layer and hidden unit (arXiv 2205.05198, table 2, without the attention matrix;
    vision tower left out) and three for each token that the loss is over and each entry of the
    vocabulary. Generation: keys and values of every token and layer. Prompts count once for each
    of their completions, as where they are not shared.
    """
    size = 2 if torch.cuda.is_available() else 4  # bytes of a number
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    cached = 2 * size * config.num_hidden_layers * heads * head_size  # bytes a token
    kept = 17 * size * config.num_hidden_layers * config.hidden_size
    extra = [evaluation.batch_size * (lengths.prompt + evaluation.max_completion_tokens) * cached]
    for name, method in methods.items():
        rows = method.prompts_per_update
        tokens = judged = lengths.sft.get(name, 0)
        if isinstance(method, RL):
            rows *= method.completions_per_prompt
            judged = method.max_completion_tokens
            tokens = lengths.prompt + judged
            extra.append(rows * tokens * cached)
        extra.append(rows * (tokens * kept + judged * 3 * 4 * config.vocab_size))
    peak = _fixed_bytes(weights, methods) + max(extra)
    device, memory = find_device()
    detail = f"about {_gigabytes(peak)} at the peak of training; {device} has {_gigabytes(memory)}"
    if peak <= TIGHT * memory:
        return Row(f"peak memory for {path}", "ok", detail)
    remedy = "Lower training.prompts_per_update, rl.completions_per_prompt or evaluation.batch_size"
    return Row(f"peak memory for {path}", "note", f"{detail}. {remedy} if it runs out.")


def _gigabytes(size_bytes: float) -> str:
    return f"{size_bytes / 1e9:.3g} GB"
