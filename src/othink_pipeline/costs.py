"""What a grid takes: tokens, floating-point operations and, on a device of known speed, hours.

An estimate, good to a factor of about three for a tiny model, where Python is what takes the time,
and better for a large one. All completions are taken to be as long as they may get, and
all prompts as long as the longest: it is the most that there can be to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from othink_pipeline.memory import Layout, Shape
from othink_pipeline.needs import Lengths, Plan, lay_out
from othink_pipeline.parameters import RL, Evaluation
from othink_pipeline.preflight import Row
from othink_pipeline.weights import DTYPE_BYTES, FLOAT32, Weights

EFFICIENCY = 0.4
"""Share of the speed of one large matrix product that a model's passes reach: 0.52 to 0.55 for a
forward and backward pass of the mini model on one core, 0.3 to 0.5 is usual on a GPU."""

LAYER_STEP_S = 0.0006
"""Seconds that Python and its libraries take for one layer at one token, however little is
computed: measured with the mini model and one row."""


class Speed(NamedTuple):
    """What a device reaches."""

    flops: float
    """Of one large matrix product, a second."""
    bytes: float
    """Read from its memory, a second."""


class Grid(NamedTuple):
    """How often what is trained and tested."""

    tasks: int
    seeds: int
    base_models: int
    test_examples: int
    """Of each task."""
    seconds: Mapping[str, float]
    """Of an update, by algorithm, where trainings from this model were finished; see ``plan``."""

    @property
    def cells(self) -> int:
        """Trainings by each method."""
        return self.tasks * self.seeds


class Cost(NamedTuple):
    """Of one update, or of one test."""

    prompt_tokens: float
    """Image tokens included, once for each time that they are computed."""
    completion_tokens: float
    """Made, at most."""
    flops: float
    seconds: float


class Model(NamedTuple):
    """What the operations of a pass depend on."""

    weights: Weights
    shape: Shape
    lengths: Lengths

    @property
    def head(self) -> int:
        """Weights of the output layer."""
        return self.weights.head or self.weights.embeddings

    @property
    def body(self) -> int:
        """Weights that every text token is multiplied with, but for the output layer's."""
        own = self.weights.parameters - self.weights.vision - self.weights.embeddings
        return own - self.weights.head


def text_flops(model: Model, layout: Layout) -> float:
    """Of one forward pass through the text layers, the output layer included.

    Two for each weight and token; attention is computed for all pairs of tokens in a row.
    """
    pairs = layout.rows * layout.length**2
    attention = 4 * model.shape.layers * model.shape.query * pairs
    return 2 * (model.body * layout.tokens + model.head * layout.judged) + attention


def vision_flops(model: Model, pictures: int) -> float:
    """Of one forward pass of pictures through the vision tower."""
    patches = model.lengths.image * model.shape.patches
    attention = 4 * model.shape.vision_layers * model.shape.vision_hidden * patches**2
    return pictures * (2 * model.weights.vision * patches + attention)


def training_flops(model: Model, plan: Plan, layout: Layout) -> float:
    """Of a forward and a backward pass; the backward one takes the gradients of what is trained.

    Twice a forward pass, once where the weights themselves are not trained; with gradient
    checkpointing there is one forward pass more.
    """
    passes = 1 + (1 if plan.method.lora else 2) + plan.compute.gradient_checkpointing
    seen = 1 if plan.method.freeze_vision else passes
    return passes * text_flops(model, layout) + seen * vision_flops(model, layout.pictures)


def generation_cost(
    model: Model, speed: Speed, rows: int, prompts: int, most: int, number_bytes: int
) -> Cost:
    """Of reading prompts and writing ``rows`` completions of ``most`` tokens, all at a time.

    Each step reads all weights and the cache, and takes its time in every layer.
    """
    read = Layout(prompts, model.lengths.prompt, prompts, rows, packed=False)
    reading = text_flops(model, read) + vision_flops(model, prompts)
    writing = 2.0 * rows * most * (model.body + model.head)
    shape = model.shape
    cached = rows * (model.lengths.prompt + most / 2) * 2 * shape.key_value * shape.layers
    moved = number_bytes * (model.body + model.head + cached)
    steps = most * (shape.layers * LAYER_STEP_S + moved / speed.bytes)
    flops = reading + writing
    seconds = flops / (EFFICIENCY * speed.flops) + steps
    return Cost(read.tokens, rows * most, flops, seconds)


def update_cost(plan: Plan, model: Model, speed: Speed) -> Cost:
    """Of one update, of all processes; its seconds are those of one."""
    size, passes = plan.compute.share_rows(plan.method.rows_per_update)
    layout = lay_out(plan, size, model.lengths)
    flops = training_flops(model, plan, layout)
    if isinstance(plan.method, RL):  # the reference
        flops += text_flops(model, layout) + vision_flops(model, layout.pictures)
    flops *= passes
    prompt_tokens = float(passes * (layout.tokens - layout.judged))
    processes, seconds, made = plan.sharing.processes, flops / (EFFICIENCY * speed.flops), 0.0
    if isinstance(plan.method, RL):
        rows = size * passes
        group = plan.method.completions_per_prompt if plan.shared else 1
        number_bytes = DTYPE_BYTES[plan.settings.dtype] if plan.method.lora else FLOAT32
        most = plan.method.max_completion_tokens
        generated = generation_cost(model, speed, rows, -(-rows // group), most, number_bytes)
        prompt_tokens = 2 * prompt_tokens + generated.prompt_tokens
        made, flops = generated.completion_tokens, flops + generated.flops
        seconds += generated.seconds
    else:
        prompt_tokens = float(passes * layout.tokens)
    return Cost(processes * prompt_tokens, processes * made, processes * flops, seconds)


def evaluation_cost(
    model: Model, speed: Speed, evaluation: Evaluation, examples: int, number_bytes: int
) -> Cost:
    """Of greedy answers to ``examples``, and of sampled ones if there are any."""
    rows = examples * (1 + evaluation.samples)
    size = min(rows, evaluation.batch_size)
    most = evaluation.max_completion_tokens
    batch = generation_cost(model, speed, size, size, most, number_bytes)
    return Cost(*(rows / size * value for value in batch))


def estimate(
    model: Model, plans: Mapping[str, Plan], evaluation: Evaluation, grid: Grid, speed: Speed
) -> list[Row]:
    """What every method costs, what testing does, and the whole grid: a row each."""
    rows: list[Row] = []
    everything = Cost(0, 0, 0, 0)
    for name, plan in plans.items():
        method = plan.method
        number_bytes = DTYPE_BYTES[plan.settings.dtype]
        update = update_cost(plan, model, speed)
        known = grid.seconds.get(method.algorithm)
        training = _times(update, method.updates * grid.cells)
        if known is not None:
            training = training._replace(seconds=known * method.updates * grid.cells)
        scored = 1 + -(-method.updates // method.checkpoint_every_updates)
        examples = grid.tasks * method.validation_examples
        validation = evaluation_cost(model, speed, evaluation, examples, number_bytes)
        tests = evaluation_cost(
            model, speed, evaluation, grid.tasks * grid.test_examples, number_bytes
        )
        checking = _times(validation, scored * grid.cells)
        testing = _times(tests, grid.cells)
        basis = (
            "estimated from the device's speed"
            if known is None
            else f"measured: {known:.2g} s an update in finished trainings of this model"
        )
        detail = (
            f"training {_describe(training)} ({basis}); scoring checkpoints about "
            f"{duration(checking.seconds)}; tests on {grid.tasks} tasks x "
            f"{grid.test_examples:,} examples about {duration(testing.seconds)}"
        )
        rows.append(Row(f"cost of {name}", "note", f"{grid.cells} cells: {detail}"))
        for cost in (training, checking, testing):
            everything = Cost(*map(sum, zip(everything, cost, strict=True)))
    base = evaluation_cost(model, speed, evaluation, grid.tasks * grid.test_examples, FLOAT32)
    everything = Cost(*map(sum, zip(everything, _times(base, grid.base_models), strict=True)))
    detail = (
        f"{_describe(everything)}, tests included, nothing of it done before. At most: all "
        f"completions as long as allowed. Device: {speed.flops / 1e9:,.0f} GFLOP/s in "
        f"matrix products, of which {EFFICIENCY:.0%} are counted on, {speed.bytes / 1e9:,.0f} "
        "GB/s from memory. Good to a factor of 3"
    )
    return [*rows, Row("cost of the grid", "note", detail)]


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _times(cost: Cost, count: float) -> Cost:
    return Cost(*(count * value for value in cost))


def _describe(cost: Cost) -> str:
    return (
        f"about {duration(cost.seconds)}, {_short(cost.prompt_tokens)} prompt tokens computed, "
        f"{_short(cost.completion_tokens)} completion tokens made, {cost.flops:.2g} FLOP"
    )


def _short(number: float) -> str:
    """``950``, ``1.2 M``."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.0f}"
