"""Which of the project's own code a result depends on, found without importing any of it."""

from __future__ import annotations

import ast
import hashlib
import subprocess
from collections.abc import Collection, Iterator
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import resolve_name
from pathlib import Path

from othink_pipeline import __version__

PACKAGE = Path(__file__).parents[1]

LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "deepspeed",
    "flash_attn",
    "numpy",
    "peft",
    "pillow",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "vllm",
)
"""Those whose version may change a result."""

OPTIONAL = frozenset({"bitsandbytes", "deepspeed", "flash_attn", "vllm"})
"""Those of them that change none unless a parameter asks for them."""


@lru_cache  # what runs is the code as it was read: an edit on the way belongs to the next run
def code_digest(*modules: str, package: Path = PACKAGE) -> str:
    """SHA-256 over the code that ``modules`` reach, without comments, formatting and docstrings.

    The number of the package's version does not count, either. The digest covers syntax trees,
    which may differ between versions of Python.

    Args:
        modules: full names, e.g. ``othink_pipeline.training.rl``.
        package: folder of the package that they are in.

    Raises:
        ValueError: as ``reached``.
    """
    digest = hashlib.sha256()
    for module, source in sorted(reached(*modules, package=package).items()):
        for part in (module.encode(), _bare(source)):
            digest.update(len(part).to_bytes(8))
            digest.update(part)
    return digest.hexdigest()


def library_versions(asked_for: Collection[str] = OPTIONAL) -> dict[str, str]:
    """Versions of those of ``LIBRARIES`` that are installed; none is imported.

    Args:
        asked_for: those of ``OPTIONAL`` that count.
    """
    versions = {}
    for name in LIBRARIES:
        if name in OPTIONAL and name not in asked_for:
            continue
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def code_tags(project: Path) -> dict[str, str]:
    """Which code runs: the package's version and, inside a git checkout, commit and state."""
    tags = {"code_version": __version__}
    commit = _git(project, "rev-parse", "HEAD")
    if commit:
        dirty = bool(_git(project, "status", "--porcelain"))
        tags |= {"mlflow.source.git.commit": commit, "git_dirty": str(dirty).lower()}
    return tags


def _git(project: Path, *arguments: str) -> str:
    """Output of a git command; empty outside a checkout, before a first commit, without git."""
    command = ["git", "-C", str(project), *arguments]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError:  # there is no git, or it cannot be run
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def reached(*modules: str, package: Path = PACKAGE) -> dict[str, bytes]:
    """The texts of ``modules`` and of all of the package that they may import, in functions too.

    What only type checkers import does not count. A name that the code makes up as it runs
    (``import_module``) cannot be followed: give such a module as one of ``modules``.

    Raises:
        ValueError: no such module in the package, or an import of one that is not there.
    """
    sources: dict[str, bytes] = {}
    waiting = [(module, "asked for") for module in modules]
    while waiting:
        module, why = waiting.pop()
        if module in sources:
            continue
        file = _find(module, package)
        if file is None:
            raise ValueError(f"{module}: no such module in {package} ({why})")
        sources[module] = source = file.read_bytes()
        above = module.rpartition(".")[0]
        if above:
            waiting.append((above, f"above {module}"))
        home = module if file.name == "__init__.py" else above
        try:
            imports = _imports(source)
        except SyntaxError as error:
            error.filename = str(file)
            raise
        for node in imports:
            why = f"imported by {module}, line {node.lineno}"
            waiting += [(name, why) for name in _imported(node, home, package)]
    return sources


# Every cell asks for these again, and reading a text takes long: once for each text.
@cache
def _imports(source: bytes) -> tuple[ast.Import | ast.ImportFrom, ...]:
    """All imports in a module but those for type checkers alone."""
    return tuple(_imports_in(ast.parse(source)))


def _imports_in(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    elif isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    ):
        for otherwise in node.orelse:
            yield from _imports_in(otherwise)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _imports_in(child)


def _imported(node: ast.Import | ast.ImportFrom, home: str, package: Path) -> list[str]:
    """The package's modules that one import names; ``home``: the package that it stands in."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        source = node.module or ""
        if node.level:
            source = resolve_name("." * node.level + source, home)
        # Each name is a module of the package ``source``, or else stands in its code.
        below = [f"{source}.{alias.name}" for alias in node.names]
        names = [source, *(name for name in below if _find(name, package))]
    return [name for name in names if name.partition(".")[0] == package.name]


def _find(module: str, package: Path) -> Path | None:
    """The file of a module of the package."""
    place = package.parent.joinpath(*module.split("."))
    files = (place / "__init__.py", place.with_name(f"{place.name}.py"))
    return next((file for file in files if file.is_file()), None)


@cache
def _bare(source: bytes) -> bytes:
    """A module without what does nothing: docstrings, those of attributes too, and the version."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                setattr(node, name, [s for s in statements if not _does_nothing(s)])
    return ast.dump(tree).encode()


def _does_nothing(statement: ast.AST) -> bool:
    if isinstance(statement, ast.Assign):
        return [ast.unparse(target) for target in statement.targets] == ["__version__"]
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
