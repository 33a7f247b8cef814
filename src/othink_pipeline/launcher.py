"""What an Accelerate configuration shares out among the processes of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

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
    file = Path(compute.launcher)
    remedy = "Name one of conf/base/accelerate, or write one with `accelerate config`."
    try:
        settings: Any = yaml.safe_load(file.read_text())
        kind = settings["distributed_type"]
        stage = (settings.get("deepspeed_config") or {}).get("zero_stage", 2)
    except OSError as error:
        raise ConfigurationError(
            f"compute.launcher = {compute.launcher!r}: {error.strerror}. {remedy}"
        ) from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise ConfigurationError(
            f"compute.launcher = {compute.launcher!r}: not an Accelerate configuration with a "
            f"distributed_type. {remedy}"
        ) from None
    kinds: dict[Any, Kind] = {"NO": "data", "MULTI_CPU": "data", "MULTI_GPU": "data"}
    kinds |= {"FSDP": "fsdp", ("DEEPSPEED", 0): "data", ("DEEPSPEED", 1): "zero1"}
    kinds |= {("DEEPSPEED", 2): "zero2", ("DEEPSPEED", 3): "zero3"}
    found = (kind, stage) if kind == "DEEPSPEED" else kind
    if found not in kinds:
        raise ConfigurationError(
            f"compute.launcher = {compute.launcher!r}: distributed_type = {kind!r}, zero_stage = "
            f"{stage!r} is not known. Allowed: MULTI_GPU, MULTI_CPU, NO, FSDP, or DEEPSPEED with "
            "zero_stage 0 to 3."
        )
    return Sharing(kinds[found], compute.num_processes)
