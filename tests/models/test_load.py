"""Loading: what does not load is named."""

from pathlib import Path
from shutil import copytree

import pytest

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.models.load import load_model
from tests.conftest import MiniModel


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere: no such folder"):
        load_model(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("fault", ["cut", "absent"])
def test_a_broken_model_is_named(mini_model: MiniModel, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "model"
    copytree(mini_model.path, folder)
    weights = folder / "model.safetensors"
    if fault == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        weights.unlink()
    with pytest.raises(ConfigurationError, match=f"model {folder} does not load"):
        load_model(str(folder))
