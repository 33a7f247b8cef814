"""What of a model is trained, and the bytes of what is kept of it."""

from __future__ import annotations

import math

from othink_pipeline.core.safetensors import Weights
from othink_pipeline.models.parameters import VISION, ModelSettings
from othink_pipeline.training.parameters import RL, Lora, Training

FLOAT32 = 4
"""Bytes of a number; what is trained is kept in it."""

DTYPE_BYTES = {"float32": FLOAT32, "bfloat16": 2}

MOMENT_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""Of Adam's two moments, for each weight that is trained."""


def count_trained(weights: Weights, method: Training) -> int:
    """The weights that a training changes: all, all but the vision tower's, or adapters'."""
    frozen = set(VISION) if method.freeze_vision else set()
    names = [name for name in weights.shapes if frozen.isdisjoint(name.split("."))]
    if method.lora is None:
        return sum(math.prod(weights.shapes[name]) for name in names)
    adapted = [weights.shapes[name] for name in names if _is_adapted(name, weights, method.lora)]
    # A layer from n to m gets rank x n and m x rank; a convolution's n are all that it looks at.
    return sum(method.lora.rank * (shape[0] + math.prod(shape[1:])) for shape in adapted)


def checkpoint_bytes(weights: Weights, method: Training, settings: ModelSettings) -> int:
    """The weights in one checkpoint: a whole model's, or adapters' alone."""
    if method.lora and not method.lora.merge:
        return FLOAT32 * count_trained(weights, method)
    return DTYPE_BYTES[settings.dtype] * weights.parameters


def state_bytes(weights: Weights, method: Training, settings: ModelSettings) -> int:
    """What an interrupted training goes on from: the weights as trained, and Adam's moments.

    And the reference, where it moves.
    """
    trained = count_trained(weights, method)
    frozen = 0 if method.lora else weights.parameters - trained
    moved = (FLOAT32 + MOMENT_BYTES[method.optimizer]) * trained
    reference = isinstance(method, RL) and method.sync_ref_model
    return moved + DTYPE_BYTES[settings.dtype] * frozen + FLOAT32 * weights.parameters * reference


def _is_adapted(name: str, weights: Weights, lora: Lora) -> bool:
    """Whether the layer of this tensor gets an adapter; see PEFT's ``target_modules``."""
    dimensions = len(weights.shapes[name])
    if not name.endswith(".weight") or dimensions < 2:
        return False
    if lora.modules == "all-linear":
        return dimensions == 2 and "embed" not in _layer(name) and _layer(name) != "lm_head"
    return _layer(name) in lora.modules


def _layer(name: str) -> str:
    """``a.b.c.weight`` -> ``c``."""
    return name.rpartition(".")[0].rpartition(".")[2]
