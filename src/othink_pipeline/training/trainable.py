"""Which of a model's weights are trained: all, all but the vision tower, or adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.models.parameters import VISION
from othink_pipeline.models.prompts import base_of

if TYPE_CHECKING:
    from othink_pipeline.training.parameters import Method


def choose_weights(model: Any, parameters: Method) -> LoraConfig | None:
    """Freeze what is not trained of a whole model; returns the adapters that are trained in it.

    The adapters are for TRL's trainers to put in.

    Raises:
        ConfigurationError: the vision tower is not found; an adapter is asked for in layers that
            there are not.
    """
    tower = _find_vision(model) if parameters.freeze_vision else None
    if parameters.lora is None:
        if tower is not None:
            model.get_submodule(tower).requires_grad_(False)
        return None
    lora = parameters.lora
    names = _layer_names(model, tower)
    if lora.modules != "all-linear" and (strange := sorted(set(lora.modules) - names)):
        raise ConfigurationError(
            f"lora.modules: {strange[0]!r} is no linear layer of {type(model).__name__} that can "
            f"have an adapter. Allowed: {', '.join(sorted(names))}; or all-linear for all of them."
        )
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number, in fact
        lora_dropout=lora.dropout,
        target_modules=lora.modules if lora.modules == "all-linear" else list(lora.modules),
        exclude_modules=None if tower is None else rf"{tower}\..*",
        task_type="CAUSAL_LM",
    )


def _layer_names(model: Any, tower: str | None) -> set[str]:
    """The last parts of the names of all linear layers, but the output's and a frozen tower's.

    The output layer often is the input's weights: with an adapter it could not be merged.
    """
    head = model.get_output_embeddings()
    return {
        name.rpartition(".")[2]
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
        and layer is not head
        and not (tower and name.startswith(f"{tower}."))
    }


def keep_precise(model: Any) -> None:
    """Make the weights that are trained float32: a bfloat16 hardly moves by 1e-6."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.float32)


def _find_vision(model: Any) -> str:
    """The name of the vision tower among a model's modules."""
    for name, _ in base_of(model).named_modules():
        if name.rpartition(".")[2] in VISION:
            return str(name)
    raise ConfigurationError(
        f"freeze_vision: the vision tower of {type(model).__name__} is not known. "
        f"Set freeze_vision: false; known are modules called {', '.join(VISION)}."
    )
