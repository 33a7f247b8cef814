"""The whole of the parameters: typed, frozen, closed, with units and bounds.

The YAML files in ``conf/`` hold the only defaults; the models here say what is allowed. Rooms that
work by themselves have their own blocks (``data``, ``models``, ``training``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, field_validator

from othink_pipeline.cells.methods import (
    TRAINED_ON,
    methods_on_tasks,
    resolve_method,
    resolve_methods,
    tasks_named,
)
from othink_pipeline.core.blocks import (
    BadParametersError,
    Block,
    Count,
    Name,
    Place,
    Positive,
    validate,
)
from othink_pipeline.data.parameters import DataPreparation
from othink_pipeline.data.tasks import available_tasks
from othink_pipeline.models.parameters import BaseModel, Compute, ModelSettings, Rebuild
from othink_pipeline.report.parameters import KnownMethods, Published, Report
from othink_pipeline.training.parameters import RL, SFT, Health, Training

MAX_SEEDS = 1000
"""A larger count is a mistake, and its grid would not fit into memory."""

MAX_SEED = 2**31 - 1
"""NumPy takes 32 bits, and each process of a training adds its number."""

MAX_SAMPLES = 8
"""majority@k goes through all subsets of the samples: 70 of them at most."""

ROUNDING = 1e-6
"""Of sums of parts of a GPU."""

RESERVED = ("base", "data", "mlflow", "none", "report")
"""Namespaces and rows of the transfer matrix: no task or method has such a name."""


class Experiment(Block):
    """The grid: tasks x methods x seeds."""

    # Not strict: YAML's lists become tuples.
    tasks: tuple[Name, ...] = Field(strict=False)
    """Each is trained on, and each is what every cell is tested on."""
    methods: tuple[Name, ...] = Field(strict=False)
    """Keys of ``methods``, in the order of the report."""
    seeds: tuple[Count, ...] = Field(strict=False)
    """A list of seeds below 2^31, or a count ``n`` for 0 .. n-1."""

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

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if max(seeds) > MAX_SEED:
            raise ValueError(f"holds {max(seeds)}; the largest seed is {MAX_SEED}")
        return seeds

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
    """Prepared examples of every task."""
    checkpoints: Place
    """Trained models, their curves and the states to go on from."""
    predictions: Place
    """Answers to the test examples, with their verdicts."""


class Evaluation(Block):
    """Greedy generation, and what else the test split is used for."""

    batch_size: Positive
    """Examples that are answered at a time."""
    max_completion_tokens: Positive
    """An answer is cut off after so many tokens."""
    samples: Annotated[int, Field(ge=0, le=MAX_SAMPLES)]
    """Sampled completions of each test example, for pass@k and majority@k; 0: none."""
    sample_temperature: Annotated[float, Field(gt=0)]
    """Of the samples; the answer that is scored is greedy."""
    shuffle_images: bool
    """Ask about another example's picture: what is still right hardly comes from the picture."""
    seed: Count
    """Of the samples and of the shuffling."""

    @property
    def generation(self) -> dict[str, Any]:
        """What greedy generation alone needs."""
        return self.model_dump(include={"batch_size", "max_completion_tokens"})


class Demand(Block):
    """What Ray sets aside for one task, on one machine."""

    cpus: Positive
    """Cores, and as many threads."""
    gpus: Annotated[float, Field(ge=0)]
    """Whole ones, or a part of one, which several tasks then share."""
    custom: dict[str, Annotated[float, Field(gt=0)]]
    """Of the resources that ``ray start --resources`` names."""

    @field_validator("gpus")
    @classmethod
    def _check_gpus(cls, gpus: float) -> float:
        if gpus > 1 and gpus % 1:
            raise ValueError("must be a whole number, or a part of 1: several tasks share a GPU")
        return gpus

    @property
    def resources(self) -> dict[str, float]:
        """Amounts by the names that Ray gives them, those of which nothing is asked left out."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, **self.custom}
        return {name: amount for name, amount in amounts.items() if amount}


class TrainDemand(Demand):
    """What Ray sets aside for the training of a cell, on each of its machines."""

    machines: Positive
    """On so many a cell is trained together; ``compute.num_processes`` is divided among them."""


class Cluster(Block):
    """How Ray runs the grid; only ``RayRunner`` looks at it."""

    address: Annotated[str, Field(pattern=r"^(auto|[\w.-]+:\d+)$")] | None
    """``auto`` (a Ray that runs on this machine) or ``host:port``; null: one for this run alone."""
    workers: Positive | None
    """Tasks at once; null: as many as the machines hold."""
    retries: Count
    """How often a task is given again whose process or machine died."""
    train: TrainDemand
    """Of a cell, and, on one machine, of the check of a base model."""
    evaluate: Demand
    """Of the test of a cell, or of a base model, on one task."""

    def trained_at_once(self, there: Mapping[str, float]) -> int:
        """How many cells are trained at the same time at most.

        Args:
            there: the resources of all machines together.
        """
        wanted = {name: self.train.machines * n for name, n in self.train.resources.items()}
        # 1 // 0.1 is 9.0.
        held = min(int(there.get(name, 0) / n + ROUNDING) for name, n in wanted.items())
        return min(self.workers or held, held)

    def find_fault(self, processes: int) -> str | None:
        """Why cells of so many processes do not go with what is asked for."""
        machines, gpus = self.train.machines, self.train.gpus
        if processes % machines:
            return (
                f"cluster.train.machines = {machines} and compute.num_processes = {processes}: "
                "each machine has as many processes. Make num_processes a multiple of machines."
            )
        if gpus and max(1, gpus) * machines != processes:
            return (
                f"cluster.train.gpus = {gpus:g} (machines: {machines}) and compute.num_processes "
                f"= {processes}: each process trains on one GPU. Make gpus times machines equal to "
                "num_processes; where that is 1, a part of 1 lets several cells share a GPU."
            )
        if self.evaluate.gpus > 1:
            return (
                f"cluster.evaluate.gpus = {self.evaluate.gpus:g}: one process tests, on one GPU. "
                "Set it to 1 or to a part of 1."
            )
        return None


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
    """What all SFT methods share, besides ``training``; a method's own block may differ in each."""
    rl: dict[str, Any]
    """What all RL methods share, besides ``training``; a method's own block may differ in each."""
    methods: dict[Name, dict[str, Any]]
    """A block a method: ``algorithm`` (``sft`` or ``rl``) and any key of ``training`` and of the
    algorithm's block, which it replaces; under ``trained_on``, for a task, the method's keys that
    are others when it is trained on that task."""
    evaluation: Evaluation
    compute: Compute
    cluster: Cluster
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
        for name, task in methods_on_tasks(raw):
            try:
                resolved = resolve_method(raw, name, task)
            except BadParametersError as error:
                faults += error.faults
            else:
                faults += parameters._find_faults_of(name, resolved) if parameters else []
        if faults or parameters is None:
            raise BadParametersError(faults)
        return parameters

    def resolve(self) -> dict[tuple[str, str], SFT | RL]:
        """The full parameters of each (task, method) of the grid."""
        blocks = self.model_dump(include={"training", "sft", "rl", "methods"})
        return resolve_methods(blocks, self.experiment.tasks, self.experiment.methods)

    def _find_faults(self) -> Iterator[str]:
        """What is right in each block and wrong between them, methods' own keys aside."""
        methods = ", ".join(sorted(self.methods))
        for name in RESERVED:
            if name in self.methods:
                yield f"methods.{name}: the project uses this name itself, choose another"
        yield from self._find_unknown_tasks()
        if fault := self.cluster.find_fault(self.compute.num_processes):
            yield fault
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
                    "none: report: {comparisons: [], equivalence_margin: 3.0}"
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
            "data_preparation.answers": self.data_preparation.answers,
        }
        for method, block in self.methods.items():
            named[f"methods.{method}.{TRAINED_ON}"] = tuple(tasks_named(block))
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
