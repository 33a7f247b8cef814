"""Do the base model, the examples and the parameters fit one another, and the machine?

A model is loaded and run once on an example of each task; nothing is trained. Import this module
inside functions: it imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image, Value

from othink_pipeline.cells.accelerate_config import find_device_fault, read_sharing
from othink_pipeline.cells.parameters import Evaluation, TrainDemand
from othink_pipeline.core.blocks import SAME_ENV, ConfigurationError
from othink_pipeline.core.safetensors import read_weights
from othink_pipeline.core.units import describe_bytes
from othink_pipeline.data.examples import TEXT_FIELDS, draw_examples, find_fault
from othink_pipeline.data.parameters import DataPreparation, Hub
from othink_pipeline.data.source_splits import peek
from othink_pipeline.data.sources import check_there
from othink_pipeline.models.load import load_model
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.models.prompts import CannotShareError, collate, render_prompt
from othink_pipeline.models.sampling import sample
from othink_pipeline.preflight.device import find_device, has_bfloat16
from othink_pipeline.preflight.lengths import (
    Lengths,
    Splits,
    TaskExamples,
    check_context,
    encode_example,
    measure_lengths,
)
from othink_pipeline.preflight.needs import Plan, check_held
from othink_pipeline.preflight.optional_libraries import check_libraries
from othink_pipeline.preflight.rows import Row, failed
from othink_pipeline.scoring.kinds import AnswerKind
from othink_pipeline.scoring.strict import score
from othink_pipeline.training.parameters import RL, SFT

PROBE = "QUESTION"
"""Stands in a prompt for a question, to see what comes after it."""

DRAWN = {"train": 16, "validation": 16, "test": 16}
"""Examples that stand for those of a task that is not prepared yet."""


def draw_splits(task: str, settings: DataPreparation) -> dict[str, Dataset]:
    """A few examples of each split of ``task``, in memory: drawn, or the first of its data sets.

    Nothing is downloaded: none of a task that is read from a hub.

    Raises:
        ConfigurationError: as ``draw_examples`` or ``peek``, or as ``check_there`` of the half that
            is on this machine.
    """
    source = settings.sources.get(task)
    if source is None:
        rows = list(draw_examples(task, DRAWN, settings.seed))
    elif "hub" in (source.train.source.kind, source.test.source.kind):
        for split, part in source:
            if not isinstance(part.source, Hub):
                check_there(part.source, f"data_preparation.sources.{task}.{split}")
        return {}
    else:
        answers = settings.answers_of(task)
        rows = peek(task, source, DRAWN["train"], settings.max_rejected, answers)
    features = Features({name: Value("string") for name in TEXT_FIELDS} | {"image": Image()})
    for row in rows:
        row["image"] = {"bytes": row["image"], "path": None}
    return {
        split: Dataset.from_list([row for row in rows if row["split"] == split], features)
        for split in DRAWN
    }


def check_examples(task: str, splits: Splits, answers: AnswerKind) -> list[Row]:
    """Check columns, one whole example and every answer of each split: a row a split."""
    rows = []
    remedy = (
        f"Mend their source, tasks/{task}.py or data_preparation.sources.{task}, or make them "
        f"again: kedro run --pipelines=data_preparation {SAME_ENV}"
    )
    for split, examples in splits.items():
        fault = _find_split_fault(examples, answers)
        if fault:
            rows.append(Row(f"{task} {split}", "FAILED", f"{fault}.", remedy))
        else:
            detail = f"{len(examples):,} examples, the scorer reads every answer"
            rows.append(Row(f"{task} {split}", "ok", detail))
    return rows


def check_overlap(tasks: Mapping[str, TaskExamples]) -> list[Row]:
    """Check that no task is trained or validated on what another one is tested on: a row a pair."""
    rows = []
    for task, examples in tasks.items():
        tested = set(examples.splits["test"]["key"])
        for other in tasks.keys() - {task}:  # of its own, preparation takes them out
            parts = tasks[other].splits
            used = {key for split in parts if split != "test" for key in parts[split]["key"]}
            if shared := tested & used:
                detail = f"{len(shared)} pictures of its test split are used to train {other}."
                remedy = "Take them out of one of the two data sets: a transfer would be none."
                rows.append(Row(f"{task} test", "FAILED", detail, remedy))
    return rows


def check_model(
    path: str,
    tasks: Mapping[str, TaskExamples],
    methods: Mapping[str, SFT | RL],
    evaluation: Evaluation,
    settings: ModelSettings,
    compute: Compute,
    train: TrainDemand | None = None,
) -> tuple[list[Row], Lengths | None]:
    """Check that a base model loads, reads the tasks' examples and fits context and memory.

    Of the memory it is what a training holds all the time: to find out the rest see ``measure``.

    Args:
        tasks: every one's examples, sound ones alone: see ``check_examples``.
        train: what Ray sets aside for it, if Ray is to run it.

    Returns:
        A row for each check, and what is longest in the examples; None where a check failed before.
    """
    gpus = torch.cuda.device_count()
    if train and train.gpus:  # a task sees no more
        gpus = min(gpus, math.ceil(train.gpus))
    name = f"model {path}"
    device = find_device()
    try:
        if fault := find_device_fault(compute, gpus, train.machines if train else 1):
            return [Row("device", "FAILED", *fault)], None
        sharing = read_sharing(compute)
        weights = read_weights(Path(path))
    except ConfigurationError as error:
        return [Row(name, "FAILED", error.message)], None
    rows = check_libraries(methods, settings, compute, gpu=device.gpu, bfloat16=has_bfloat16())
    plans = {name: Plan(method, settings, compute, sharing) for name, method in methods.items()}
    rows += check_held(path, weights, plans, device)
    if failed(rows):
        return rows, None  # it may not even load
    try:
        model, processor = load_model(path, settings)
    except ConfigurationError as error:
        return [*rows, Row(name, "FAILED", error.message)], None
    detail = f"loads: {weights.parameters:,} parameters, {describe_bytes(weights.stored_bytes)}"
    rows += [Row(name, "ok", detail), *_check_tokens(path, model, processor)]
    if failed(rows):
        return rows, None  # a token without an embedding would break all that follows
    for task, examples in tasks.items():
        rows.append(_check_forward(path, model, processor, task, examples))
    if not tasks or failed(rows):
        return rows, None
    lengths = measure_lengths(processor, tasks.values(), methods)
    return [*rows, *check_context(path, model, lengths, methods, evaluation)], lengths


def _find_split_fault(examples: Dataset, answers: AnswerKind) -> str | None:
    missing = sorted({*TEXT_FIELDS, "image"} - set(examples.column_names))
    if missing:
        return f"columns missing: {', '.join(missing)}"
    if not len(examples):
        return "no examples"
    first = examples.cast_column("image", Image(decode=False))[0]
    first["image"] = (first["image"] or {}).get("bytes")
    if fault := find_fault(first, answers):
        return f"example {first['id']}: {fault}"
    golds: dict[str, str] = dict(zip(examples["answer"], examples["id"], strict=True))
    for gold, example in golds.items():
        if reason := score(f"<answer>{answers.target(gold)}</answer>", gold, answers).reason:
            return f"example {example}: the answer {gold!r} would never be right ({reason})"
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
    elif "<think>" in render_prompt(processor, "{question}", PROBE).rpartition(PROBE)[2]:
        # It would be missing in every completion: none in the asked format, none that thought.
        faults.append(
            "the chat template itself begins the answer with <think>. Delete that at its end, in a "
            "copy of the model, or take a model that is asked for it by the prompt"
        )
    remedy = "Take tokenizer and processor files from the same place as the weights."
    if faults:
        return [Row(f"tokens {path}", "FAILED", "; ".join(faults) + ".", remedy)]
    return [Row(f"tokens {path}", "ok", f"{tokens:,} tokens, {embeddings:,} embeddings")]


def _check_forward(path: str, model: Any, processor: Any, task: str, examples: TaskExamples) -> Row:
    """Run the model on an example and go on from there: do picture and image tokens match?"""
    name = f"{task} through {path}"
    remedy = (
        "Take processor_config.json (preprocessor_config.json) and chat_template.jinja from the "
        "same place as the weights: patch_size, merge_size and temporal_patch_size must be those "
        "of config.json."
    )
    split, rows = next(iter(examples.splits.items()))
    try:
        made = encode_example(processor, rows, 0, examples.prompts[split])
        inputs = collate([made], processor.tokenizer.pad_token_id, model.device)
        with torch.inference_mode():
            logits = model(**inputs).logits
    except Exception as error:  # a processor of another model breaks wherever it breaks first
        fault = " ".join(str(error).split()) or "no message"
        detail = f"processor and model do not belong together: {fault} ({type(error).__name__})."
        return Row(name, "FAILED", detail, remedy)
    images = int((made.ids == model.config.image_token_id).sum())
    pad = processor.tokenizer.pad_token_id
    try:
        greedy: Any = {"temperature": None, "eos_token_ids": [pad], "pad_token_id": pad}
        sample(model, [made], max_tokens=2, **greedy)
    except CannotShareError as error:
        remedy = (
            "Take a model whose layers all attend to all tokens; or, in a copy of this one, set "
            "use_sliding_window in its config.json to false and take layer_types out."
        )
        return Row(name, "FAILED", f"no completion can be sampled: {error}.", remedy)
    if not bool(logits.isfinite().all()):
        return Row(name, "FAILED", "the model's outputs are not finite.", "Replace its weights.")
    return Row(name, "ok", f"a prompt of {len(made.ids)} tokens, {images} of them the image")
