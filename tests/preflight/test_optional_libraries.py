"""What a configuration asks for and this machine has not is said before any training."""

import socket
from typing import Any

import pytest

from othink_pipeline.models.parameters import ModelSettings, VLLMColocate, VLLMServer
from othink_pipeline.preflight import optional_libraries as libraries
from othink_pipeline.preflight.optional_libraries import check_libraries
from othink_pipeline.preflight.rows import Row
from tests.conftest import shipped
from tests.preflight.test_memory import compute, method

COLOCATE = VLLMColocate(mode="colocate", gpu_memory=0.3)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The libraries that there are, to add to."""
    there: set[str] = set()
    monkeypatch.setattr(libraries, "find_spec", lambda name: name if name in there else None)
    return there


def check(
    *methods: str,
    attention: str = "sdpa",
    gpu: bool = True,
    bfloat16: bool = True,
    optimizer: str = "adamw",
    **changes: Any,
) -> list[Row]:
    settings = ModelSettings(**shipped("model", attention=attention))
    made = {name: method(name, optimizer=optimizer) for name in methods}
    return check_libraries(made, settings, compute(**changes), gpu=gpu, bfloat16=bfloat16)


def failed(rows: list[Row]) -> str:
    return "\n".join(f"{r.check}: {r.detail} {r.remedy}" for r in rows if r.outcome == "FAILED")


def test_nothing_is_asked_for(installed: set[str]) -> None:
    assert check("sft", "grpo", gpu=False) == []


@pytest.mark.parametrize(
    ("library", "key", "install", "asked"),
    [
        ("vllm", "compute.vllm.mode = 'colocate'", "pip install 'trl[vllm]'", {"vllm": COLOCATE}),
        (
            "bitsandbytes",
            "training.optimizer = 'paged_adamw_8bit' (methods.grpo)",
            "pip install bitsandbytes",
            {"optimizer": "paged_adamw_8bit"},
        ),
        (
            "flash_attn",
            "model.attention = 'flash_attention_2'",
            "pip install flash-attn",
            {"attention": "flash_attention_2", "bf16": True},
        ),
    ],
)
def test_a_missing_library_is_named_with_its_key_and_its_command(
    library: str, key: str, install: str, asked: dict[str, Any], installed: set[str]
) -> None:
    message = failed(check("grpo", **asked))
    assert f"{key}: {library} is not installed" in message
    assert install in message
    installed.add(library)
    assert failed(check("grpo", **asked)) == ""
    assert f"{key}: it needs a GPU" in failed(check("grpo", gpu=False, **asked))


def test_vllm_is_needed_for_rl_alone(installed: set[str]) -> None:
    assert check("sft", vllm=COLOCATE) == []


def test_a_vllm_server_must_answer(installed: set[str]) -> None:
    installed.add("vllm")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        there = VLLMServer(mode="server", host="127.0.0.1", port=port)
        assert failed(check("grpo", vllm=there, gpu=False)) == ""  # its GPU is elsewhere
    message = failed(check("grpo", vllm=there))
    assert f"compute.vllm.host, port: 127.0.0.1:{port} does not answer" in message
    assert "trl vllm-serve" in message


def test_flash_attention_wants_bfloat16(installed: set[str]) -> None:
    installed.add("flash_attn")
    assert "compute.bf16 is false" in failed(check("grpo", attention="flash_attention_2"))
    rows = check("grpo", attention="flash_attention_2", bf16=True)
    assert {row.outcome for row in rows} == {"ok"}


def test_bfloat16_on_a_device_without_it(installed: set[str]) -> None:
    message = failed(check("sft", bf16=True, bfloat16=False))
    assert "compute.bf16 = True: the device does not compute in bfloat16" in message
    assert check("sft", bfloat16=False) == []
