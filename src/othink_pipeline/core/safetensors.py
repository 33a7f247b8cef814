"""How large a model is, from the headers of its safetensors files alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open

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
        try:
            with safe_open(file, "numpy") as tensors:  # refuses a file that is cut short
                names = tensors.keys()
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        except SafetensorError as error:
            fault = f"{file}: no whole safetensors file: {error}. {remedy}"
            raise ConfigurationError(fault) from error
        with file.open("rb") as content:
            header = int.from_bytes(content.read(8), "little")
        stored += file.stat().st_size - 8 - header
    return Weights(sum(math.prod(shape) for shape in shapes.values()), stored, shapes)
