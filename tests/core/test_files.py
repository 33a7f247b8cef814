"""What is finished is whole: keys, digests, manifests, atomic publishing."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from othink_pipeline.core.files import (
    MANIFEST,
    content_key,
    digest_folder,
    publish,
    publish_file,
    read_json,
    write_json,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "sub" / "b.bin").write_bytes(b"\0\1")
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_content_key_is_pinned_and_ignores_the_order_of_keys() -> None:
    assert content_key({"a": 1, "b": [1, 2]}) == content_key({"b": [1, 2], "a": 1})
    assert content_key({"a": 1, "b": [1, 2]}) == "8baa73198470c7bb"


def test_any_change_changes_the_content_key() -> None:
    contents: list[object] = [{}, {"a": 1}, {"a": "1"}, {"a": 1.5}, {"a": None}, {"b": 1}, [1, 2]]
    contents += [[2, 1], [[1], 2], "a", {"a": {"b": 1}}, {"a": True}]
    assert len({content_key(content) for content in contents}) == len(contents)


def test_what_is_no_json_has_no_key() -> None:
    with pytest.raises(TypeError):
        content_key({"path": Path("a")})


def test_a_digest_does_not_depend_on_the_place(folder: Path, tmp_path: Path) -> None:
    before = digest_folder(folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert digest_folder(moved) == before


def test_a_digest_takes_names_sizes_and_bytes_in_the_order_of_names(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the file system lists them."""
    expected = hashlib.sha256(b"a.txt\x003\x00onesub/b.bin\x002\x00\x00\x01").hexdigest()
    rglob = Path.rglob
    for backwards in (False, True):
        monkeypatch.setattr(
            Path,
            "rglob",
            lambda self, pattern, last_first=backwards: sorted(
                rglob(self, pattern), reverse=last_first
            ),
        )
        assert digest_folder(folder) == expected


def test_a_digest_leaves_out_the_manifest_alone(folder: Path) -> None:
    before = digest_folder(folder)
    (folder / MANIFEST).write_text("{}")
    assert digest_folder(folder) == before
    (folder / "sub" / MANIFEST).write_text("{}")  # some other file of that name
    assert digest_folder(folder) != before


def test_a_digest_leaves_out_what_file_managers_leave_behind(folder: Path) -> None:
    before = digest_folder(folder)
    (folder / "sub" / ".DS_Store").write_text("icons")
    assert digest_folder(folder) == before


def test_every_change_of_a_file_changes_the_digest(folder: Path) -> None:
    digests = [digest_folder(folder)]
    (folder / "a.txt").write_text("two")
    digests.append(digest_folder(folder))
    (folder / "a.txt").rename(folder / "c.txt")
    digests.append(digest_folder(folder))
    (folder / "sub" / "b.bin").rename(folder / "b.bin")
    digests.append(digest_folder(folder))
    (folder / "empty").write_text("")
    digests.append(digest_folder(folder))
    (folder / "c.txt").unlink()
    digests.append(digest_folder(folder))
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"1": "ab", "2": "c"}, {"1": "a", "2": "bc"}),
        ({"a": "bc"}, {"ab": "c"}),
        ({"a": "b", "c": "d"}, {"a": "bcd"}),
    ],
)
def test_bytes_cannot_move_between_names_and_files_unseen(
    tmp_path: Path, first: dict[str, str], second: dict[str, str]
) -> None:
    for place, files in (("x", first), ("y", second)):
        (tmp_path / place).mkdir()
        for name, text in files.items():
            (tmp_path / place / name).write_text(text)
    assert digest_folder(tmp_path / "x") != digest_folder(tmp_path / "y")


def test_publishing_shows_nothing_before_the_end(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "model"
    with publish(folder) as scratch:
        (scratch / "a").write_text("1")
        assert scratch.parent == folder.parent, "a rename must not cross file systems"
        assert not folder.exists()
    assert (folder / "a").read_text() == "1"
    assert names(folder.parent) == ["model"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space"), publish(tmp_path / "model") as scratch:
        (scratch / "a").write_text("1")
        raise OSError("no space")
    assert names(tmp_path) == []


def test_a_failure_leaves_the_old_one_as_it_was(folder: Path) -> None:
    content = digest_folder(folder)
    with pytest.raises(KeyboardInterrupt), publish(folder) as scratch:
        (scratch / "a.txt").write_text("new")
        raise KeyboardInterrupt
    assert digest_folder(folder) == content
    assert names(folder.parent) == ["model"]


def test_an_interruption_between_the_two_renames_leaves_the_old_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, replace = digest_folder(folder), os.replace

    def interrupted(source: Path, target: Path) -> None:
        if source.name == ".model.new":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), publish(folder) as scratch:
        (scratch / "a.txt").write_text("new")
    assert digest_folder(folder) == content
    assert names(folder.parent) == ["model"]


def test_a_new_one_replaces_the_old_one_wholly(folder: Path) -> None:
    with publish(folder) as scratch:
        (scratch / "new.txt").write_text("new")
    assert names(folder) == ["new.txt"]
    assert names(folder.parent) == ["model"]


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    for leftover in (".model.new", ".model.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "stale.txt").write_text("stale")
    with publish(tmp_path / "model") as scratch:
        assert names(scratch) == []
        (scratch / MANIFEST).write_text(json.dumps({}))
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == [MANIFEST]


def test_a_folder_of_which_only_the_old_one_is_left_comes_back(folder: Path) -> None:
    """Killed between the two renames; and then what should replace it fails."""
    folder.rename(folder.with_name(".model.old"))
    with pytest.raises(OSError, match="no space"), publish(folder):
        raise OSError("no space")
    assert names(folder.parent) == ["model"]
    assert (folder / "a.txt").read_text() == "one"


def test_a_published_file_is_there_as_a_whole_or_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "table.parquet"
    with publish_file(file) as scratch:
        scratch.write_text("1")
        assert scratch.parent == file.parent, "a rename must not cross file systems"
        assert not file.exists()
    with pytest.raises(KeyboardInterrupt), publish_file(file) as scratch:
        scratch.write_text("half")
        assert file.read_text() == "1"
        raise KeyboardInterrupt
    assert file.read_text() == "1"
    assert names(tmp_path) == ["table.parquet"]
    with publish_file(file) as scratch:
        scratch.write_text("2")
    assert file.read_text() == "2"
    assert names(tmp_path) == ["table.parquet"]


def test_json_comes_back_as_written(tmp_path: Path) -> None:
    file = tmp_path / MANIFEST
    content = {"digest": "é", "seconds": 0.1 + 0.2, "faults": {}, "seed": None}
    write_json(file, content)
    assert read_json(file) == content
    with pytest.raises(TypeError):
        write_json(file, {"path": tmp_path})
    assert read_json(file) == content, "what does not write leaves what was there"
    assert names(tmp_path) == [MANIFEST]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"null", b"\xff\xfe\x00"])
def test_a_file_without_an_object_reads_as_none(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / MANIFEST
    assert read_json(file) is None
    assert read_json(file / "below") is None
    file.write_bytes(content)
    assert read_json(file) is None
    assert read_json(file / "below") is None  # a file where a folder should be
