"""The node that publishes a task's examples: rejects, reuse, failures in the middle."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from othink_pipeline.examples import draw_examples, read_examples, update_digest
from othink_pipeline.parameters import DataPreparation, Folders, SplitSizes
from othink_pipeline.pipelines.data_preparation import nodes
from othink_pipeline.pipelines.data_preparation.nodes import prepare_examples, prepare_splits
from othink_pipeline.reuse import digest_folder, read_manifest
from othink_pipeline.validation import ConfigurationError

FOLDERS = Folders(examples="data/03_primary", checkpoints="data/06_models")
FOLDER = Path(FOLDERS.examples) / "counting"


def settings(**changes: Any) -> DataPreparation:
    sizes = SplitSizes(base=6, train=5, validation=3, test=4)
    return DataPreparation(
        **{"seed": 0, "splits": sizes, "prompt": "{question} Think.", "max_rejected": 0, **changes}
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

    monkeypatch.setattr(nodes, "draw_examples", refuse)


def spoil(monkeypatch: pytest.MonkeyPatch, **faults: dict[str, Any]) -> None:
    """Let the source hand out some bad examples: id with ``_`` for ``-`` -> its wrong fields."""

    def draw(*arguments: Any) -> Iterator[dict[str, Any]]:
        for example in draw_examples(*arguments):
            yield {**example, **faults.get(example["id"].replace("-", "_"), {})}

    monkeypatch.setattr(nodes, "draw_examples", draw)


def files() -> dict[str, tuple[int, int]]:
    """Every file below the data folder, with its inode and time of change."""
    return {
        str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in Path("data").rglob("*")
        if path.is_file()
    }


def test_a_task_is_published_whole() -> None:
    manifest = prepare(settings())
    assert manifest == read_manifest(FOLDER, "")
    assert (manifest["task"], manifest["seed"]) == ("counting", 0)
    assert (manifest["prompt"], manifest["rejected"]) == ("{question} Think.", 0)
    sizes = {split: part["examples"] for split, part in manifest["splits"].items()}
    assert sizes == {"train": 5, "validation": 3, "test": 4}
    for split, part in manifest["splits"].items():
        assert part["path"] == str(FOLDER / f"{split}.parquet")
        table = read_examples(part["path"])
        assert len(table) == part["examples"]
        assert set(table["split"]) == {split}
        assert isinstance(table[0]["image"], Image.Image)
    assert pd.read_csv("data/03_primary/counting_rejected.csv").empty


def test_the_manifest_is_plain_json_with_relative_paths(project: Path) -> None:
    manifest = prepare(settings())
    assert json.loads(json.dumps(manifest)) == manifest
    assert str(project) not in json.dumps(manifest)


def test_digests_are_those_of_fields_and_pixels() -> None:
    manifest = prepare(settings())
    digests = {split: hashlib.sha256() for split in manifest["splits"]}
    for example in draw_examples("counting", {"train": 5, "validation": 3, "test": 4}, 0):
        update_digest(digests[example["split"]], example)
    assert {split: part["digest"] for split, part in manifest["splits"].items()} == {
        split: digest.hexdigest() for split, digest in digests.items()
    }


def test_cells_never_get_the_base_split() -> None:
    manifest = prepare(settings())
    assert "base" not in manifest["splits"]
    base = prepare_splits(settings(), "counting", ("base",), Path("data/03_primary/counting_base"))
    assert base["splits"]["base"]["examples"] == 6
    keys = {
        split: set(read_examples(part["path"])["key"])
        for split, part in {**manifest["splits"], **base["splits"]}.items()
    }
    assert sum(map(len, keys.values())) == len(set.union(*keys.values()))


def test_an_environment_with_a_folder_of_its_own_leaves_the_others_alone() -> None:
    first = prepare(settings())
    before = files()
    elsewhere = Folders(examples="data/smoke/03_primary", checkpoints="data/smoke/06_models")
    second = prepare_examples(settings(seed=1), elsewhere, task="counting")
    assert second == read_manifest(Path("data/smoke/03_primary/counting"), "")
    assert second["splits"]["test"]["path"] == "data/smoke/03_primary/counting/test.parquet"
    assert read_manifest(FOLDER, "") == first
    assert before.items() <= files().items()


@pytest.mark.usefixtures("no_drawing")
def test_nothing_changed_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as undone:
        undone.setattr(nodes, "draw_examples", draw_examples)
        first = prepare(settings())
    before = files()
    assert prepare(settings()) == first
    assert files() == before


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"prompt": "Look: {question}"},
        {"splits": SplitSizes(base=6, train=6, validation=3, test=4)},
    ],
)
def test_a_changed_parameter_makes_the_examples_anew(changes: dict[str, Any]) -> None:
    first = prepare(settings())
    second = prepare(settings(**changes))
    assert second["key"] != first["key"]
    assert second == read_manifest(FOLDER, "")
    same_data = [first["splits"][s]["digest"] == second["splits"][s]["digest"] for s in ("train",)]
    assert same_data == ["prompt" in changes]


def test_what_other_stages_need_does_not_matter() -> None:
    first = prepare(settings())
    sizes = SplitSizes(base=60, train=5, validation=3, test=4)
    assert prepare(settings(splits=sizes, max_rejected=9)) == first


def test_changed_code_makes_the_examples_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(settings())
    monkeypatch.setattr(nodes.inspect, "getsource", lambda module: f"new {module.__name__}")
    assert prepare(settings())["key"] != first["key"]


def damage_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [
        lambda: damage_byte(FOLDER / "test.parquet"),
        lambda: (FOLDER / "train.parquet").unlink(),
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
    assert {**second, "digest": ""} == {**first, "digest": ""}
    assert second["digest"] == digest_folder(FOLDER)
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
    assert [path.name for path in FOLDER.parent.iterdir()] == [file.name]


def test_rejects_within_the_limit_are_counted_and_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(monkeypatch, counting_train_000001={"question": ""}, counting_train_000003={"id": 7})
    with caplog.at_level("INFO"):
        manifest = prepare(settings(max_rejected=2))
    assert manifest["rejected"] == 2
    assert manifest["splits"]["train"]["examples"] == 3
    ids = list(read_examples(FOLDER / "train.parquet")["id"])
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
    assert read_manifest(FOLDER, "") == first


@pytest.mark.parametrize("failing", ["write_examples", "write_manifest"])
def test_a_failure_in_the_middle_leaves_nothing_that_looks_finished(
    failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(nodes, failing)
    calls = []

    def fail_late(*arguments: Any) -> Any:
        calls.append(arguments)
        if failing == "write_manifest" or len(calls) == 2:
            raise OSError("No space left on device")
        return real(*arguments)

    with monkeypatch.context() as broken:
        broken.setattr(nodes, failing, fail_late)
        with pytest.raises(OSError, match="No space left"):
            prepare(settings())
    assert not FOLDER.exists()
    assert [path.name for path in FOLDER.parent.iterdir()] == ["counting_rejected.csv"]
    assert prepare(settings()) == read_manifest(FOLDER, "")


def test_what_a_killed_process_left_is_not_taken_for_finished() -> None:
    """Killed between two files: the scratch folder stands there with some of them."""
    scratch = FOLDER.with_name(".counting.new")
    scratch.mkdir(parents=True)
    (scratch / "train.parquet").write_bytes(b"half")
    manifest = prepare(settings())
    assert manifest["digest"] == digest_folder(FOLDER)
    assert not scratch.exists()
