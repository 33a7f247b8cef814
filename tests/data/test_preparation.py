"""The node that publishes a task's examples: rejects, reuse, failures in the middle."""

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from othink_pipeline.cells.parameters import Folders
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.code import PACKAGE, code_digest
from othink_pipeline.core.files import digest_folder
from othink_pipeline.data import examples as examples_module
from othink_pipeline.data import preparation
from othink_pipeline.data.examples import draw_examples, read_examples
from othink_pipeline.data.manifests import Examples
from othink_pipeline.data.parameters import DataPreparation, SplitSizes
from othink_pipeline.data.preparation import CELL_SPLITS, examples_key, prepare_splits
from othink_pipeline.pipelines.data_preparation.nodes import prepare_examples

FOLDERS = Folders(
    examples="data/03_primary",
    checkpoints="data/06_models",
    predictions="data/07_model_output",
)
FOLDER = Path(FOLDERS.examples) / "counting"


def settings(**changes: Any) -> DataPreparation:
    sizes = SplitSizes(base=6, train=5, validation=3, test=4)
    return DataPreparation(
        **{
            "seed": 0,
            "splits": sizes,
            "prompt": "{question} Think.",
            "max_rejected": 0,
            "train_examples": {},
            "sources": {},
            **changes,
        }
    )


def prepare(data_preparation: DataPreparation) -> dict[str, Any]:
    return prepare_examples(data_preparation, FOLDERS, task="counting")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Iterator[dict[str, Any]]:
        raise AssertionError("drawn again")

    monkeypatch.setattr(preparation, "draw_examples", refuse)


def spoil(monkeypatch: pytest.MonkeyPatch, **faults: dict[str, Any]) -> None:
    """Let the source hand out some bad examples: id with ``_`` for ``-`` -> its wrong fields."""

    def draw(*arguments: Any) -> Iterator[dict[str, Any]]:
        for example in draw_examples(*arguments):
            yield {**example, **faults.get(example["id"].replace("-", "_"), {})}

    monkeypatch.setattr(preparation, "draw_examples", draw)


WRITER = pa.ipc.RecordBatchStreamWriter
LOCK = f".{FOLDER.name}.lock"


def files() -> dict[str, tuple[int, int]]:
    """Every file below the data folder but locks, with its inode and time of change."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in Path("data").rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_a_task_is_published_whole() -> None:
    manifest = prepare(settings())
    assert manifest == Examples.read_folder(FOLDER, "")
    assert (manifest.task, manifest.seed) == ("counting", 0)
    assert manifest.rejected == 0
    assert {part.prompt for part in manifest.splits.values()} == {"{question} Think."}
    sizes = {split: part.examples for split, part in manifest.splits.items()}
    assert sizes == {"train": 5, "validation": 3, "test": 4}
    for split, part in manifest.splits.items():
        assert part.path == str(FOLDER / f"{split}.arrow")
        table = read_examples(part.path)
        assert len(table) == part.examples
        assert set(table["split"]) == {split}
        assert isinstance(table[0]["image"], Image.Image)
    assert pd.read_csv("data/03_primary/counting_rejected.csv").empty


def test_the_manifest_is_plain_json_with_relative_paths(project: Path) -> None:
    manifest = prepare(settings())
    assert str(project) not in json.dumps(manifest.to_json())


def test_digests_are_those_of_the_fields_and_pixels_in_the_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Worked out from the files alone, which are written in several batches."""
    monkeypatch.setattr(examples_module, "BATCH_EXAMPLES", 2)
    manifest = prepare(settings())
    fields = ("id", "task", "split", "key", "form", "question", "answer", "steps")
    for part in manifest.splits.values():
        content = b""
        for row in pa.ipc.open_stream(Path(part.path).read_bytes()).read_all().to_pylist():
            picture = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB").tobytes()
            for item in (*(row[name].encode() for name in fields), picture):
                content += len(item).to_bytes(8, "big") + item
        assert part.digest == hashlib.sha256(content).hexdigest()


def test_digests_stay_what_they_were() -> None:
    """Pinned: results of earlier versions stand for these examples."""
    splits = prepare(settings()).splits
    assert {split: part.digest[:16] for split, part in splits.items()} == {
        "train": "4e3e249b3d0b8713",
        "validation": "75e6d78adf1fcd15",
        "test": "b537978669341fe8",
    }


def test_examples_go_to_their_files_as_they_are_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Never more in memory than the batches of three splits and the example in hand."""
    monkeypatch.setattr(examples_module, "BATCH_EXAMPLES", 4)
    drawn, alive, written, write_batch = 0, 0, 0, WRITER.write_batch

    class Picture(bytes):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def draw(*arguments: Any) -> Iterator[dict[str, Any]]:
        nonlocal drawn, alive
        for example in draw_examples(*arguments):
            drawn, alive = drawn + 1, alive + 1
            yield {**example, "image": Picture(example["image"])}
            assert alive <= 3 * 3 + 1
            assert drawn - written <= 3 * 3

    def count_rows(file: Any, batch: Any) -> None:
        nonlocal written, batches
        write_batch(file, batch)
        written, batches = written + batch.num_rows, batches + 1

    monkeypatch.setattr(preparation, "draw_examples", draw)
    monkeypatch.setattr(WRITER, "write_batch", count_rows)
    batches = 0
    prepare(settings(splits=SplitSizes(base=1, train=30, validation=10, test=20)))
    assert (drawn, alive, written) == (60, 0, 60)
    assert batches == 8 + 3 + 5


def test_a_long_run_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preparation, "PROGRESS_EXAMPLES", 5)
    with caplog.at_level("INFO"):
        prepare(settings())
    assert [line for line in caplog.messages if line.endswith("made")] == [
        "counting: 5 of 12 examples made",
        "counting: 10 of 12 examples made",
    ]


def test_cells_never_get_the_base_split() -> None:
    manifest = prepare(settings())
    assert "base" not in manifest.splits
    base = prepare_splits(settings(), "counting", ("base",), Path("data/03_primary/counting_base"))
    assert base.splits["base"].examples == 6
    keys = {
        split: set(read_examples(part.path)["key"])
        for split, part in {**manifest.splits, **base.splits}.items()
    }
    assert sum(map(len, keys.values())) == len(set.union(*keys.values()))


def test_an_environment_with_a_folder_of_its_own_leaves_the_others_alone() -> None:
    first = prepare(settings())
    before = files()
    elsewhere = FOLDERS.model_copy(update={"examples": "data/smoke/03_primary"})
    second = prepare_examples(settings(seed=1), elsewhere, task="counting")
    assert second == Examples.read_folder(Path("data/smoke/03_primary/counting"), "")
    assert second.splits["test"].path == "data/smoke/03_primary/counting/test.arrow"
    assert Examples.read_folder(FOLDER, "") == first
    assert before.items() <= files().items()


@pytest.mark.usefixtures("no_drawing")
def test_nothing_changed_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as undone:
        undone.setattr(preparation, "draw_examples", draw_examples)
        first = prepare(settings())
    before = files()
    assert prepare(settings()) == first
    assert files() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"splits": SplitSizes(base=6, train=6, validation=3, test=4)},
    ],
)
def test_a_changed_parameter_makes_the_examples_anew(changes: dict[str, Any]) -> None:
    first = prepare(settings())
    second = prepare(settings(**changes))
    assert second.key != first.key
    assert second == Examples.read_folder(FOLDER, "")
    assert second.splits["train"].digest != first.splits["train"].digest


def test_another_prompt_costs_no_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(settings())
    monkeypatch.setattr(preparation, "draw_examples", lambda *_: pytest.fail("drawn again"))
    second = prepare(settings(prompt="Look: {question}"))
    assert second == Examples.read_folder(FOLDER, "")
    assert second.key == examples_key(settings(prompt="Look: {question}"), "counting", CELL_SPLITS)
    assert {split.prompt for split in second.splits.values()} == {"Look: {question}"}
    assert second.model_copy(update={"key": first.key, "splits": first.splits}) == first
    assert prepare(settings()) == first


def test_what_other_stages_need_does_not_matter() -> None:
    first = prepare(settings())
    sizes = SplitSizes(base=60, train=5, validation=3, test=4)
    assert prepare(settings(splits=sizes, max_rejected=9)) == first


@pytest.mark.parametrize(
    ("file", "anew"),
    [
        ("data/tasks/counting.py", True),
        ("data/examples.py", True),
        ("data/tasks/geometry.py", False),
        ("training/loop.py", False),
        ("data/source_splits.py", False),
    ],
)
def test_changed_code_makes_the_examples_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, anew: bool
) -> None:
    """That of the task and of drawing, and no other."""
    first = prepare(settings())
    package = tmp_path / "src" / "othink_pipeline"
    shutil.copytree(PACKAGE, package)
    with (package / file).open("a") as code:
        code.write("\nNEW = 1\n")
    monkeypatch.setattr(preparation, "code_digest", partial(code_digest, package=package))
    assert (prepare(settings()).key != first.key) == anew


def damage_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        lambda: damage_byte(FOLDER / "test.arrow"),
        lambda: (FOLDER / "train.arrow").unlink(),
        lambda: (FOLDER / "manifest.json").write_text("{"),
        lambda: (FOLDER / "manifest.json").unlink(),
    ],
    ids=["byte", "split", "broken manifest", "no manifest"],
)
def test_what_is_damaged_is_made_anew(
    damage: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    first = prepare(settings())
    damage()
    second = prepare(settings())
    assert second.model_copy(update={"digest": first.digest}) == first
    assert second.digest == digest_folder(FOLDER)
    assert str(FOLDER) in caplog.text
    assert "It is made anew." in caplog.text


def test_one_reject_too_many_stops_with_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(
        monkeypatch,
        counting_train_000001={"answer": "many"},
        counting_test_000000={"image": b"no picture"},
    )
    with pytest.raises(ConfigurationError) as error:
        prepare(settings(max_rejected=1))
    message = error.value.message
    assert message.startswith("counting: 2 examples rejected, the first: ")
    assert "data_preparation.max_rejected (now 1)" in message
    file = Path("data/03_primary/counting_rejected.csv")
    assert str(file) in message
    rejected = pd.read_csv(file).set_index("id")["reason"]
    assert set(rejected.index) == {"counting-train-000001", "counting-test-000000"}
    assert rejected["counting-train-000001"] == "the answer 'many' does not parse"
    assert rejected["counting-test-000000"].startswith("the image does not decode: ")
    assert not FOLDER.exists()
    assert sorted(path.name for path in FOLDER.parent.iterdir()) == [LOCK, file.name]


def test_rejects_within_the_limit_are_counted_and_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, counting_train_000001={"question": ""}, counting_train_000003={"id": 7})
    with caplog.at_level("INFO"):
        manifest = prepare(settings(max_rejected=2))
    assert manifest.rejected == 2
    assert prepare(settings(max_rejected=2)) == manifest
    with pytest.raises(ConfigurationError, match=r"2 examples were rejected.*\(now 1\)"):
        prepare(settings(max_rejected=1))  # they are there, and no longer wanted
    assert manifest.splits["train"].examples == 3
    ids = list(read_examples(FOLDER / "train.arrow")["id"])
    assert ids == [f"counting-train-00000{number}" for number in (0, 2, 4)]
    rejected = pd.read_csv("data/03_primary/counting_rejected.csv", dtype=str)
    assert list(rejected["id"]) == ["counting-train-000001", "7"]
    assert "counting: 10 examples, 2 rejected" in caplog.text


def test_rejects_do_not_touch_what_an_earlier_run_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = prepare(settings())
    spoil(monkeypatch, counting_train_000000={"answer": ""})
    with pytest.raises(ConfigurationError):
        prepare(settings(seed=1))
    assert Examples.read_folder(FOLDER, "") == first


def fail_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(*arguments: Any) -> Iterator[dict[str, Any]]:
        for number, example in enumerate(draw_examples(*arguments)):
            if number == 9:
                raise OSError("No space left on device")
            yield example

    monkeypatch.setattr(preparation, "draw_examples", draw)


def fail_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    write_batch, calls = WRITER.write_batch, []

    def write(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise OSError("No space left on device")
        write_batch(*arguments)

    monkeypatch.setattr(WRITER, "write_batch", write)


def fail_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Examples, "write_folder", write)


@pytest.mark.parametrize(
    ("fail", "left"),
    [(fail_drawing, []), (fail_writing, []), (fail_at_the_end, ["counting_rejected.csv"])],
)
def test_a_failure_in_the_middle_leaves_nothing_that_looks_finished(
    fail: Callable[[pytest.MonkeyPatch], None], left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples_module, "BATCH_EXAMPLES", 2)
    with monkeypatch.context() as broken:
        fail(broken)
        with pytest.raises(OSError, match="No space left"):
            prepare(settings())
    assert not FOLDER.exists()
    assert sorted(path.name for path in FOLDER.parent.iterdir()) == [LOCK, *left]
    first = prepare(settings())
    assert first == Examples.read_folder(FOLDER, "")
    with monkeypatch.context() as broken:
        fail(broken)
        with pytest.raises(OSError, match="No space left"):
            prepare(settings(seed=1))
    assert Examples.read_folder(FOLDER, "") == first


def test_what_a_killed_process_left_is_not_taken_for_finished() -> None:
    """Killed between two files: the scratch folder stands there with some of them."""
    scratch = FOLDER.with_name(".counting.new")
    scratch.mkdir(parents=True)
    (scratch / "train.arrow").write_bytes(b"half")
    manifest = prepare(settings())
    assert manifest.digest == digest_folder(FOLDER)
    assert not scratch.exists()
