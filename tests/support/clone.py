"""A project of a test's own."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make_clone(folder: Path) -> None:
    """A fresh clone, as far as `kedro run` looks at it, but for ``data``."""
    shutil.copytree(ROOT / "conf", folder / "conf", ignore=shutil.ignore_patterns("local"))
    (folder / "conf" / "local").mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "src").mkdir()  # the code itself comes from the installed package
