"""Tasks: each module of this package is one task, found by its file name.

A task module has one public function::

    def draw_problem(rng: random.Random) -> Problem

Add a task by adding such a file and naming it in ``conf/base/parameters_experiment.yml``.
"""

from __future__ import annotations

import hashlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from random import Random

from PIL import Image

IMAGE_SIZE_PX = 64
"""Width and height of every rendered image."""

SPLIT_SHARES = {"base": 50, "train": 20, "validation": 6, "test": 24}
"""Percent of all meanings. ``base`` is what the base model is trained on."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One question about one picture, before it is rendered.

    Attributes:
        key: what the problem *means* (a scene's layout; a rule and its values). Two problems
            with one key always land in the same split.
        form: the question form or rule, for breakdowns.
        question: the text shown to the model.
        answer: the gold answer, as it would stand in ``<answer>``.
        steps: a worked solution, as it would stand in ``<think>``.
        render: draws the picture: RGB, ``IMAGE_SIZE_PX`` square. Called only when it is needed.
        parts: what it is made of that no two splits may share, such as the scans in the picture;
            all of one split (``split_of``). Empty: the key decides the split.
    """

    key: str
    form: str
    question: str
    answer: str
    steps: str
    render: Callable[[], Image.Image]
    parts: tuple[str, ...] = ()


def split_of(task: str, name: str) -> str:
    """The one split in which a problem's key, or a part of problems, may stand."""
    point = int.from_bytes(hashlib.sha256(f"{task}/{name}".encode()).digest()[:8]) % 100
    for split, share in SPLIT_SHARES.items():
        if point < share:
            return split
        point -= share
    raise AssertionError("shares of the splits add up to 100")


def available_tasks() -> tuple[str, ...]:
    """Names of all tasks, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load_task(name: str) -> Callable[[Random], Problem]:
    """The ``draw_problem`` function of the task called ``name``.

    Raises:
        KeyError: no such task; the message lists those there are.
    """
    if name not in available_tasks():
        raise KeyError(f"unknown task {name!r}; available: {', '.join(available_tasks())}")
    draw_problem: Callable[[Random], Problem] = import_module(f"{__name__}.{name}").draw_problem
    return draw_problem
