"""What a configuration asks for beyond what the project installs: libraries, a GPU, a server."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from importlib.util import find_spec

from othink_pipeline.models.parameters import Compute, ModelSettings, VLLMServer
from othink_pipeline.preflight.rows import Row
from othink_pipeline.training.parameters import RL, SFT

TIMEOUT_S = 3.0
"""How long a vLLM server may take to answer."""


def check_libraries(
    methods: Mapping[str, SFT | RL],
    settings: ModelSettings,
    compute: Compute,
    *,
    gpu: bool,
    bfloat16: bool,
) -> list[Row]:
    """Check that what the parameters ask for is installed, and that the device can do it.

    Args:
        gpu: there is one.
        bfloat16: the device computes in it.

    Returns:
        A row for each key that asks for something; none where nothing does.
    """
    rows = []
    if compute.vllm and any(isinstance(method, RL) for method in methods.values()):
        key = f"compute.vllm.mode = {compute.vllm.mode!r}"
        back = "or set compute.vllm: null, and the model itself generates."
        rows.append(_installed(key, "vllm", "pip install 'trl[vllm]'", back))
        if isinstance(compute.vllm, VLLMServer):
            rows.append(_answers(compute.vllm, back))
        else:
            rows.append(_on_gpu(key, gpu, back))
    for name, method in methods.items():
        if method.optimizer != "adamw":
            key = f"training.optimizer = {method.optimizer!r} (methods.{name})"
            back = "or set optimizer: adamw."
            rows.append(_installed(key, "bitsandbytes", "pip install bitsandbytes", back))
            rows.append(_on_gpu(key, gpu, back))
    if settings.uses_flash_attention:
        key, back = f"model.attention = {settings.attention!r}", "or set model.attention: sdpa."
        install = "pip install flash-attn --no-build-isolation"
        rows.append(_installed(key, "flash_attn", install, back))
        rows.append(_on_gpu(key, gpu, back))
        if not compute.bf16:
            detail = "it computes in bfloat16 alone, and compute.bf16 is false"
            rows.append(Row(key, "FAILED", f"{detail}.", f"Set compute.bf16: true, {back}"))
    if compute.bf16 and not bfloat16:
        detail = "the device does not compute in bfloat16."
        remedy = "Set compute.bf16: false and model.dtype: float32, or take a newer GPU."
        rows.append(Row("compute.bf16 = True", "FAILED", detail, remedy))
    return rows


def _installed(key: str, module: str, install: str, back: str) -> Row:
    if find_spec(module) is not None:
        return Row(key, "ok", f"{module} is installed")
    return Row(key, "FAILED", f"{module} is not installed.", f"Install it: {install}; {back}")


def _on_gpu(key: str, gpu: bool, back: str) -> Row:
    if gpu:
        return Row(key, "ok", "there is a GPU")
    return Row(key, "FAILED", "it needs a GPU, and none can be seen.", f"Take one, {back}")


def _answers(server: VLLMServer, back: str) -> Row:
    key, place = "compute.vllm.host, port", f"{server.host}:{server.port}"
    try:
        socket.create_connection((server.host, server.port), timeout=TIMEOUT_S).close()
    except OSError as error:
        remedy = f"Start the server (trl vllm-serve --model FOLDER), correct host and port, {back}"
        return Row(key, "FAILED", f"{place} does not answer ({error}).", remedy)
    return Row(key, "ok", f"{place} answers")
