"""What an Accelerate configuration shares out among the processes of a training."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from othink_pipeline.launchers import read_launcher
from othink_pipeline.model_parameters import Compute
from othink_pipeline.validation import ConfigurationError

Kind = Literal["alone", "data", "zero1", "zero2", "zero3", "fsdp"]


class Sharing(NamedTuple):
    """How many processes train together, and in which way."""

    kind: Kind
    """``data``: each holds everything; the others share it out."""
    processes: int

    @property
    def deepspeed(self) -> bool:
        """DeepSpeed computes with weights in model.dtype and keeps float32 ones for its steps."""
        return self.kind.startswith("zero")

    @property
    def weights(self) -> int:
        """Among how many processes the weights are shared out."""
        return self.processes if self.kind in ("zero3", "fsdp") else 1

    @property
    def gradients(self) -> int:
        """Among how many processes the gradients are."""
        return self.processes if self.kind in ("zero2", "zero3", "fsdp") else 1

    @property
    def moments(self) -> int:
        """Among how many processes the optimizer's moments are."""
        return self.processes if self.deepspeed or self.kind == "fsdp" else 1


def read_sharing(compute: Compute) -> Sharing:
    """What ``compute.num_processes`` and the file in ``compute.launcher`` come to.

    Raises:
        ConfigurationError: no such file, or one that says something else than how to share.
    """
    if compute.launcher is None:
        return Sharing("data" if compute.num_processes > 1 else "alone", compute.num_processes)
    settings = read_launcher(compute.launcher)
    stage = (settings.get("deepspeed_config") or {}).get("zero_stage", 2)
    kinds: dict[Any, Kind] = {
        "MULTI_GPU": "data",
        "FSDP": "fsdp",
        ("DEEPSPEED", 0): "data",
        ("DEEPSPEED", 1): "zero1",
        ("DEEPSPEED", 2): "zero2",
        ("DEEPSPEED", 3): "zero3",
    }
    kind = settings["distributed_type"]
    found = (kind, stage) if kind == "DEEPSPEED" else kind
    if found not in kinds:
        raise ConfigurationError(
            f"compute.launcher = {compute.launcher!r}: zero_stage = {stage!r}. Allowed: 0 to 3."
        )
    return Sharing(kinds[found], compute.num_processes)
