"""The Accelerate configuration that the processes of a training are launched with.

Imports neither torch nor accelerate, but for the environment that a process is given.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from othink_pipeline.validation import ConfigurationError

if TYPE_CHECKING:
    from othink_pipeline.model_parameters import Compute
    from othink_pipeline.parameters import RL, SFT, Health

SHARDED = ("DEEPSPEED", "FSDP")
KINDS = ("MULTI_GPU", *SHARDED)
"""What ``distributed_type`` of a configuration may be."""

_OURS = ("OMP_NUM_THREADS", "PYTHONPATH")
"""Variables that Accelerate would set and that the launching process decides."""


def read_launcher(file: str) -> dict[str, Any]:
    """What an Accelerate configuration says.

    Raises:
        ConfigurationError: no such file, or not one of Accelerate's.
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
    return dict(content)


def check_launcher(compute: Compute, health: Health, methods: Iterable[SFT | RL]) -> None:
    """Refuse a configuration that cannot work, or that contradicts the parameters.

    How many processes there are is for ``compute.num_processes`` alone to say.

    Args:
        methods: what is trained.

    Raises:
        ConfigurationError: with the file's key, its value and the remedy.
    """
    if compute.launcher is None:
        return
    settings = read_launcher(compute.launcher)
    name = f"compute.launcher = {compute.launcher!r}"
    if settings.get("num_machines", 1) != 1:
        raise ConfigurationError(
            f"{name}: num_machines = {settings['num_machines']}, and a cell is trained on one. "
            "Set num_machines: 1."
        )
    precision = settings.get("mixed_precision")
    agreeing = ("bf16",) if compute.bf16 else ("no", False)  # YAML takes a bare `no` for False
    if precision is not None and precision not in agreeing:
        raise ConfigurationError(
            f"{name}: mixed_precision = {precision!r} contradicts compute.bf16 = {compute.bf16}. "
            "Leave mixed_precision out of the file: compute.bf16 decides."
        )
    if settings["distributed_type"] == "DEEPSPEED":
        for fault, policy in health:
            if policy == "skip_batch":
                raise ConfigurationError(
                    f"{name}: DeepSpeed cannot skip an update, and health.{fault} = 'skip_batch'. "
                    "Set it to stop or go_on, or take conf/base/accelerate/fsdp.yaml."
                )
    if settings["distributed_type"] == "FSDP" and any(m.lora and m.lora.merge for m in methods):
        raise ConfigurationError(
            f"{name}: with FSDP no process holds the weights that lora.merge = True adds adapters "
            "to. Set lora.merge: false, or take another launcher."
        )
    if settings["distributed_type"] == "DEEPSPEED" and find_spec("deepspeed") is None:
        raise ConfigurationError(
            f"{name}: asks for DeepSpeed, which is not installed. Install it (pip install "
            "deepspeed einops), or take conf/base/accelerate/fsdp.yaml, which needs nothing more."
        )
    if settings["distributed_type"] != "FSDP":
        return
    fsdp = settings.get("fsdp_config") or {}
    if (version := fsdp.get("fsdp_version", 1)) != 2:
        raise ConfigurationError(
            f"{name}: fsdp_config.fsdp_version = {version!r}. Set it to 2: a checkpoint is scored "
            "with weights that version 1 does not give out."
        )
    if (form := fsdp.get("fsdp_state_dict_type")) != "SHARDED_STATE_DICT":
        raise ConfigurationError(
            f"{name}: fsdp_config.fsdp_state_dict_type = {form!r}. Set it to SHARDED_STATE_DICT: "
            "with others the processes wait for each other for ever when a training goes on."
        )


def find_device_fault(compute: Compute, gpus: int) -> tuple[str, str] | None:
    """What is wrong with the number of GPUs that can be seen, and the remedy; None: nothing."""
    processes = compute.num_processes
    if processes == 1 and gpus > 1:
        return (
            f"{gpus} GPUs can be seen, and compute.num_processes = 1 trains on one",
            f"Set compute.num_processes: {gpus}, or show the run one: CUDA_VISIBLE_DEVICES=0",
        )
    if 0 < gpus < processes:
        return (
            f"compute.num_processes = {processes}, and {gpus} GPUs can be seen",
            f"Set compute.num_processes: {gpus}: one process a GPU",
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
