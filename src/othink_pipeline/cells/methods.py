"""Methods, resolved: what each one's parameters are, block over block, on each task.

Three blocks are laid over one another: ``training`` (the budget that all methods share), the
algorithm's own block (``sft`` or ``rl``), and the method's block; and over these what the method
says of the task that is trained on (``trained_on``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from othink_pipeline.core.blocks import BadParametersError, validate
from othink_pipeline.training.parameters import RL, SFT

ALGORITHMS: dict[str, type[SFT | RL]] = {"sft": SFT, "rl": RL}

TRAINED_ON = "trained_on"
"""Key of a method's block: task -> the method's keys that are others when it is trained on it."""


def tasks_named(block: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a method's block says of tasks that it is trained on; nothing where that is wrong."""
    of_tasks = block.get(TRAINED_ON, {})
    return of_tasks if isinstance(of_tasks, Mapping) else {}


def methods_on_tasks(raw: Mapping[str, Any]) -> list[tuple[str, str]]:
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
        for task in dict.fromkeys([*map(str, grid), *tasks_named(block)])
    ]


def resolve_method(raw: Mapping[str, Any], name: str, task: str) -> SFT | RL:
    """The full parameters of a method that is trained on ``task``.

    ``training``, then ``sft`` or ``rl``, then the method's own block, then what stands there under
    ``trained_on`` for the task. A key of one layer replaces that of the layers before as a whole.

    Args:
        raw: a mapping that holds at least ``training``, ``sft``, ``rl`` and ``methods``.
        name: a key of ``methods``.

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
    raw: Mapping[str, Any], tasks: Iterable[str], methods: Iterable[str]
) -> dict[tuple[str, str], SFT | RL]:
    """``resolve_method`` for each (task, method) of a grid.

    Raises:
        BadParametersError: as ``resolve_method``.
    """
    return {
        (task, method): resolve_method(raw, method, task)
        for method, task in product(methods, tasks)
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
