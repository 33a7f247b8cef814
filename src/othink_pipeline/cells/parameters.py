"""Every parameter block: typed, frozen, closed, with units and bounds.

The YAML files in ``conf/`` hold the only defaults; the models here say what is allowed. A method's
parameters are *resolved* by laying three blocks over one another: ``training`` (the budget that
all methods share), the algorithm's own block (``sft`` or ``rl``), and the method's block; and over
these what the method says of the task that is trained on (``trained_on``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from othink_pipeline.core.blocks import (
    BadParametersError,
    Block,
    Count,
    LearningRate,
    Name,
    Place,
    Positive,
    Share,
    Weight,
    validate,
)
from othink_pipeline.data.parameters import DataPreparation
from othink_pipeline.data.tasks import available_tasks
from othink_pipeline.models.parameters import BaseModel, Compute, ModelSettings, Rebuild
from othink_pipeline.report.parameters import KnownMethods, Published, Report
from othink_pipeline.training.kl import KLSchedule

FaultPolicy = Literal["stop", "skip_batch", "go_on"]

MAX_SEEDS = 1000
"""A larger count is a mistake, and its grid would not fit into memory."""

MAX_SAMPLES = 8
"""majority@k goes through all subsets of the samples: 70 of them at most."""

RESERVED = ("base", "data", "none", "report")
"""Namespaces and rows of the transfer matrix: no task or method has such a name."""


class Experiment(Block):
    """The grid: tasks x methods x seeds."""

    # Not strict: YAML's lists become tuples.
    tasks: tuple[Name, ...] = Field(strict=False)
    methods: tuple[Name, ...] = Field(strict=False)
    seeds: tuple[Count, ...] = Field(strict=False)
    """A list of seeds, or a count ``n`` for 0 .. n-1."""

    @field_validator("seeds", mode="before")
    @classmethod
    def _count_to_seeds(cls, seeds: Any) -> Any:
        if isinstance(seeds, list | tuple):
            return seeds
        if type(seeds) is not int or not 0 < seeds <= MAX_SEEDS:
            raise ValueError(f"must be a list of seeds, or a count of them, 1 to {MAX_SEEDS}")
        return tuple(range(seeds))

    @field_validator("tasks", "methods", "seeds")
    @classmethod
    def _check_values(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if not values:
            raise ValueError("must hold at least one value")
        if len(set(values)) < len(values):
            raise ValueError("holds a value twice")
        return values

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        for task in tasks:
            if task in RESERVED:
                raise ValueError(f"tasks holds {task!r}, a name that the project uses itself")
        return tasks


class Folders(Block):
    """Where an environment keeps its files, relative to the project; also in its globals.yml."""

    examples: Place
    checkpoints: Place
    predictions: Place


class Lora(Block):
    """Train low-rank adapters (arXiv 2106.09685) in place of the weights themselves."""

    rank: Positive
    alpha: Annotated[float, Field(gt=0)]
    """The adapters' output is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)]
    modules: tuple[str, ...] | Literal["all-linear"]
    """Names of the layers that get one: ``[q_proj, v_proj]``; or all but the output layer."""
    merge: bool
    """Checkpoints hold whole models with the adapters in them, not the adapters alone."""

    @field_validator("modules", mode="before")
    @classmethod
    def _check_modules(cls, modules: Any) -> Any:
        if modules == "all-linear":
            return modules
        named = isinstance(modules, list | tuple) and modules
        if not named or not all(isinstance(name, str) for name in modules):
            raise ValueError("must be all-linear, or a list of names of layers: [q_proj, v_proj]")
        return tuple(modules)


class Training(Block):
    """What every method gets: the same prompts, in the same order, as often; the same weights."""

    updates: Positive
    """Optimizer steps."""
    prompts_per_update: Positive
    checkpoint_every_updates: Positive
    validation_examples: Positive
    """Validation examples of *each* task that every checkpoint is scored on."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"]
    """The 8-bit ones (bitsandbytes) keep Adam's moments in a quarter of the memory, on a GPU."""
    freeze_vision: bool
    """The vision tower is not trained."""
    lora: Lora | None
    """null: all weights are trained."""


class Method(Training):
    """What both algorithms need."""

    learning_rate: LearningRate
    lr_schedule: Literal["constant", "linear", "cosine"]
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    weight_decay: Weight


class SFT(Method):
    """Supervised fine-tuning."""

    algorithm: Literal["sft"]
    target: Literal["answer", "steps"]
    """``<answer> n </answer>`` as in the paper's data, or the worked steps before it."""

    @property
    def rows_per_update(self) -> int:
        """Sequences that an update's loss is taken over."""
        return self.prompts_per_update


class Rewards(Block):
    """Weights of the rewards; a reward with weight 0 is not given."""

    accuracy: Weight
    format: Weight
    answer: Literal["tagged", "any"]
    """Where the accuracy reward looks: in the one answer tag, or without it at the last number.
    With ``tagged`` accuracy pays for the format too."""

    @model_validator(mode="after")
    def _check_any(self) -> Rewards:
        if self.accuracy + self.format == 0:
            raise ValueError("all rewards have weight 0: there is nothing to learn from")
        return self


class RL(Method):
    """GRPO; with a dynamic ``kl`` it is GRPO-D."""

    algorithm: Literal["rl"]
    completions_per_prompt: Annotated[int, Field(ge=2)]
    max_completion_tokens: Positive
    temperature: Annotated[float, Field(gt=0)]
    rewards: Rewards
    unbiased_kl: bool
    """Multiply the KL's estimator by the policy's ratio to itself: its gradient is then that of the
    KL (DeepSeek-V3.2, arXiv 2512.02556; TRL's default). false: the estimator alone, as GRPO and
    R1-V have it."""
    kl: KLSchedule = Field(discriminator="schedule")

    @property
    def rows_per_update(self) -> int:
        """Sequences that an update's loss is taken over."""
        return self.prompts_per_update * self.completions_per_prompt


class Evaluation(Block):
    """Greedy generation, and what else the test split is used for."""

    batch_size: Positive
    max_completion_tokens: Positive
    samples: Annotated[int, Field(ge=0, le=MAX_SAMPLES)]
    """Sampled completions of each test example, for pass@k and majority@k; 0: none."""
    sample_temperature: Annotated[float, Field(gt=0)]
    shuffle_images: bool
    """Ask about another example's picture: what is still right hardly comes from the picture."""
    seed: Count
    """Of the samples and of the shuffling."""

    @property
    def generation(self) -> dict[str, Any]:
        """What greedy generation alone needs."""
        return self.model_dump(include={"batch_size", "max_completion_tokens"})


class Health(Block):
    """What is done about numbers that go wrong; each fault has its policy."""

    loss_not_finite: FaultPolicy
    gradient_not_finite: FaultPolicy
    kl_overflow: FaultPolicy
    reward_failed: FaultPolicy
    reward_timeout: FaultPolicy
    reward_timeout_s: Annotated[float, Field(gt=0, le=86400)]
    patience_updates: Positive
    """Updates in a row that make a lasting fault; so many skipped ones in a row are borne."""
    no_advantage: FaultPolicy
    endless_completions: FaultPolicy
    endless_share: Annotated[float, Field(gt=0, le=1)]
    """Completions that reach the most tokens, from which on they are endless."""
    format_collapse: FaultPolicy
    format_learnt: Share
    """Mean format reward that once reached can be lost."""
    format_lost: Share
    """Mean format reward below which it is."""

    @model_validator(mode="after")
    def _check_format(self) -> Health:
        if self.format_lost > self.format_learnt:
            raise ValueError(
                f"format_lost <= format_learnt is asked, got format_lost = {self.format_lost}, "
                f"format_learnt = {self.format_learnt}"
            )
        return self


class Parameters(Block):
    """All of ``conf/<env>/parameters*.yml``; ``methods`` holds each method's own block."""

    experiment: Experiment
    folders: Folders
    data_preparation: DataPreparation
    base_model: BaseModel
    model: ModelSettings
    rebuild: Rebuild
    training: Training
    sft: dict[str, Any]
    rl: dict[str, Any]
    methods: dict[Name, dict[str, Any]]
    evaluation: Evaluation
    compute: Compute
    health: Health
    report: Report
    known_methods: KnownMethods
    published: Published

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Parameters:
        """Validate a whole parameter tree.

        Raises:
            BadParametersError: a line for every fault: key, value, what is allowed.
        """
        faults: list[str] = []
        parameters: Parameters | None = None
        try:
            parameters = validate(cls, raw, {})
        except BadParametersError as error:
            faults += error.faults
        else:
            faults += parameters._find_faults()
        for name, task in _methods_on_tasks(raw):
            try:
                resolved = resolve_method(raw, name, task)
            except BadParametersError as error:
                faults += error.faults
            else:
                faults += parameters._find_faults_of(name, resolved) if parameters else []
        if faults or parameters is None:
            raise BadParametersError(faults)
        return parameters

    def _find_faults(self) -> Iterator[str]:
        """What is right in each block and wrong between them, methods' own keys aside."""
        methods = ", ".join(sorted(self.methods))
        for name in RESERVED:
            if name in self.methods:
                yield f"methods.{name}: the project uses this name itself, choose another"
        yield from self._find_unknown_tasks()
        for name in self.experiment.methods:
            if name not in self.methods:
                yield (
                    f"experiment.methods holds {name!r}, which is no method. Allowed: {methods}. "
                    "A new method is a block under 'methods'."
                )
        for name in dict.fromkeys(name for pair in self.report.comparisons for name in pair):
            if name not in self.methods:
                yield (
                    f"report.comparisons holds {name!r}, which is no method. Allowed: {methods}. "
                    "An environment with methods of its own needs comparisons of its own, or "
                    "none: report: {comparisons: []}"
                )
        if self.model.dtype != "float32" and not self.compute.bf16:
            yield (
                f"model.dtype = {self.model.dtype!r} with compute.bf16 = False: what is trained is "
                "float32 and would meet it unconverted. Set compute.bf16: true, or model.dtype: "
                "float32."
            )

    def _find_unknown_tasks(self) -> Iterator[str]:
        tasks = sorted({*available_tasks(), *self.data_preparation.sources})
        named: dict[str, Iterable[str]] = {
            "experiment.tasks": self.experiment.tasks,
            "data_preparation.train_examples": self.data_preparation.train_examples,
        }
        for method, block in self.methods.items():
            named[f"methods.{method}.{TRAINED_ON}"] = tuple(_of_tasks(block))
        for key, names in named.items():
            for task in names:
                if task not in tasks:
                    yield (
                        f"{key} holds {task!r}, which is no task. Allowed: {', '.join(tasks)}. A "
                        "new task is a file in data/tasks/, or a block of data_preparation.sources."
                    )

    def _find_faults_of(self, method: str, resolved: SFT | RL) -> Iterator[str]:
        """What is right in a method by itself and does not fit the other blocks."""
        if isinstance(resolved, SFT) and resolved.target == "steps":
            yield from self._find_missing_steps(method)
        try:
            self.compute.share_rows(resolved.rows_per_update)
        except ValueError as error:
            yield f"methods.{method}: {error}"
        available = self.data_preparation.splits.validation
        if resolved.validation_examples > available:
            yield (
                f"methods.{method}: validation_examples = {resolved.validation_examples}, but "
                f"data_preparation.splits.validation makes {available}. Lower the one or raise the "
                "other."
            )

    def _find_missing_steps(self, method: str) -> Iterator[str]:
        """Worked steps are targets, and a data set has none."""
        for task in self.experiment.tasks if method in self.experiment.methods else ():
            source = self.data_preparation.sources.get(task)
            if source and source.train.columns.steps is None:
                yield (
                    f"methods.{method}.target = 'steps': the data set of task {task!r} has no "
                    "worked steps. Set target: answer, or name their column in "
                    f"data_preparation.sources.{task}.train.columns.steps."
                )


TRAINED_ON = "trained_on"
"""Key of a method's block: task -> the method's keys that are others when it is trained on it."""


def _of_tasks(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a method's block says of tasks that it is trained on; nothing where that is wrong."""
    of_tasks = block.get(TRAINED_ON, {})
    return of_tasks if isinstance(of_tasks, Mapping) else {}


def _methods_on_tasks(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each method with each task of the grid, and with those that it names; none of bad blocks."""
    blocks = {key: raw.get(key) for key in ("training", "sft", "rl", "methods", "experiment")}
    if not all(isinstance(block, Mapping) for block in blocks.values()):
        return []
    tasks = raw["experiment"].get("tasks")
    grid = tasks if isinstance(tasks, list | tuple) else []
    return [
        (name, str(task))
        for name, block in raw["methods"].items()
        if isinstance(block, Mapping)
        for task in dict.fromkeys([*map(str, grid), *_of_tasks(block)])
    ]


def resolve_method(raw: Mapping[str, Any], name: str, task: str) -> SFT | RL:
    """The full parameters of a method that is trained on ``task``.

    ``training``, then ``sft`` or ``rl``, then the method's own block, then what stands there under
    ``trained_on`` for the task. A key of one layer replaces that of the layers before as a whole.

    Args:
        raw: a mapping that holds at least ``training``, ``sft``, ``rl`` and ``methods``.
        name: a key of ``methods``.
        task: what is trained on.

    Raises:
        BadParametersError: as ``Parameters.read``.
    """
    block = dict(raw["methods"][name])
    of_tasks = block.pop(TRAINED_ON, {})
    algorithm = block.get("algorithm")
    if algorithm not in list(ALGORITHMS):
        raise BadParametersError(
            [
                f"methods.{name}.algorithm = {algorithm!r}: not allowed. "
                f"Allowed: {', '.join(ALGORITHMS)}. The block holds: {', '.join(map(str, block))}"
            ]
        )
    if not isinstance(of_tasks, Mapping) or not isinstance(of_tasks.get(task, {}), Mapping):
        raise BadParametersError(
            [
                f"methods.{name}.{TRAINED_ON} = {of_tasks!r}: must be a block of tasks, and each "
                "task a block of the method's keys: {geometry: {learning_rate: 1.0e-5}}"
            ]
        )
    own, of_task = f"methods.{name}.{TRAINED_ON}.{task}", of_tasks.get(task, {})
    if "algorithm" in of_task:
        raise BadParametersError(
            [
                f"{own}.algorithm: a method runs one algorithm on every task; call the other a "
                "method of its own"
            ]
        )
    layers = {
        "training": raw["training"],
        algorithm: raw[algorithm],
        f"methods.{name}": block,
        own: of_task,
    }
    homes = {key: home for home, layer in layers.items() for key in layer}
    merged = {key: value for layer in layers.values() for key, value in layer.items()}
    resolved: SFT | RL = validate(ALGORITHMS[algorithm], merged, homes, f"methods.{name}")
    return resolved


def resolve_methods(
    raw: Mapping[str, Any], experiment: Experiment
) -> dict[tuple[str, str], SFT | RL]:
    """``resolve_method`` for each (task, method) of the grid.

    Raises:
        BadParametersError: as ``resolve_method``.
    """
    return {
        (task, method): resolve_method(raw, method, task)
        for method in experiment.methods
        for task in experiment.tasks
    }


def distinct_sizes(resolved: Mapping[tuple[str, str], SFT | RL]) -> dict[str, SFT | RL]:
    """What differs in what it computes: ``method`` where that is the same on all tasks.

    KL weights do not count, they cost nothing. Others are called ``method.trained_on.task``, as
    their own keys stand in the YAML.
    """
    found: dict[str, SFT | RL] = {}
    for name in dict.fromkeys(method for _, method in resolved):
        by_task = {task: each for (task, method), each in resolved.items() if method == name}
        first, *others = (each.model_dump(exclude={"kl"}) for each in by_task.values())
        if all(other == first for other in others):
            found[name] = next(iter(by_task.values()))
        else:
            found |= {f"{name}.{TRAINED_ON}.{task}": each for task, each in by_task.items()}
    return found


ALGORITHMS: dict[str, type[SFT | RL]] = {"sft": SFT, "rl": RL}
