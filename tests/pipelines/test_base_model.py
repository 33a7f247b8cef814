"""A base model that was begun is gone on with, unless it cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from othink_pipeline.pipelines.base_model.nodes import _drop_damaged


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-9],
        lambda whole: whole.replace(b"PK", b"KP"),
        lambda whole: b"no archive at all",
        lambda whole: whole.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"),
    ],
)
def test_what_was_begun_and_is_damaged_is_begun_anew(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state.pt"
    _drop_damaged(state)
    torch.save({"weight": torch.arange(1000.0), "rng": (3, (1, 2), None)}, state)
    _drop_damaged(state)
    assert not caplog.records
    state.write_bytes(damage(state.read_bytes()))
    _drop_damaged(state)
    assert not state.exists()
    (told,) = caplog.messages
    assert told.startswith(f"{state} is damaged (")
