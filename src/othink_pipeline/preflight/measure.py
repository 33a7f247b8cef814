"""What an update and a batch of answers take on this machine: seconds, and memory at the peak.

Both are made as a run makes them, with the longest prompts of the data that is there and every
completion as long as it may get. Import this module inside functions: it imports torch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import click
from accelerate.utils.memory import should_reduce_batch_size
from datasets import Dataset, Features, Image, Value
from transformers import TrainerCallback

from othink_pipeline.cells.accelerate_config import read_sharing
from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.core.redaction import failure
from othink_pipeline.core.safetensors import Weights, read_weights
from othink_pipeline.core.units import describe_bytes
from othink_pipeline.data.examples import TEXT_FIELDS
from othink_pipeline.models.generation import Decoding, complete
from othink_pipeline.models.load import load_model
from othink_pipeline.preflight.costs import Speed
from othink_pipeline.preflight.device import find_device, peak_bytes, reset_peak
from othink_pipeline.preflight.lengths import Lengths, Longest
from othink_pipeline.preflight.needs import Device, Plan, held, remedies
from othink_pipeline.preflight.rows import Row
from othink_pipeline.training.loop import Job, train
from othink_pipeline.training.parameters import RL, SFT

logger = logging.getLogger(__name__)

UPDATES = 2
"""The first one warms up and makes the optimizer's moments; its completions end where they end. The
second one is timed, and its completions are as long as they may get."""

MOST_ON_CPU = 100_000_000
"""Parameters. An update of a larger model takes a CPU hours: it is meant for another machine."""

NEVER = -1
"""A token that no model writes, in place of the one that ends a completion."""


class Measured(NamedTuple):
    """What something took."""

    seconds: float
    peak: int
    """Bytes: see ``device.peak_bytes``."""


def measure_grid(
    path: str, lengths: Lengths, methods: Mapping[str, SFT | RL], parameters: Parameters
) -> tuple[list[Row], Speed]:
    """Measure an update of the heaviest method of each algorithm, and a batch of answers.

    Args:
        path: a base model that passed all other checks.
        methods: the grid's.

    Returns:
        A row for each measurement, FAILED where what was tried does not work, and what was found.
    """
    device = find_device()
    if obstacle := _find_obstacle(path, parameters, device):
        row = Row("seconds and peak memory", "note", f"not known, nothing was measured: {obstacle}")
        return [row], Speed({}, math.nan)
    rows: list[Row] = []
    updates: dict[str, float] = {}
    for name in heaviest(methods, lengths, read_weights(Path(path)), parameters, device):
        method = methods[name]
        longest = lengths.prompt if isinstance(method, RL) else lengths.sft[name]
        row, measured = _try(
            f"an update of {name}",
            f"{_describe(method, longest)}; of the {method.algorithm} methods the heaviest",
            partial(measure_update, path, method, longest, parameters),
            _advise(name, method, parameters),
            device,
        )
        rows.append(row)
        if measured:
            updates[method.algorithm] = measured.seconds
    size, most = parameters.evaluation.batch_size, parameters.evaluation.max_completion_tokens
    row, measured = _try(
        "a batch of answers",
        f"{size} of {most} tokens to prompts of {lengths.prompt.tokens}",
        partial(measure_answers, path, lengths.prompt, parameters),
        "Lower evaluation.max_completion_tokens or model.max_pixels, or take a smaller base model.",
        device,
    )
    answer = measured.seconds / size if measured else math.nan
    return [*rows, row], Speed(updates, answer)


def heaviest(
    methods: Mapping[str, SFT | RL],
    lengths: Lengths,
    weights: Weights,
    parameters: Parameters,
    device: Device,
) -> list[str]:
    """Of each algorithm the method that holds most; of equals the one with most tokens."""
    sharing = read_sharing(parameters.compute)

    def weight(name: str) -> tuple[float, int]:
        method = methods[name]
        plan = Plan(method, parameters.model, parameters.compute, sharing)
        if isinstance(method, RL):
            row = lengths.prompt.tokens + method.max_completion_tokens
        else:
            row = lengths.sft[name].tokens
        return sum(held(plan, weights, device).values()), method.rows_per_update * row

    by_weight = sorted(methods, key=weight)
    return list({methods[name].algorithm: name for name in by_weight}.values())


def measure_update(
    path: str, method: SFT | RL, longest: Longest, parameters: Parameters
) -> Measured:
    """Train a base model for ``UPDATES`` updates, every row of which is as long as it may get.

    What is written on the way is gone in the end.
    """
    algorithm = import_module(f"othink_pipeline.training.{method.algorithm}")
    ended: list[float] = []  # in seconds, by update

    def log(update: int, metrics: dict[str, float]) -> None:
        ended.append(time.perf_counter())

    changes = {"updates": UPDATES, "checkpoint_every_updates": UPDATES}
    if isinstance(method, RL):
        changes["num_iterations"] = 1  # the dearer update: it samples
    with TemporaryDirectory() as folder:
        job = Job(
            name=f"measuring {method.algorithm}",
            model_path=path,
            model=parameters.model,
            examples=_repeat(longest.example, UPDATES * method.prompts_per_update),
            prompt=longest.prompt,
            parameters=method.model_copy(update=changes),
            compute=parameters.compute.model_copy(update={"resume_every_updates": UPDATES}),
            # Completions that may not end say nothing about a training.
            health=parameters.health.model_copy(
                update=dict.fromkeys(
                    ("no_advantage", "endless_completions", "format_collapse"), "go_on"
                )
            ),
            seed=0,
            answers=longest.answers,
            folder=Path(folder),
        )
        callbacks = [_NeverEnding()] if isinstance(method, RL) else []
        reset_peak()
        train(algorithm, job, log, lambda *_: {}, _warn, callbacks)
    return Measured(ended[-1] - ended[-2], peak_bytes())


def measure_answers(path: str, longest: Longest, parameters: Parameters) -> Measured:
    """Answer a batch of the longest prompts, every answer as long as it may get."""
    reset_peak()
    model, processor = load_model(path, parameters.model)
    model.generation_config.eos_token_id = NEVER
    rows = _repeat(longest.example, parameters.evaluation.batch_size)
    decoding = Decoding(**parameters.evaluation.generation)
    complete(model, processor, rows.take(1), longest.prompt, decoding)  # warms up
    began = time.perf_counter()
    complete(model, processor, rows, longest.prompt, decoding)
    return Measured(time.perf_counter() - began, peak_bytes())


def _find_obstacle(path: str, parameters: Parameters, device: Device) -> str | None:
    """Why nothing is measured here."""
    compute = parameters.compute
    if compute.launched:
        return (
            f"a cell has processes of its own (compute.num_processes = {compute.num_processes}, "
            f"compute.launcher = {compute.launcher}). The memory above is exact, what comes and "
            "goes in an update is not in it"
        )
    size = read_weights(Path(path)).parameters
    if not device.gpu and size > MOST_ON_CPU:
        return (
            f"{size:,} parameters are for a GPU, and none can be seen. The memory above is exact, "
            "what comes and goes in an update is not in it; ask again on the machine that trains"
        )
    return None


def _try(
    check: str, what: str, measure: Callable[[], Measured], remedy: str, device: Device
) -> tuple[Row, Measured | None]:
    try:
        measured = measure()
    except Exception as error:  # what would stop a run, whatever it is, is a row beside the others
        if isinstance(error, MemoryError) or should_reduce_batch_size(error):
            return Row(check, "FAILED", f"out of memory: {what}; {device}.", remedy), None
        known = isinstance(error, click.ClickException)  # its message says it all
        logger.error("%s failed", check, exc_info=None if known else error)
        return Row(check, "FAILED", f"{failure(error)} ({what})."), None
    detail = (
        f"{measured.seconds:.2g} s, {describe_bytes(measured.peak)} at the peak; {device}. {what}"
    )
    return Row(check, "note", detail), measured


class _NeverEnding(TrainerCallback):
    """After an update every completion is as long as it may get, whoever generates it."""

    trainer: Any

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.eos_token_ids = [NEVER]
        if self.trainer.use_vllm:
            self.trainer.vllm_generation.generation_kwargs["ignore_eos"] = True
        else:  # TRL's own generation
            self.trainer.generation_config.min_new_tokens = self.trainer.max_completion_length


def _warn(fault: str, update: int, figures: str) -> None:
    logger.warning("update %d: %s: %s", update, fault, figures)


def _repeat(example: Mapping[str, Any], count: int) -> Dataset:
    """The same example so many times; pictures have names, or all prompts would count as one."""
    features = Features({name: Value("string") for name in TEXT_FIELDS} | {"image": Image()})
    rows = [
        {name: example[name] for name in TEXT_FIELDS}
        | {"image": {"bytes": example["image"]["bytes"], "path": str(number)}}
        for number in range(count)
    ]
    return Dataset.from_list(rows, features)


def _describe(method: SFT | RL, longest: Longest) -> str:
    if isinstance(method, SFT):
        return f"{method.rows_per_update} rows of {longest.tokens} tokens"
    return (
        f"{method.rows_per_update} completions of {method.max_completion_tokens} tokens to "
        f"{method.prompts_per_update} prompts of {longest.tokens}"
    )


def _advise(name: str, method: SFT | RL, parameters: Parameters) -> str:
    """What takes less memory, what changes results least first."""
    compute = parameters.compute
    tried = []
    if (rows := compute.share_rows(method.rows_per_update)[0]) > 1:
        smaller = max(size for size in range(1, rows // 2 + 1) if rows % size == 0)
        tried.append(f"compute.micro_batch_size: {smaller}")
    if not compute.gradient_checkpointing:
        tried.append("compute.gradient_checkpointing: true")
    tried += remedies(Plan(method, parameters.model, compute, read_sharing(compute)))
    if isinstance(method, RL):
        tried.append(f"a lower max_completion_tokens of rl or methods.{name}")
    tried += ["a lower model.max_pixels", "a smaller base model or a device with more memory"]
    return f"What may help, one after the other: {'; '.join(tried)}."
