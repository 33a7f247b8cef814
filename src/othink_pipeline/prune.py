"""Free the disk of what nothing uses: ``python -m othink_pipeline.prune [--delete]``.

Trainings and predictions stand under the key of what they were made from. After a change of
settings the former ones stay, to be used again when the settings return; JSON files name the ones
in use. This command lists the others and, with ``--delete``, deletes them; only with
``--unfinished`` interrupted trainings, which could go on, and those that were set aside for one
that is not finished. Kept is what a run holds or held a minute ago, and what stands beside a JSON
file that does not read. Links are not followed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR

import click

from othink_pipeline.core.files import MANIFEST, read_json
from othink_pipeline.core.locks import is_locked, lock
from othink_pipeline.core.units import describe_bytes

MODELS, OUTPUT = "06_models", "07_model_output"

_NAMING = (
    *(f"{MODELS}/base/b*.json", f"{MODELS}/*/*/s*.json"),
    *(f"{OUTPUT}/base/b*/*.json", f"{OUTPUT}/*/*/s*/*.json"),
)
"""The JSON files that name what is in use. It may stand below another environment's data folder: as
a base model, or where environments share their ``folders``."""
_TABLES = (f"{OUTPUT}/*/tests.json", f"{OUTPUT}/*/*/tests.json")
"""The JSON files that name the predictions of a report. Where cells were run in parts, these may be
earlier ones."""

RECENT_S = 60.0
"""A run that has just made or taken something has yet to name it in the JSON file."""

_KEY = re.compile(r"([0-9a-f]{16})(\.parquet)?")
_RETIRED = re.compile(r"\.[0-9a-f]{16}\.old")
"""The name of a training whose place another was to take, which is not finished."""
_PRUNED = re.compile(r"\.[0-9a-f]{16}(\.parquet|\.old)?\.pruned")
"""The name of what is being deleted: nothing takes it for a checkpoint any more."""

_UPDATE = re.compile(r"(?:update|checkpoint)-(\d+)")


class KeptError(Exception):
    """What was to be deleted is in somebody's hands."""


@dataclass(frozen=True)
class Unused:
    """A training or a predictions file that nothing uses, or what an earlier call left of one."""

    path: Path
    what: str
    """Who made it, and how far it came."""
    finished: bool
    size_bytes: int
    changed_s: float
    """When a file in it was last changed, in seconds since 1970."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("data"),
    show_default=True,
    help="Where to look: the data folder, with those of all environments in it.",
)
@click.option("--delete", is_flag=True, help="Delete what is listed.")
@click.option("--unfinished", is_flag=True, help="With --delete: interrupted trainings as well.")
def main(data: Path, delete: bool, unfinished: bool) -> None:
    """List the trainings and predictions that nothing uses; delete them with --delete."""
    if unfinished and not delete:
        raise click.UsageError("--unfinished goes with --delete; without, all is listed anyway")
    data = data.resolve()
    deleted, left, faults = [], [], []
    for unused in sorted(find_unused(data), key=lambda unused: -unused.size_bytes):
        days = max(0.0, time.time() - unused.changed_s) / 86_400
        size = describe_bytes(unused.size_bytes)
        click.echo(f"{size:>9}  {days:6.1f} days  {unused.what}: {unused.path}")
        if not delete or not (unused.finished or unfinished):
            left.append(unused)
            continue
        try:
            remove(unused.path)
        except KeptError as reason:
            click.echo(f"{'':9}  kept: {reason}")
        except (OSError, click.ClickException) as error:
            faults.append(f"{unused.path}: {error}")
        else:
            deleted.append(unused)
    if delete:
        click.echo(f"{data}: {_sum(deleted)} deleted")
    if left:
        interrupted = [unused for unused in left if not unused.finished]
        click.echo(f"{data}: {_sum(left)} unused, of them unfinished: {_sum(interrupted)}")
        click.echo(f"To delete: --delete{', all of it: --delete --unfinished' * bool(interrupted)}")
    elif not deleted:
        click.echo(f"{data}: nothing to delete")
    if faults:
        raise click.ClickException("not deleted\n  " + "\n  ".join(faults))


def find_unused(data: Path) -> Iterator[Unused]:
    """What stands below ``data`` and nothing uses; says why the doubtful stays."""
    named = {part for home in _NAMING for file in data.rglob(home) for part in _named(file)}
    for file in (file for home in _TABLES for file in data.rglob(home)):
        tests = (read_json(file) or {}).get("tests", [])
        named |= {part for test in tests for part in Path(test.get("path", "")).parts}
    for place, subfolders, _ in os.walk(data):
        folder = Path(place)
        for name in sorted({MODELS, OUTPUT} & set(subfolders)):
            if (folder / name).is_symlink():
                click.echo(f"{folder / name} is a link: not followed")
        if folder.name not in (MODELS, OUTPUT):
            continue
        subfolders.clear()
        for home, maker in _homes(folder):
            for path in sorted(home.iterdir()):
                if path.is_symlink() or path.is_dir() != (folder.name == MODELS):
                    continue
                if _PRUNED.fullmatch(path.name):
                    yield _describe(path, f"{maker}, half deleted")
                elif _RETIRED.fullmatch(path.name) or (
                    _KEY.fullmatch(path.name) and path.name not in named and not _in_use(path)
                ):
                    if reason := _why_keep(path):
                        click.echo(f"{path} is kept: {reason}")
                    else:
                        replaced = ", set aside for one to be made anew"
                        yield _describe(path, maker + replaced * path.name.startswith("."))


def remove(path: Path) -> None:
    """Delete something unused, or what is left of it.

    Raises:
        KeptError: a run has come to use it.
        OSError: it cannot be deleted.
    """
    if _PRUNED.fullmatch(path.name):
        _delete(path)
        return
    if reason := _why_keep(path):
        raise KeptError(reason)
    # Predictions that no run ever locked get no lock file for the sake of their end.
    locked = path.is_dir() or _lock_file(path).exists()
    with lock(_lock_file(path), _give_up) if locked else nullcontext():
        if not _RETIRED.fullmatch(path.name) and _in_use(path):
            raise KeptError("a run has come to use it")
        hidden = path.with_name(f".{path.name.lstrip('.')}.pruned")
        if hidden.exists():  # of an earlier one with the same key
            _delete(hidden)
        path.rename(hidden)  # at once, so that it is never taken for whole
    _delete(hidden)


def _homes(folder: Path) -> Iterator[tuple[Path, str]]:
    """The folders that hold trainings, or predictions, and who made them."""
    cells = [
        seed
        for task in _subfolders(folder)
        for method in _subfolders(task)
        for seed in _subfolders(method)
        if re.fullmatch(r"s\d+", seed.name)
    ]
    if folder.name == MODELS:
        yield from ((cell, cell.relative_to(folder).as_posix()) for cell in cells)
        return
    base_models = [b for b in _subfolders(folder / "base") if re.fullmatch(r"b\d+", b.name)]
    for model in (*base_models, *cells):
        for task in _subfolders(model):
            yield task, f"{model.relative_to(folder).as_posix()} on {task.name}"


def _subfolders(folder: Path) -> list[Path]:
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _named(manifest: Path) -> tuple[str, ...]:
    """The parts of the path of what is in use, which may be another environment's."""
    return Path(str((read_json(manifest) or {}).get("path", ""))).parts


def _in_use(path: Path) -> bool:
    """Whether the JSON file beside names it, or cannot be read and may do so."""
    file = path.parent.with_name(f"{path.parent.name}.json")
    try:
        named = json.loads(file.read_text())["path"]
        # Not compared as paths: those in the file are relative to a folder that nobody told us.
        return _key(path) in {part.partition(".")[0] for part in Path(named).parts}
    except FileNotFoundError:
        if not (path / MANIFEST).exists():
            return False
        # Its run was killed just then, or keeps its results in another data folder.
        click.echo(
            f"{path} is kept: finished, and {file}, which would name what is in use, is missing"
        )
        return True
    except (OSError, ValueError, KeyError, TypeError) as error:
        click.echo(f"{path} is kept: {file} does not say what is in use ({error!r})")
        return True


def _why_keep(path: Path) -> str:
    """Why something unused must stay for now; empty when it need not."""
    file = _lock_file(path)
    if is_locked(file):
        return f"a run is at work on it ({file})"
    # To take and to leave a lock changes its file.
    touched_s = max(each.stat().st_mtime for each in (path, file) if each.exists())
    if time.time() - touched_s < RECENT_S:
        return "a run was at work on it a minute ago"
    return ""


def _describe(path: Path, maker: str) -> Unused:
    files = [path]
    for folder, _, names in os.walk(path):
        files += [Path(folder, name) for name in names]
    stats = [file.lstat() for file in files]
    # What was set aside may be taken back until the one in its place is finished.
    place = path.with_name(_key(path)) if _RETIRED.fullmatch(path.name) else path
    finished = (
        not path.is_dir() or (place / MANIFEST).exists() or bool(_PRUNED.fullmatch(path.name))
    )
    if not finished:
        found = [_UPDATE.fullmatch(at.name) for at in (*place.glob("*"), *place.glob("resume/*"))]
        update = max((int(match[1]) for match in found if match), default=0)
        maker = f"{maker}, unfinished at update {update}"
    return Unused(
        path,
        maker,
        finished,
        sum(stat.st_size for stat in stats if not S_ISDIR(stat.st_mode)),
        max(stat.st_mtime for stat in stats),
    )


def _key(path: Path) -> str:
    return path.name.lstrip(".").partition(".")[0]


def _lock_file(path: Path) -> Path:
    return path.with_name(f"{_key(path)}.lock")


def _give_up(holder: str) -> None:
    raise KeptError(f"a run is at work on it ({holder})")


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sum(items: list[Unused]) -> str:
    return f"{len(items)} ({describe_bytes(sum(unused.size_bytes for unused in items))})"


if __name__ == "__main__":
    main(prog_name="python -m othink_pipeline.prune")
