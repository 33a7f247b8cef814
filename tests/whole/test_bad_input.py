"""Bad input stops `kedro run` before any training: one message, exit code 1, nothing half-made.

The commands themselves, in a project of their own. Faults of single keys and files are tested where
they are found (test_parameters, test_config_loader, test_hooks).
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import MiniModel
from tests.support import commands
from tests.support.clone import make_clone
from tests.support.manifests import make_model

ROOT = Path(__file__).parents[2]
MODEL = Path("data/01_raw/mini_qwen2_vl")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A fresh clone but for the base model, and for MLflow's tables."""
    project = tmp_path_factory.mktemp("project")
    shutil.copy(empty_store, project)
    make_clone(project)
    (project / "data").mkdir()
    return project


def kedro_run(project: Path, *options: str, **blocks: Any) -> str:
    """What `kedro run` in the smoke environment, with other blocks, says before it fails."""
    folder = project / "conf" / "case"
    folder.mkdir(exist_ok=True)
    smoke = yaml.safe_load((ROOT / "conf" / "smoke" / "parameters.yml").read_text())
    (folder / "parameters.yml").write_text(yaml.safe_dump({**smoke, **blocks}))
    done = commands.run("kedro", "run", "--env=case", *options, cwd=project)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stdout, done.stdout
    assert done.stdout.count("Error: ") == 1, done.stdout
    return done.stdout[done.stdout.index("Error: ") :]


def left_behind(project: Path) -> set[str]:
    """Files below ``data`` other than the base model that the run was given."""
    data = {path.relative_to(project) for path in project.glob("data/**/*") if path.is_file()}
    return {str(path) for path in data if MODEL not in path.parents}


def test_a_misspelt_key(project: Path) -> None:
    """On the command line, where no file would be looked at again."""
    message = kedro_run(project, "--pipelines=rl", "--params=rl.temprature=0.5")
    assert "rl.temprature: unknown key. Did you mean 'temperature'? Allowed here: " in message
    assert left_behind(project) == set()


def test_preflight_shows_every_fault(project: Path, mini_model: MiniModel) -> None:
    folder = project / "data/01_raw/tiny"
    shutil.copytree(mini_model.path, folder)
    processor = folder / "processor_config.json"
    processor.write_text(processor.read_text().replace('"merge_size": 2', '"merge_size": 1'))
    make_model(folder)
    (project / "taken").write_text("")
    message = kedro_run(
        project,
        "--pipelines=preflight",
        base_model={"path": [str(folder.relative_to(project)), "data/nowhere"], "hub": None},
        folders={
            "examples": "taken/03_primary",
            "checkpoints": "data/06_models",
            "predictions": "data/07_model_output",
        },
    )
    assert "checks that failed: 5" in message
    assert message.count("tokens: 64, features: 16") == 2  # a task each
    assert message.count("data/nowhere") >= 2  # the disk's estimate and the model
    assert "folders.examples = 'taken/03_primary': cannot write" in message
    assert not any("06_models" in path for path in left_behind(project))
