"""Weights that several processes share out, made whole for a while: to generate and to be saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from trl.models import unwrap_model_for_generation


@contextmanager
def whole_model(trainer: Any, model: Any) -> Iterator[tuple[Any, dict[str, torch.Tensor] | None]]:
    """The model that a trainer trains, able to generate on each process at its own pace.

    To be entered on all processes. Nothing in it may change a weight.

    Args:
        model: as the trainer's callbacks get it.

    Yields:
        The model, and its weights by name on the main process where the model itself holds but a
        part of them (FSDP), none on the others; None where it holds them whole.
    """
    if trainer.is_fsdp_enabled:
        reshard = trainer.accelerator.state.fsdp_plugin.reshard_after_forward
        state = _gather(trainer.model_wrapped, trainer.is_world_process_zero())
        with _unsharded(trainer.model_wrapped, reshard):
            yield trainer.model_wrapped, state
    elif trainer.is_deepspeed_enabled:
        with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator) as whole:
            yield whole, None
    else:
        yield model, None


def _gather(model: Any, keep: bool) -> dict[str, torch.Tensor]:
    """All weights in the main memory, one after the other; none where they are not to be kept."""
    whole: dict[str, torch.Tensor] = {}
    copies: dict[int, torch.Tensor] = {}  # tied weights stay so
    for name, weight in model.state_dict().items():
        own, full = weight, weight
        if isinstance(weight, DTensor):
            own, full = weight.to_local(), weight.full_tensor()
        if keep:
            if own.data_ptr() not in copies:
                copies[own.data_ptr()] = full.detach().to("cpu", copy=True)
            whole[name] = copies[own.data_ptr()]
    return whole


@contextmanager
def _unsharded(model: Any, reshard: bool) -> Iterator[None]:
    """Each process holds all weights, so that none waits for another in a forward pass.

    Args:
        reshard: whether a forward pass ends with giving them back, otherwise.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(reshard, recurse=False)
