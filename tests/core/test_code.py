"""What a cell's key covers: the code that it may run, and nothing else."""

import ast
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from textwrap import dedent

import pytest

from othink_pipeline.core import code as source
from othink_pipeline.core.code import PACKAGE, library_versions, reached
from tests.support import commands

RL, SFT = "othink_pipeline.training.rl", "othink_pipeline.training.sft"
Write = Callable[[str, str], None]
code_digest = source.code_digest.__wrapped__
"""Without its memory: what it says of a package changes as the package does."""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, to be edited."""
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Write]:
    """A package of two modules, and a function that writes another."""
    folder = tmp_path / "made"

    def write(name: str, code: str) -> None:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(code))

    write("__init__.py", "")
    write("start.py", "import os\nfrom made import other\nX = other.Y\n")
    write("other.py", "Y = 1\n")
    return folder, write


def names(*modules: str, package: Path = PACKAGE) -> set[str]:
    return {name.removeprefix("othink_pipeline.") for name in reached(*modules, package=package)}


def test_each_algorithm_reaches_its_own_code() -> None:
    own = {
        *(f"training.{name}" for name in ("kl", "dynamic_kl", "shared_prompts", "rewards", "rl")),
        *(
            "training.sharing_check",
            "training.packing",
            "models.sampling",
            "scoring.strict",
        ),
    }
    shared = {
        *("othink_pipeline", "training", "training.loop", "training.rows"),
        *("models", "models.load", "models.prompts"),
        *("scoring", "scoring.kinds", "scoring.answers", "scoring.surds"),  # what SFT teaches
    }
    assert names(RL) >= own | shared
    assert names(SFT) >= shared | {"training.sft"}
    rest = {"cells", "tracking", "data", "report", "preflight", "pipelines", "hooks"}
    assert not names(RL) & (rest | {"training.sft"})
    assert not names(SFT) & (own | rest)
    assert names(SFT, RL) == names(RL) | names(SFT)
    assert reached(RL, RL) == reached(RL)
    assert code_digest(RL, SFT) == code_digest(SFT, RL, RL) != code_digest(RL)


def test_nothing_that_training_reaches_imports_by_a_made_up_name() -> None:
    """Such an import cannot be followed."""
    for module in reached(RL, SFT):
        file = PACKAGE.parent.joinpath(*module.split("."))
        code = (file / "__init__.py" if file.is_dir() else file.with_suffix(".py")).read_text()
        called = {ast.unparse(n.func) for n in ast.walk(ast.parse(code)) if isinstance(n, ast.Call)}
        assert not called & {"import_module", "importlib.import_module", "__import__"}, module


def test_python_imports_nothing_that_was_not_reached(tmp_path: Path) -> None:
    """Of what is imported with the module; what its functions import comes on top."""
    (tmp_path / "import_it.py").write_text(f"import sys, {RL}; print(*sys.modules)")
    said = commands.run("import_it", cwd=tmp_path).stdout.split()
    imported = {name for name in said if name.startswith("othink_pipeline")}
    assert RL in imported
    assert imported <= set(reached(RL))


def test_an_edit_while_a_run_goes_on_belongs_to_the_next(made: tuple[Path, Write]) -> None:
    """The process still runs the code as it was."""
    folder, write = made
    first = source.code_digest("made.start", package=folder)
    write("other.py", "Y = 2\n")
    assert source.code_digest("made.start", package=folder) == first
    source.code_digest.cache_clear()  # as in a new process
    assert source.code_digest("made.start", package=folder) != first


def test_an_edit_counts_where_its_module_is_reached(package: Path) -> None:
    rl, sft = (code_digest(module, package=package) for module in (RL, SFT))
    assert (rl, sft) == (code_digest(RL), code_digest(SFT))
    kl = package / "training/kl.py"
    kl.write_text(kl.read_text().replace("0.1", "0.2").replace("return", "return 2 *", 1))
    assert code_digest(RL, package=package) != rl
    assert code_digest(SFT, package=package) == sft
    rl = code_digest(RL, package=package)
    r1v = package / "scoring/r1v.py"
    r1v.write_text(r1v.read_text() + "\nNEW = 1\n")
    assert [code_digest(module, package=package) for module in (RL, SFT)] == [rl, sft]
    prompts = package / "models/prompts.py"
    prompts.write_text(prompts.read_text() + "\nNEW = 1\n")
    assert code_digest(SFT, package=package) != sft


@pytest.mark.parametrize(
    "name",
    [
        *(f"cells.{name}" for name in ("accelerate_config", "processes", "keys")),
        *("core.locks", "tracking.records", "scoring.r1v"),
    ],
)
def test_what_starts_records_and_keeps_trainings_does_not_count(name: str) -> None:
    assert f"othink_pipeline.{name}" in reached(f"othink_pipeline.{name}")  # it is there
    assert f"othink_pipeline.{name}" not in reached(
        RL, SFT, "othink_pipeline.evaluation.predictions"
    )


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("def f():\n    return 1", "# why\ndef f():\n    return (1)  # one\n\n\n", True),
        ("def f():\n    return 1", 'def f():\n    """One."""\n    return 1', True),
        ("class A:\n    x = 1", 'class A:\n    "A."\n    x = 1\n    """An attribute."""', True),
        ("X = 1", '"""A module."""\nX = 1\n"""One."""', True),
        ("if a:\n    x()\nelse:\n    y()", 'if a:\n    x()\nelse:\n    ""\n    y()', True),
        ("def f():\n    return 1", "def f():\n    return 1.0", False),
        ("def f():\n    return 1", "def f():\n    return True", False),
        ("def f(x: int):\n    pass", "def f(x: str):\n    pass", False),
        ("def f():\n    return 'a'", "def f():\n    return 'b'", False),
        ("f('a')", "'a'", False),
        ("x = 1\ny = 2", "y = 2\nx = 1", False),
        ("@cache\ndef f():\n    pass", "def f():\n    pass", False),
        ("lambda: 'a'", "lambda: 'b'", False),
        ("f(b'a')", "f(b'b')", False),
    ],
)
def test_only_what_runs_counts(
    before: str, after: str, same: bool, made: tuple[Path, Write]
) -> None:
    folder, write = made
    write("other.py", before)
    first = code_digest("made.start", package=folder)
    write("other.py", after)
    assert (code_digest("made.start", package=folder) == first) is same


@pytest.mark.parametrize(
    "line",
    [
        "import made.new",
        "import json, made.new as n",
        "from made import new",
        "from made import Y, new as n",
        "from made.new import f, g",
        "from . import new",
        "from .new import f",
        "def f():\n    from made.new import f",
        "class A:\n    def f(self):\n        if self:\n            import made.new",
        "try:\n    import made.new\nexcept ImportError:\n    pass",
        "if not TYPE_CHECKING:\n    import made.new",
        "if TYPE_CHECKING:\n    import json\nelse:\n    import made.new",
        "if TYPE_CHECKING or X:\n    import made.new",
    ],
)
def test_every_kind_of_import_is_followed(line: str, made: tuple[Path, Write]) -> None:
    folder, write = made
    write("new.py", "from made.deep import below\n")
    write("deep/__init__.py", "from .beside import Z\nfrom .. import last\n")
    write("deep/below.py", "")
    write("deep/beside.py", "from ..further import Q\n")
    for name in ("last", "further", "apart"):
        write(f"{name}.py", "")
    before = code_digest("made.start", package=folder)
    assert sorted(reached("made.start", package=folder)) == ["made", "made.other", "made.start"]
    write("other.py", f"Y = 1\n{line}\n")
    new = ("deep", "deep.below", "deep.beside", "further", "last", "new", "other", "start")
    assert sorted(reached("made.start", package=folder)) == ["made", *(f"made.{n}" for n in new)]
    after = code_digest("made.start", package=folder)
    write("further.py", "Q = 1")
    assert len({before, after, code_digest("made.start", package=folder)}) == 3


@pytest.mark.parametrize(
    "code",
    [
        "from __future__ import annotations\nimport torch, maderight\nfrom madeup.new import f",
        "if TYPE_CHECKING:\n    from made.new import f\n    from made.nope import g",
        "if typing.TYPE_CHECKING:\n    import made.new",
        "TEXT = 'import made.new'",
        "from made import Y",
    ],
)
def test_what_is_no_import_of_ours_is_not_followed(code: str, made: tuple[Path, Write]) -> None:
    folder, write = made
    write("new.py", "")
    write("other.py", code)
    assert sorted(reached("made.start", package=folder)) == ["made", "made.other", "made.start"]


def test_the_package_above_a_module_counts(made: tuple[Path, Write]) -> None:
    folder, write = made
    write("deep/__init__.py", "import made.other")
    write("deep/below.py", "")
    expected = ["made", "made.deep", "made.deep.below", "made.other"]
    assert sorted(reached("made.deep.below", package=folder)) == expected
    before = code_digest("made.deep.below", package=folder)
    write("__init__.py", "VERSION = 2")
    assert code_digest("made.deep.below", package=folder) != before


def test_modules_that_import_one_another_end(made: tuple[Path, Write]) -> None:
    folder, write = made
    write("other.py", "import made.start")
    assert sorted(reached("made.start", package=folder)) == ["made", "made.other", "made.start"]


def test_code_cannot_move_between_modules_unseen(made: tuple[Path, Write]) -> None:
    folder, write = made
    write("start.py", "import made.a, made.b")
    seen = set()
    for a, b in (("x()\ny()", ""), ("x()", "y()"), ("", "x()\ny()")):
        write("a.py", a)
        write("b.py", b)
        seen.add(code_digest("made.start", package=folder))
    assert len(seen) == 3


@pytest.mark.parametrize("module", ["made.nope", "made.start.X", "json", "made.other.py", ""])
def test_an_unknown_module_is_an_error(module: str, made: tuple[Path, Write]) -> None:
    with pytest.raises(ValueError, match=r"no such module in .*made \(asked for\)"):
        code_digest("made.start", module, package=made[0])


@pytest.mark.parametrize("line", ["import made.nope", "from made.nope import f"])
def test_a_broken_import_is_named(line: str, made: tuple[Path, Write]) -> None:
    folder, write = made
    write("other.py", f"Y = 1\n{line}\n")
    with pytest.raises(ValueError, match=r"made\.nope: .* made\.other, line 2"):
        reached("made.start", package=folder)


def test_versions_are_those_of_the_installed_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    import transformers

    versions = library_versions()
    assert versions["torch"] == torch.__version__.partition("+")[0] or versions["torch"] == str(
        torch.__version__
    )
    assert versions["transformers"] == transformers.__version__
    assert set(versions) <= {*source.LIBRARIES}
    not_of_the_project = {"bitsandbytes", "deepspeed", "flash_attn", "vllm"}
    assert set(versions) >= {*source.LIBRARIES} - not_of_the_project

    def without_peft(name: str) -> str:
        if name == "peft":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(source, "version", without_peft)
    assert library_versions() == {name: "1" for name in source.LIBRARIES if name != "peft"}
