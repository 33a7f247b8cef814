"""What nothing uses is found and deleted; everything else stays, whatever happens meanwhile."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from othink_pipeline import prune
from othink_pipeline.core.locks import is_locked, lock
from othink_pipeline.prune import RECENT_S, KeptError, find_unused, main, remove

KEYS = [f"{number:016x}" for number in range(0xAB, 0xAB + 9)]
HOUR_S = 3600.0


def age(folder: Path, seconds: float = HOUR_S) -> None:
    then = time.time() - seconds
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (then, then), follow_symlinks=False)


def make_training(home: Path, key: str, update: int = 48, finished: bool = True) -> Path:
    """A training of 3000 bytes, finished or interrupted, and its lock file."""
    folder = home / key
    for name in ("update-000016", f"update-{update:06d}"):
        (folder / name).mkdir(parents=True)
    (folder / f"update-{update:06d}" / "model.safetensors").write_bytes(bytes(2000))
    (folder / "journal.jsonl").write_bytes(bytes(1000))
    if finished:
        (folder / "manifest.json").touch()
    else:
        (folder / "resume" / f"checkpoint-{update + 5}").mkdir(parents=True)
    (home / f"{key}.lock").touch()
    return folder


@contextmanager
def another_process_that_holds(file: Path) -> Iterator[int]:
    script = """
import sys
from pathlib import Path
from othink_pipeline.core.locks import lock
with lock(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.read()
"""
    command, pipe = [sys.executable, "-c", script, str(file)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == "held\n"
            yield holder.pid
        finally:
            holder.kill()


def use(home: Path, path: str | Path) -> None:
    home.with_name(f"{home.name}.json").write_text(json.dumps({"path": str(path), "seed": 0}))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's data folder, an hour old: of each kind one in use and one not."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    for root in (data, data / "seeds"):
        home = root / "06_models" / "counting" / "grpo_d" / "s0"
        for key in KEYS[:2]:
            make_training(home, key)
        # Relative to the project, as parameters are.
        use(home, home.relative_to(tmp_path) / KEYS[0] / "update-000048")
        make_training(home, KEYS[2], update=32, finished=False)
        for owner in ("counting/grpo_d/s0", "base/b1"):
            tests = root / "07_model_output" / owner / "geometry"
            tests.mkdir(parents=True)
            for key in KEYS[3:5]:
                (tests / f"{key}.parquet").write_bytes(bytes(500))
            use(tests, tests / f"{KEYS[3]}.parquet")
    # What is none of its business.
    other = data / "06_models" / "counting" / "grpo_d" / "s0"
    for name in ("update-000016", "trainer", KEYS[5][:-1], KEYS[5].upper(), f"{KEYS[5]}0"):
        (other / name).mkdir()
    (other / KEYS[5]).write_text("a file")
    (data / "06_models" / "mini_qwen2_vl" / KEYS[5]).mkdir(parents=True)
    (data / "06_models" / "counting" / "grpo_d" / "old" / KEYS[5]).mkdir(parents=True)
    (data / "03_primary" / "counting" / "grpo" / "s0" / KEYS[5]).mkdir(parents=True)
    (data / "07_model_output" / "counting" / "grpo_d" / "s0" / "geometry" / "notes.txt").touch()
    age(data)
    return data


def run(*options: str) -> Result:
    result = CliRunner().invoke(main, list(options))
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def tree(data: Path) -> set[str]:
    return {path.relative_to(data).as_posix() for path in data.rglob("*")}


def unused(data: Path) -> set[str]:
    return {found.path.relative_to(data).as_posix() for found in find_unused(data)}


TRAININGS = {f"{root}06_models/counting/grpo_d/s0/{KEYS[1]}" for root in ("", "seeds/")}
INTERRUPTED = {f"{root}06_models/counting/grpo_d/s0/{KEYS[2]}" for root in ("", "seeds/")}
PREDICTIONS = {
    f"{root}07_model_output/{owner}/geometry/{KEYS[4]}.parquet"
    for root in ("", "seeds/")
    for owner in ("base/b1", "counting/grpo_d/s0")
}


def gone(paths: set[str], before: set[str]) -> set[str]:
    """All of ``before`` that is at or below one of ``paths``."""
    return {name for name in before if any((name + "/").startswith(p + "/") for p in paths)}


def test_without_delete_all_is_listed_and_nothing_changes(data: Path) -> None:
    before = {path: path.lstat().st_mtime for path in data.rglob("*")}
    result = run()
    assert result.exit_code == 0
    lines = result.output.splitlines()
    listed = {line.rpartition(f": {data}/")[2]: line for line in lines[:-2]}
    assert set(listed) == TRAININGS | INTERRUPTED | PREDICTIONS
    assert "3.0 kB     0.0 days  counting/grpo_d/s0: " in listed[min(TRAININGS)]
    assert "counting/grpo_d/s0, unfinished at update 37: " in listed[min(INTERRUPTED)]
    assert "500 B" in lines[-3], "the largest comes first"
    assert "base/b1 on geometry: " in listed[min(PREDICTIONS)]
    assert "500 B" in listed[min(PREDICTIONS)]
    assert lines[-2].startswith(f"{data}: 8 (")
    assert "unfinished: 2 (" in lines[-2]
    assert lines[-1] == "To delete: --delete, all of it: --delete --unfinished"
    assert {path: path.lstat().st_mtime for path in data.rglob("*")} == before


def test_what_another_environment_starts_from_stays(data: Path) -> None:
    base_model = data / "seeds/06_models/base/b0.json"
    base_model.parent.mkdir()
    unused_one = min(TRAININGS, key=len)
    base_model.write_text(json.dumps({"path": f"data/{unused_one}/update-000048"}))
    assert unused(data) == (TRAININGS | INTERRUPTED | PREDICTIONS) - set(TRAININGS)


def test_what_an_environment_with_the_same_folders_uses_stays(data: Path) -> None:
    """Its catalog has a data folder of its own."""
    for name, used in (
        ("06_models/counting/grpo_d/s0.json", f"{min(TRAININGS, key=len)}/update-000048"),
        ("07_model_output/counting/grpo_d/s0/geometry.json", min(PREDICTIONS)),
    ):
        (data / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (data / "x" / name).write_text(json.dumps({"path": f"data/{used}"}))
    assert unused(data) == INTERRUPTED


def test_sizes_add_up(data: Path) -> None:
    for found in find_unused(data):
        inside = [path for path in found.path.rglob("*") if path.is_file()]
        expected = sum(file.stat().st_size for file in inside or [found.path])
        assert found.size_bytes == expected == (3000 if inside else 500)
        assert time.time() - found.changed_s == pytest.approx(HOUR_S, abs=100)


@pytest.mark.parametrize("options", [("--delete",), ("--delete", "--unfinished")])
def test_delete_deletes_what_is_unused_and_nothing_else(
    options: tuple[str, ...], data: Path
) -> None:
    before = tree(data)
    result = run(*options)
    assert result.exit_code == 0
    expected = TRAININGS | PREDICTIONS | (INTERRUPTED if "--unfinished" in options else set())
    assert before - tree(data) == gone(expected, before)
    assert tree(data) <= before, "something new stands there"
    size = "14.0 kB" if "--unfinished" in options else "8.0 kB"
    assert f"{data}: {len(expected)} ({size}) deleted" in result.output
    if "--unfinished" in options:
        age(data)
        assert run().output == f"{data}: nothing to delete\n"
    else:
        assert "2 (6.0 kB) unused, of them unfinished: 2 (6.0 kB)" in result.output


def test_unfinished_alone_is_a_mistake(data: Path) -> None:
    before = tree(data)
    assert run("--unfinished").exit_code == 2
    assert tree(data) == before


def test_another_data_folder(data: Path) -> None:
    before = tree(data)
    assert run("--data", "data/seeds", "--delete").exit_code == 0
    seeds = {name for name in TRAININGS | PREDICTIONS if name.startswith("seeds/")}
    assert before - tree(data) == gone(seeds, before)
    assert run("--data", "data/nope").exit_code == 2


def test_what_a_report_was_made_of_is_kept(data: Path) -> None:
    """Where a cell was tested again alone, since: the tables still name the predictions before."""
    owner = data / "07_model_output" / "counting" / "grpo_d"
    earlier = owner / "s0" / "geometry" / f"{KEYS[4]}.parquet"
    assert earlier.relative_to(data).as_posix() in unused(data)
    tests = [{"eval_task": "counting", "error": "none"}, {"path": str(earlier)}]
    (owner / "tests.json").write_text(json.dumps({"tests": tests}))
    assert earlier.relative_to(data).as_posix() not in unused(data)


def test_whoever_works_elsewhere_finds_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths in the JSON files are relative to the project: what is in use stays in use."""
    monkeypatch.chdir(tmp_path.parent)
    before = tree(data)
    assert run("--data", str(data), "--delete").exit_code == 0
    assert before - tree(data) == gone(TRAININGS | PREDICTIONS, before)


@pytest.mark.parametrize("text", ["[]", '{"path": 3}'])
def test_beside_a_file_that_does_not_read_all_stays(text: str, data: Path) -> None:
    home = data / "06_models" / "counting" / "grpo_d" / "s0"
    home.with_suffix(".json").write_text(text)
    before = tree(home)
    result = run("--delete", "--unfinished")
    assert tree(home) == before
    assert "s0.json does not say what is in use" in result.output
    assert not (data / "seeds" / home.relative_to(data) / KEYS[1]).exists()


def test_without_any_file_what_is_finished_is_kept(data: Path, capsys: Any) -> None:
    """Its run was killed before Kedro could write it, or keeps it in another data folder."""
    shutil.rmtree(data / "seeds")
    home = data / "06_models" / "counting" / "grpo_d" / "s0"
    home.with_suffix(".json").unlink()
    assert f"06_models/counting/grpo_d/s0/{KEYS[0]}" not in unused(data)
    assert f"{KEYS[0]} is kept" in capsys.readouterr().out
    (home / KEYS[0] / "manifest.json").unlink()
    age(data)
    assert f"06_models/counting/grpo_d/s0/{KEYS[0]}" in unused(data)


def test_what_a_run_holds_stays(data: Path) -> None:
    home = data / "06_models" / "counting" / "grpo_d" / "s0"
    with another_process_that_holds(home / f"{KEYS[2]}.lock"):
        age(data)  # however long it has been at work
        result = run("--delete", "--unfinished")
        assert is_locked(home / f"{KEYS[2]}.lock")
        with pytest.raises(KeptError, match="at work"):
            remove(home / KEYS[2])
    assert (home / KEYS[2] / "journal.jsonl").exists()
    assert f"{home / KEYS[2]} is kept: a run is at work on it" in result.output
    assert not (home / KEYS[1]).exists()


def test_what_a_run_comes_to_hold_meanwhile_stays(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last look: the lock itself decides."""
    home = data / "06_models" / "counting" / "grpo_d" / "s0"
    monkeypatch.setattr(prune, "_why_keep", lambda path: "")
    with another_process_that_holds(home / f"{KEYS[1]}.lock") as pid:
        result = run("--delete")
    assert (home / KEYS[1] / "manifest.json").exists()
    assert f"kept: a run is at work on it ({os.uname().nodename} {pid} " in result.output


def test_what_a_run_has_come_to_use_meanwhile_stays(data: Path) -> None:
    home = data / "06_models" / "counting" / "grpo_d" / "s0"
    found = [each.path for each in find_unused(data) if each.path.parent == home]
    assert home / KEYS[1] in found
    use(home, home / KEYS[1] / "update-000048")
    with pytest.raises(KeptError, match="come to use it"):
        remove(home / KEYS[1])
    with lock(home / f"{KEYS[1]}.lock", lambda holder: None):
        use(home, home / KEYS[0])  # named again as soon as the run lets go of it
    with pytest.raises(KeptError, match="a minute ago"):
        remove(home / KEYS[1])
    assert (home / KEYS[1] / "manifest.json").exists()


def test_what_was_just_made_or_taken_stays(data: Path) -> None:
    """A run that has let go of the lock has yet to name in the JSON file what it made."""
    home = data / "06_models" / "counting" / "grpo_d" / "s0"
    with lock(home / f"{KEYS[1]}.lock", lambda holder: None):
        pass
    tests = data / "07_model_output" / "base" / "b1" / "geometry"
    (tests / f"{KEYS[6]}.parquet").touch()
    (home / KEYS[7]).mkdir()
    kept = {tests / f"{KEYS[6]}.parquet", home / KEYS[7], home / KEYS[1]}
    assert not unused(data) & {path.relative_to(data).as_posix() for path in kept}
    assert run("--delete", "--unfinished").output.count("a minute ago") == 3
    assert all(path.exists() for path in kept)
    age(data, RECENT_S + 5)
    run("--delete", "--unfinished")
    assert not any(path.exists() for path in kept)


def test_links_are_not_followed(data: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for name in (KEYS[6], "s7", "grpo", "geometry", "06_models/a/b/s0"):
        make_training(outside / name, KEYS[8])
    home = data / "06_models" / "counting" / "grpo_d" / "s0"
    (home / KEYS[6]).symlink_to(outside / KEYS[6] / KEYS[8])
    (home.parent / "s7").symlink_to(outside / "s7")
    (home.parent.parent / "sft").symlink_to(outside)
    (data / "06_models" / "geometry").symlink_to(outside)
    (data / "elsewhere").mkdir()
    (data / "elsewhere" / "06_models").symlink_to(outside / "06_models")
    (home / KEYS[1] / "link").symlink_to(outside)
    (home / KEYS[1] / "nowhere").symlink_to(outside / "nowhere")
    tests = data / "07_model_output" / "base" / "b1" / "geometry"
    (tests / f"{KEYS[7]}.parquet").symlink_to(outside / "s7" / KEYS[8] / "manifest.json")
    (data / "07_model_output" / "base" / "b2").symlink_to(outside)
    (outside / "b0" / "geometry").mkdir(parents=True)
    (outside / "b0" / "geometry" / f"{KEYS[1]}.parquet").touch()
    (data / "elsewhere" / "07_model_output").mkdir()
    (data / "elsewhere" / "07_model_output" / "base").symlink_to(outside)
    age(data)
    age(outside)
    before = tree(outside)
    result = run("--delete", "--unfinished")
    assert result.exit_code == 0
    assert f"{data / 'elsewhere' / '06_models'} is a link: not followed" in result.output
    assert tree(outside) == before
    assert not (home / KEYS[1]).exists(), "a link in a checkpoint goes, its target stays"
    assert (home / KEYS[6]).is_symlink()


def test_half_deleted_is_never_taken_for_whole_and_goes_the_next_time(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = data / "06_models" / "counting" / "grpo_d" / "s0"

    def fail(path: Path) -> None:
        (path / "manifest.json").unlink()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "rmtree", fail)
    result = run("--delete")
    assert result.exit_code == 1
    assert f"not deleted\n  {home / KEYS[1]}: " in result.output
    assert "Input/output error" in result.output
    assert "4 (2.0 kB) deleted" in result.output, "one fault must not stop the rest"
    monkeypatch.undo()
    assert not (home / KEYS[1]).exists()
    assert (home / f".{KEYS[1]}.pruned").exists()
    make_training(home, KEYS[1])  # made anew since
    age(data)
    result = run("--data", str(data), "--delete")
    assert result.exit_code == 0
    assert "half deleted" in result.output
    assert not any(KEYS[1] in name and "lock" not in name for name in tree(data))


def test_what_was_set_aside_and_never_replaced_goes_unless_a_run_is_at_work(data: Path) -> None:
    home = data / "06_models" / "counting" / "grpo_d" / "s0"
    retired = home / f".{KEYS[0]}.old"
    make_training(home, retired.name)
    (home / f"{retired.name}.lock").unlink()
    age(data)
    with another_process_that_holds(home / f"{KEYS[0]}.lock"):
        assert str(retired) not in {str(unused.path) for unused in find_unused(data)}
        with pytest.raises(KeptError):
            remove(retired)
    age(data)
    listed = {unused.path: unused for unused in find_unused(data)}
    assert "set aside" in listed[retired].what and listed[retired].finished
    (home / KEYS[0] / "manifest.json").rename(data / "not finished")  # it may be taken back
    (unfinished,) = (each for each in find_unused(data) if each.path == retired)
    assert unfinished.what.endswith("made anew, unfinished at update 48")
    assert not unfinished.finished
    (data / "not finished").rename(home / KEYS[0] / "manifest.json")
    remove(retired)
    assert not list(home.glob(f".{KEYS[0]}*")) and (home / KEYS[0]).exists()


def test_a_half_deleted_one_does_not_stand_in_the_way(data: Path) -> None:
    home = data / "06_models" / "counting" / "grpo_d" / "s0"
    (home / f".{KEYS[1]}.pruned" / "update-000016").mkdir(parents=True)
    remove(home / KEYS[1])
    assert not (home / KEYS[1]).exists()
    assert not (home / f".{KEYS[1]}.pruned").exists()


def test_the_command_runs_from_the_project(data: Path) -> None:
    command: list[Any] = [sys.executable, "-m", "othink_pipeline.prune"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "--unfinished" in done.stdout
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=data.parent)
    assert f"{data}: 8 (" in done.stdout
