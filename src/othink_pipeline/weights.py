"""How large a model is and what of it is trained, from the headers of its files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from othink_pipeline.model_parameters import VISION, ModelSettings
from othink_pipeline.parameters import Lora, Training
from othink_pipeline.validation import ConfigurationError

FLOAT32 = 4
"""Bytes of a number; what is trained is kept in it."""

DTYPE_BYTES = {"float32": FLOAT32, "bfloat16": 2}

MOMENT_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}
"""Of Adam's two moments, for each weight that is trained."""


@dataclass(frozen=True, order=True)
class Weights:
    """The size of a model, as its files tell; the larger model is the greater."""

    parameters: int
    stored_bytes: int
    shapes: Mapping[str, tuple[int, ...]] = field(compare=False, repr=False)
    """Of every tensor, by its name in the files."""


def read_weights(folder: Path) -> Weights:
    """Count a model's parameters from the headers of its safetensors files.

    Raises:
        ConfigurationError: no such files, one that its index names is missing, or one is cut short.
    """
    remedy = "Copy or download the model again."
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    try:
        names = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else ()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ConfigurationError(f"{index}: not an index of weights. {remedy}") from None
    files = sorted(folder / name for name in names) or [single]
    if missing := [file for file in files if not file.is_file()]:
        pickles = ", ".join(sorted(file.name for file in folder.glob("*.bin")))
        why = f"; {pickles} is no substitute: a pickle can run code" if pickles else ""
        raise ConfigurationError(
            f"{missing[0]}: not there{why}. Weights are read from safetensors alone: save the "
            "model with model.save_pretrained(folder, safe_serialization=True)"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    stored = 0
    for file in files:
        found, size = _read_header(file, remedy)
        shapes |= found
        stored += size
    return Weights(sum(math.prod(shape) for shape in shapes.values()), stored, shapes)


def count_trained(weights: Weights, method: Training) -> int:
    """The weights that a training changes: all, all but the vision tower's, or adapters'."""
    names = [n for n in weights.shapes if not (method.freeze_vision and _is_vision(n))]
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
    """What an interrupted training goes on from: the weights as trained, and Adam's moments."""
    trained = count_trained(weights, method)
    frozen = 0 if method.lora else weights.parameters - trained
    moved = (FLOAT32 + MOMENT_BYTES[method.optimizer]) * trained
    return moved + DTYPE_BYTES[settings.dtype] * frozen


def _is_vision(name: str) -> bool:
    return not set(VISION).isdisjoint(name.split("."))


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


def _read_header(file: Path, remedy: str) -> tuple[dict[str, tuple[int, ...]], int]:
    """The shapes of the tensors in a safetensors file, and the bytes of all."""
    size = file.stat().st_size
    try:
        with file.open("rb") as content:
            length = int.from_bytes(content.read(8), "little")
            header = json.loads(content.read(min(length, size)))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        stored = max(entry["data_offsets"][1] for entry in tensors.values())
        shapes = {name: tuple(map(int, entry["shape"])) for name, entry in tensors.items()}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ConfigurationError(f"{file}: no safetensors file, or cut short. {remedy}") from None
    if 8 + length + stored != size:
        raise ConfigurationError(
            f"{file}: {size:,} bytes, its header speaks of {8 + length + stored:,}. {remedy}"
        )
    return shapes, stored
