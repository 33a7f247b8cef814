"""A journal gives back what it was given, whatever happened to its process and its disk."""

import io
import json
import math
import random
import struct
from pathlib import Path
from typing import Any

import pytest

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.tracking.journal import Checkpoint, Dataset, DatasetRef, Journal, Metrics, Tag

SPLIT = DatasetRef("counting_validation", digest="ab" * 32, source="data/val", examples=200)
CHECKPOINT = Checkpoint(checkpoint=30, path="file:///c/update-30", digest="beef")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cell" / "journal.jsonl"


def fill(journal: Journal) -> None:
    journal.add(Dataset(dataset=SPLIT, context="validation"))
    journal.add(Tag(key="note", value="π\nof two lines"))
    journal.metrics(1, 1000, {"loss": 0.5, "kl": math.nan})
    journal.add(CHECKPOINT)
    journal.metrics(30, 2000, {"val/counting": 0.25}, checkpoint=30, dataset=SPLIT)


def test_a_journal_opened_again_has_the_same_entries_in_order(file: Path) -> None:
    journal = Journal(file)
    fill(journal)
    journal.mark_delivered("run", 4, {30: "m-1"})
    again = Journal(file)
    assert [e.model_dump_json() for e in again.entries] == [
        e.model_dump_json() for e in journal.entries
    ]
    assert [entry.kind for entry in again.entries] == [
        "dataset",
        "tag",
        "metrics",
        "checkpoint",
        "metrics",
    ]
    score = again.entries[4]
    assert isinstance(score, Metrics)
    assert (score.time_ms, score.checkpoint, score.dataset) == (2000, 30, SPLIT)
    assert (again.delivered("run"), again.delivered("another")) == (4, 0)
    assert again.model_id("run", 30) == "m-1"


def test_every_float_survives_and_the_file_is_strict_json(file: Path) -> None:
    rng = random.Random(0)
    values = [struct.unpack("d", rng.randbytes(8))[0] for _ in range(500)]
    values += [math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1, 1e22]
    Journal(file).metrics(0, 0, {f"m{index}": value for index, value in enumerate(values)})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in file.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    read = list(Journal(file).history()["value"])
    exact = [struct.pack("d", math.nan if math.isnan(v) else v) for v in values]
    assert [struct.pack("d", math.nan if math.isnan(v) else v) for v in read] == exact


def test_every_record_is_in_the_file_at_once(file: Path) -> None:
    journal = Journal(file)
    for step in range(3):
        journal.metrics(step, 0, {"loss": 1.0})
        assert len(Journal(file).entries) == step + 1


def test_what_a_training_repeats_after_a_crash_is_recorded_once(file: Path) -> None:
    first = Journal(file)
    first.metrics(1, 1000, {"loss": 0.5})
    first.metrics(2, 2000, {"loss": 0.4})
    first.add(CHECKPOINT)
    again = Journal(file)
    again.metrics(2, 9000, {"loss": 0.44, "late": 1.0})
    again.metrics(3, 9500, {"loss": 0.3})
    again.add(CHECKPOINT)
    rows = [(1, "loss", 0.5), (2, "loss", 0.4), (2, "late", 1.0), (3, "loss", 0.3)]
    for journal in (again, Journal(file)):
        assert list(journal.history().itertuples(index=False, name=None)) == rows
        assert sum(isinstance(entry, Checkpoint) for entry in journal.entries) == 1
    size = file.stat().st_size
    again.metrics(3, 9900, {"loss": 0.3})
    assert file.stat().st_size == size


def test_a_tag_that_changes_back_is_recorded(file: Path) -> None:
    journal = Journal(file)
    for value in ("a", "b", "b", "a"):
        journal.add(Tag(key="state", value=value))
    assert [entry.value for entry in journal.entries if isinstance(entry, Tag)] == ["a", "b", "a"]


def test_an_empty_history_has_its_columns(file: Path) -> None:
    assert list(Journal(file).history().columns) == ["step", "metric", "value"]
    assert not file.exists()


def test_a_checkpoint_is_recorded_before_its_scores(file: Path) -> None:
    journal = Journal(file)
    journal.metrics(0, 0, {"val/counting": 0.1}, checkpoint=0)  # the base model
    with pytest.raises(ValueError, match="checkpoint 30"):
        journal.metrics(30, 0, {"val/counting": 0.1}, checkpoint=30)


def test_a_torn_last_line_is_cut_off_wherever_it_is_torn(file: Path) -> None:
    fill(Journal(file))
    content = file.read_bytes()
    start = content.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(start, len(content)):  # the last cut lacks the line's end only
        file.write_bytes(content[:end])
        journal = Journal(file)
        assert len(journal.entries) == 4
        assert file.read_bytes() == content[:start]
        journal.metrics(30, 2000, {"val/counting": 0.25}, checkpoint=30, dataset=SPLIT)
        assert file.read_bytes() == content


@pytest.mark.parametrize(
    "line", ["{", "", "[1]", '{"kind": "metrics"}', '{"kind": "note"}', '{"a": 1}', "\x00\x00"]
)
def test_a_foreign_line_elsewhere_is_named(file: Path, line: str) -> None:
    fill(Journal(file))
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(ConfigurationError, match=r"journal\.jsonl, line 3: ") as caught:
        Journal(file)
    assert "delete" in str(caught.value)


def test_a_full_disk_leaves_no_half_line(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(file)
    journal.metrics(1, 0, {"loss": 0.5})
    before = file.read_bytes()
    write = io.FileIO.write

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            return write(self, bytes(data)[:10])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, buffering: Full(path, mode))
        with pytest.raises(OSError, match="disk"):
            journal.metrics(2, 0, {"loss": 0.4})
    assert file.read_bytes() == before
    journal.metrics(2, 0, {"loss": 0.4})
    assert [entry.step for entry in Journal(file).entries if isinstance(entry, Metrics)] == [1, 2]


def test_a_mark_deleted_by_hand_is_made_again(file: Path) -> None:
    journal = Journal(file)
    fill(journal)
    journal.mark_delivered("run", 4, {30: "m-1"})
    journal.mark_delivered("run", 5, {})
    assert Journal(file).delivered("run") == 5
    file.write_text("".join(line for line in file.open() if "m-1" not in line))
    assert Journal(file).delivered("run") == 3
