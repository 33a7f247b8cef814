"""How large a model is, from the headers of its safetensors files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from othink_pipeline.core.blocks import ConfigurationError


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
