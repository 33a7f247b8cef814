"""Content keys, digests and atomic publishing: what is finished is never half there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def content_key(content: Any) -> str:
    """16 hexadecimal digits that change whenever the JSON of ``content`` changes."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_folder(folder: Path, files: Iterable[Path] | None = None) -> str:
    """SHA-256 over names and bytes of every file below ``folder`` except its manifest.

    Args:
        files: those of its files that count; None: all.
    """
    digest = hashlib.sha256()
    counted = folder.rglob("*") if files is None else files
    for file in sorted(path for path in counted if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if name != MANIFEST and not file.name.startswith("."):  # a file manager's .DS_Store
            digest.update(f"{name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as content:
                while block := content.read(1 << 20):  # a checkpoint may be larger than the memory
                    digest.update(block)
    return digest.hexdigest()


@contextmanager
def publish(folder: Path) -> Iterator[Path]:
    """A scratch folder beside ``folder`` that takes its place when the block ends well.

    Nothing is left behind when the block fails. A scratch folder of a killed process is swept by
    the next call.
    """
    scratch, old = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    _put_back(old, folder)  # killed between the two renames below
    for leftover in (scratch, old):
        shutil.rmtree(leftover, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        if folder.exists():
            os.replace(folder, old)
        os.replace(scratch, folder)
    finally:
        _put_back(old, folder)  # interrupted there
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _put_back(old: Path, folder: Path) -> None:
    if old.exists() and not folder.exists():
        os.replace(old, folder)


@contextmanager
def publish_file(file: Path) -> Iterator[Path]:
    """A scratch file beside ``file`` that takes its place when the block ends well."""
    scratch = file.with_name(f".{file.name}.new")
    try:
        yield scratch
        os.replace(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write ``content`` so that the file is there as a whole or not at all."""
    with publish_file(file) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n")


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no such file or it holds something else."""
    try:
        content = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return content if isinstance(content, dict) else None
