"""The Accelerate configuration of a training in several processes: what it says and shares out.

Imports neither torch nor accelerate, but for the environment that a process is given.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import content_key
from othink_pipeline.models.parameters import Compute
from othink_pipeline.training.parameters import RL, SFT, Health

SHARDED = ("DEEPSPEED", "FSDP")
KINDS = ("MULTI_GPU", *SHARDED)
"""What ``distributed_type`` of a configuration may be."""

LAUNCHER_VARIABLE = "OTHINK_LAUNCHER"
"""Environment variable with the content key of what the configuration said when this `kedro run`
began, which worker processes inherit."""

_OURS = ("OMP_NUM_THREADS", "PYTHONPATH")
"""Variables that Accelerate would set and that the launching process decides."""

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


def read_launcher(file: str) -> dict[str, Any]:
    """What an Accelerate configuration says.

    Raises:
        ConfigurationError: no such file, not one of Accelerate's, or edited since the run began.
    """
    try:
        content = yaml.safe_load(Path(file).read_text())
    except OSError as error:
        raise ConfigurationError(
            f"compute.launcher = {file!r}: cannot be read ({error.strerror}). Name an Accelerate "
            "configuration, as those in conf/base/accelerate, or null for plain data parallelism."
        ) from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"compute.launcher = {file!r}: no YAML ({error})") from None
    kind = content.get("distributed_type") if isinstance(content, dict) else None
    if kind not in KINDS:
        raise ConfigurationError(
            f"compute.launcher = {file!r}: distributed_type = {kind!r}. Allowed: "
            f"{', '.join(KINDS)}. `accelerate config` writes such a file."
        )
    key = content_key(content)
    if os.environ.get(LAUNCHER_VARIABLE, key) != key:
        raise ConfigurationError(
            f"compute.launcher = {file!r}: edited after this run began. Run it again: what is "
            "finished is reused, the rest is trained as the file says now."
        )
    return dict(content)


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


def check_launcher(compute: Compute, health: Health, methods: Iterable[SFT | RL]) -> None:
    """Refuse a configuration that cannot work, or that contradicts the parameters.

    How many processes there are is for ``compute.num_processes`` alone to say.

    Raises:
        ConfigurationError: with each key of the file that is wrong, its value and the remedy.
    """
    if compute.launcher is None:
        return
    says = read_launcher(compute.launcher)
    faults = list(_find_faults(says, compute, health, list(methods)))
    if faults:
        raise ConfigurationError(
            "\n".join(f"compute.launcher = {compute.launcher!r}: {fault}" for fault in faults)
        )


def _find_faults(
    says: Mapping[str, Any], compute: Compute, health: Health, methods: Sequence[SFT | RL]
) -> Iterator[str]:
    """What is wrong with a configuration, each with its remedy."""
    kind = says["distributed_type"]
    if (machines := says.get("num_machines", 1)) != 1:
        yield (
            f"num_machines = {machines}, and cluster.train.machines says that. Set num_machines: 1."
        )
    precision = says.get("mixed_precision")  # YAML takes a bare `no` for False
    if precision not in ((None, "bf16") if compute.bf16 else (None, "no", False)):
        yield (
            f"mixed_precision = {precision!r} contradicts compute.bf16 = {compute.bf16}. "
            "Leave mixed_precision out of the file: compute.bf16 decides."
        )
    follows = any(isinstance(method, RL) and method.sync_ref_model for method in methods)
    if kind in SHARDED and follows:
        yield (
            f"with {kind} a reference that follows (sync_ref_model = True) is not saved to go on "
            "from. Set sync_ref_model: false, or take conf/base/accelerate/ddp.yaml."
        )
    if kind == "DEEPSPEED":
        yield from _find_deepspeed_faults(says.get("deepspeed_config") or {}, health)
    elif kind == "FSDP":
        yield from _find_fsdp_faults(says.get("fsdp_config") or {}, methods)


def _find_deepspeed_faults(says: Mapping[str, Any], health: Health) -> Iterator[str]:
    fsdp = "take conf/base/accelerate/fsdp.yaml"
    if skipping := [f"health.{key}" for key, policy in health if policy == "skip_batch"]:
        yield (
            f"DeepSpeed cannot skip an update, and {', '.join(skipping)} = 'skip_batch'. "
            f"Set it to stop or go_on, or {fsdp}."
        )
    if find_spec("deepspeed") is None:
        yield (
            "asks for DeepSpeed, which is not installed. Install it (pip install deepspeed "
            f"einops), or {fsdp}, which needs nothing more."
        )
    if "deepspeed_config_file" in says:
        file = says["deepspeed_config_file"]
        yield (
            f"deepspeed_config.deepspeed_config_file = {file!r}: what another file says is in no "
            "training's key. Say it by keys of deepspeed_config itself (zero_stage, ...)."
        )


def _find_fsdp_faults(says: Mapping[str, Any], methods: Sequence[SFT | RL]) -> Iterator[str]:
    if any(method.lora and method.lora.merge for method in methods):
        yield (
            "with FSDP no process holds the weights that lora.merge = True adds adapters to. "
            "Set lora.merge: false, or take another launcher."
        )
    if (version := says.get("fsdp_version", 1)) != 2:
        yield (
            f"fsdp_config.fsdp_version = {version!r}. Set it to 2: a checkpoint is scored with "
            "weights that version 1 does not give out."
        )
    if (states := says.get("fsdp_state_dict_type")) != "SHARDED_STATE_DICT":
        yield (
            f"fsdp_config.fsdp_state_dict_type = {states!r}. Set it to SHARDED_STATE_DICT: with "
            "others the processes wait for each other for ever when a training goes on."
        )


def find_device_fault(compute: Compute, gpus: int, machines: int = 1) -> tuple[str, str] | None:
    """What is wrong with the number of GPUs that can be seen, and the remedy; None: nothing.

    Args:
        gpus: those of this machine.
        machines: on so many a cell is trained together.
    """
    processes = compute.num_processes // machines
    if processes == 1 and gpus > 1:
        return (
            f"{gpus} GPUs can be seen, and compute.num_processes = {machines} trains on one",
            f"Set compute.num_processes: {gpus * machines}, or show the run one: "
            "CUDA_VISIBLE_DEVICES=0",
        )
    if 0 < gpus < processes:
        return (
            f"compute.num_processes = {compute.num_processes}, and {gpus} GPUs can be seen",
            f"Set compute.num_processes: {gpus * machines}: one process a GPU",
        )
    if compute.launcher and not gpus:
        kind = read_launcher(compute.launcher)["distributed_type"]
        if kind in SHARDED:
            return (
                f"compute.launcher = {compute.launcher!r}: {kind} needs GPUs, and none can be seen",
                "Set compute.launcher: null, which also works on a CPU",
            )
    return None


def launcher_environment(compute: Compute) -> dict[str, str]:
    """The variables by which Accelerate in a process learns what the configuration says."""
    if compute.launcher is None:
        return {}
    # What `accelerate launch` does before it starts torchrun. Its own launching is not for us:
    # it would stand between the training and the run, which must hear how each process ended.
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    options = {
        "--config_file": compute.launcher,
        "--num_processes": str(compute.num_processes),
        "--num_machines": "1",
        "--main_process_port": "0",
        "--mixed_precision": "bf16" if compute.bf16 else "no",
    }
    words = [word for option in options.items() for word in option]
    args, file, _ = _validate_launch_command(launch_command_parser().parse_args([*words, "script"]))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(file.deepspeed_config)
        made = prepare_deepspeed_cmd_env(args)[1]
    else:
        made = prepare_multi_gpu_env(args)
    return {
        name: value
        for name, value in made.items()
        if name not in _OURS and os.environ.get(name) != value
    }
