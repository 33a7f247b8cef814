"""`.venv` from nothing, with the pip that the first Python 3.11 brought: the lock still holds."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = Path(sys.executable).resolve()
OLDEST_PIP = "22.3"
"""Of Python 3.11.0."""


def test_a_venv_that_was_moved_with_its_project_is_made_anew(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in ("src", ".venv/bin", packages := f".venv/lib/{PYTHON.name}/site-packages"):
        (here / folder).mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, here)
    (here / ".venv/bin/python").symlink_to(PYTHON)
    (here / ".venv/pyvenv.cfg").write_text(f"home = {PYTHON.parent}\n")
    (here / packages / "editable.pth").write_text(f"{here / 'src'}\n")
    (here / ".venv/.complete").touch()

    def is_complete(project: Path) -> bool:
        command = ["make", "--question", ".venv/.complete"]
        return subprocess.run(command, cwd=project, check=False).returncode == 0

    assert is_complete(here)
    other = tmp_path / "other"
    shutil.copytree(here, other, ignore=shutil.ignore_patterns(".venv"))
    (other / ".venv").symlink_to(here / ".venv")
    assert not is_complete(other)
    assert not (other / ".venv").is_symlink()
    assert is_complete(here), "a link to it is no reason to make it anew"
    here.rename(there)
    assert not is_complete(there)


@pytest.mark.slow
def test_the_lock_is_installed_from_nothing_with_the_oldest_pip(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("src", "conf"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\n"{sys.executable}" "$@" || exit 1\n'
        f'if [ "$2" = venv ]; then "$3/bin/python" -m pip install --quiet pip=={OLDEST_PIP}; fi\n'
    )
    python.chmod(0o755)

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    made = run("make", ".venv/.complete", f"PYTHON={python}")
    assert len(made.splitlines()) < 20
    assert f"pip {OLDEST_PIP} " in run(".venv/bin/python", "-m", "pip", "--version")
    assert "- cross_task" in run(".venv/bin/kedro", "registry", "list")
    assert "up to date" in run("make", ".venv/.complete")  # and costs nothing

    (tmp_path / ".venv/bin/python").unlink()
    assert "Setting up .venv" in run("make", "--dry-run", ".venv/.complete")
