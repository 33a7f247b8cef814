"""Examples that are read from data sets: every kind of source, splits by picture, publishing."""

import hashlib
import io
import json
import os
import sys
import tracemalloc
from collections.abc import Mapping
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from othink_pipeline.cells.parameters import Folders
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.data import source_splits
from othink_pipeline.data.columns import SourceRow
from othink_pipeline.data.examples import (
    TEXT_FIELDS,
    find_fault,
    read_examples,
    read_pixels,
)
from othink_pipeline.data.fingerprints import fingerprint
from othink_pipeline.data.manifests import Examples
from othink_pipeline.data.parameters import DataPreparation, SplitSource, TaskSource
from othink_pipeline.data.preparation import CELL_SPLITS, examples_key, prepare_splits
from othink_pipeline.data.source_splits import Meaning, choose_rows
from othink_pipeline.data.sources import read_source
from othink_pipeline.pipelines.data_preparation.nodes import prepare_examples
from othink_pipeline.pipelines.preflight.nodes import _instead
from othink_pipeline.preflight import compatibility
from othink_pipeline.scoring.golds import answer_text, unwrap
from othink_pipeline.scoring.kinds import EXACT
from tests.support.examples import decode
from tests.support.public_schemas import (
    TEST_COLUMNS,
    TEST_PROMPT,
    TRAIN_COLUMNS,
    TRAIN_PROMPT,
    draw_items,
    make_source,
    make_test_file,
    make_train_set,
)

SIZES = {"base": 0, "train": 20, "validation": 6, "test": 9}
FOLDERS = Folders(examples="data/03", checkpoints="data/06", predictions="data/07")
TRAIN, TEST = 30, 12


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The block of each task, as it would stand in YAML."""
    folder = tmp_path_factory.mktemp("public")
    return {task: make_source(folder, task, TRAIN, TEST, 0) for task in ("counting", "geometry")}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path


def settings(sources: Mapping[str, Any], **changes: Any) -> DataPreparation:
    raw = {
        "seed": 0,
        "splits": SIZES,
        "prompt": "{question}!",
        "max_rejected": 0,
        "train_examples": {},
    }
    return DataPreparation.model_validate({**raw, "sources": sources, **changes})


def prepare(sources: Mapping[str, Any], task: str = "counting", **changes: Any) -> dict[str, Any]:
    return prepare_examples(settings(sources, **changes), FOLDERS, task=task)


def split_source(
    source: Mapping[str, Any], columns: Mapping[str, Any] = TRAIN_COLUMNS
) -> SplitSource:
    return SplitSource.model_validate({"source": source, "columns": columns, "prompt": None})


def rows_of(split: SplitSource) -> list[SourceRow]:
    return list(read_source(split, "here").read())


def lines_source(folder: Path, *rows: Any, columns: Mapping[str, Any] = TEST_COLUMNS) -> Any:
    """A source of JSON lines, with one picture ``a.png`` beside them."""
    (folder / "pictures").mkdir(exist_ok=True)
    (folder / "pictures" / "a.png").write_bytes(png())
    file = folder / "rows.jsonl"
    file.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return split_source(
        {"kind": "jsonl", "file": str(file), "images": str(folder / "pictures")}, columns
    )


def row(**changes: Any) -> dict[str, Any]:
    return {"image_path": "a.png", "question": "How many?", "ground_truth": 3, **changes}


def png(color: Any = (1, 2, 3), size: tuple[int, int] = (30, 20), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, "PNG")
    return buffer.getvalue()


def table_of(split: str, manifest: Examples) -> Any:
    return read_examples(manifest.splits[split].path)


# --- Reading


@pytest.mark.parametrize("task", ["counting", "geometry"])
@pytest.mark.parametrize("layout", ["saved", "parquet"])
def test_both_layouts_of_a_folder_are_read_alike(tmp_path: Path, task: str, layout: Any) -> None:
    folder = make_train_set(tmp_path, task, 21, 3, layout)
    found = rows_of(split_source({"kind": "folder", "path": str(folder), "split": "train"}))
    items = list(draw_items(task, 21, 3))
    assert [r.images for r in found] == [(item.png,) for item in items]
    assert [r.question for r in found] == [item.question for item in items]
    assert [r.answer for r in found] == [str(item.answer) for item in items]
    assert {r.steps for r in found} == {""}
    assert (found[0].place, found[20].place) == ("row 0", "row 20")


@pytest.mark.parametrize("task", ["counting", "geometry"])
def test_json_lines_are_read_with_their_pictures(tmp_path: Path, task: str) -> None:
    file, images = make_test_file(tmp_path, task, 5, 3)
    source = {"kind": "jsonl", "file": str(file), "images": str(images)}
    found = rows_of(split_source(source, TEST_COLUMNS))
    items = list(draw_items(task, 5, 3))
    assert [(r.question, r.answer, r.images) for r in found] == [
        (item.question, str(item.answer), (item.png,)) for item in items
    ]
    assert (found[0].place, found[4].place) == ("line 1", "line 5")


def test_a_single_saved_split_needs_no_name(tmp_path: Path) -> None:
    saved = make_train_set(tmp_path, "counting", 3, 0) / "train"
    source = {"kind": "folder", "path": str(saved), "split": "whatever"}
    assert len(rows_of(split_source(source))) == 3


def test_a_hub_is_asked_for_the_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset

    saved = make_train_set(tmp_path, "counting", 3, 0) / "train"

    def load(*asked: str | None) -> tuple[Dataset, Path]:
        assert asked == ("owner/name", "main", "train", None)
        return Dataset.load_from_disk(str(saved)), tmp_path / "c0ffee"

    monkeypatch.setitem(
        sys.modules, "othink_pipeline.core.hub", SimpleNamespace(load_hub_dataset=load)
    )
    source = {"kind": "hub", "id": "owner/name", "revision": "main", "split": "train"}
    found = read_source(split_source(source), "here")
    assert found.facts == {**source, "commit": "c0ffee"}
    assert [r.answer for r in found.read()] == [
        str(item.answer) for item in draw_items("counting", 3, 0)
    ]
    assert len(list(found.read())) == 3, "it is read twice"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (-3, "-3"),
        (3.0, "3"),
        (2.5, "2.5"),
        (" 140° ", "140°"),
        ("<answer> 3 </answer>", "3"),
        (" <answer>8√{3}</answer>\n", "8√{3}"),
        ("<answer>3</answer><answer>4</answer>", "<answer>3</answer><answer>4</answer>"),
        ("<answer><answer>3</answer>", "<answer><answer>3</answer>"),
        ("so <answer>3</answer>", "so <answer>3</answer>"),
        ("<answer>3", "<answer>3"),
        (float("nan"), None),  # a missing number, not the word
        ([1.0, np.nan], [1.0, np.nan]),
        (float("inf"), None),  # no more the word
        (Decimal("Infinity"), None),
        (1e-05, "0.00001"),
        (1e16, "10000000000000000"),
        (np.float32(2.55), "2.55"),  # as a float64 it is 2.549999952316284
        (np.float16(0.1), "0.1"),
        (np.float32(3), "3"),
        (Decimal("2.50"), "2.50"),
        (Decimal("1E+3"), "1000"),
        (True, '["yes", "true"]'),
        ([True, "maybe"], '["yes", "maybe"]'),  # an element is one text
        ([["a", "b"], ["c"]], [["a", "b"], ["c"]]),  # of which no answer could be one
        (None, None),
        ([3, "<answer> é </answer>"], '["3", "é"]'),
        ([], []),
        ([None], [None]),
    ],
)
def test_an_answer_becomes_text(value: Any, text: Any) -> None:
    assert answer_text(value) == text
    assert type(answer_text(value)) is type(text)


def test_worked_steps_lose_their_tag(tmp_path: Path) -> None:
    assert unwrap(" <think> 1+2=3 </think>\n", "think") == "1+2=3"
    columns = {**TEST_COLUMNS, "steps": "reasoning"}
    rows = [row(reasoning="<think>1+2=3</think>"), row(reasoning=None)]
    assert [r.steps for r in rows_of(lines_source(tmp_path, *rows, columns=columns))] == [
        *("1+2=3", None)
    ]


@pytest.mark.parametrize("column", ["image", "question", "answer", "steps"])
@pytest.mark.parametrize("kind", ["saved", "parquet", "jsonl"])
def test_a_moved_column_is_named_with_those_there_are(
    tmp_path: Path, kind: Any, column: str
) -> None:
    if kind == "jsonl":
        split = lines_source(tmp_path, row(), columns={**TEST_COLUMNS, column: "moved"})
        there = "ground_truth, image_path, question"
    else:
        folder = make_train_set(tmp_path, "counting", 2, 0, kind)
        source = {"kind": "folder", "path": str(folder), "split": "train"}
        split = split_source(source, {**TRAIN_COLUMNS, column: "moved"})
        there = "image, problem, solution"
    with pytest.raises(ConfigurationError) as error:
        rows_of(split)
    assert f"here.columns.{column} = 'moved': no such column in " in error.value.message
    assert f"There are: {there}." in error.value.message


def test_a_column_that_one_line_lacks_is_named_with_the_line(tmp_path: Path) -> None:
    short = row()
    del short["ground_truth"]
    with pytest.raises(ConfigurationError, match=r"rows\.jsonl, line 3\. There are: image_path"):
        rows_of(lines_source(tmp_path, row(), "", short))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"question": ', "line 2: no JSON"),
        ("[" * 100_000, "line 2: no JSON"),
        ("3", "line 2: int, not a JSON object"),
        ("[1]", "line 2: list, not a JSON object"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str, fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        rows_of(lines_source(tmp_path, row(), line))


@pytest.mark.parametrize("path", ["../secret.png", "x/../../secret.png", "..", "a.png\0", "/etc/x"])
def test_no_path_climbs_out_of_the_pictures(tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    (found,) = rows_of(lines_source(tmp_path, row(image_path=path)))
    assert found.fault == f"the picture {path!r} is not in the data set's folder"
    outside = tmp_path / "secret.png"
    (found,) = rows_of(lines_source(tmp_path, row(image_path=str(outside))))
    assert found.fault == f"the picture {str(outside)!r} is not in the data set's folder"


@pytest.mark.parametrize("path", ["a.png", "./a.png", "./x/../a.png", ".//a.png"])
def test_every_way_to_write_a_path_below_leads_there(tmp_path: Path, path: str) -> None:
    (found,) = rows_of(lines_source(tmp_path, row(image_path=path)))
    assert found.images == (png(),)


def test_a_picture_that_is_not_there_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    (tmp_path / "pictures").mkdir()
    os.rename(tmp_path / "pipe", tmp_path / "pictures" / "pipe")
    rows = [row(image_path=name) for name in ("b.png", ".", "pipe")] + [row(image_path=None)]
    found = [r.fault for r in rows_of(lines_source(tmp_path, *rows))]
    assert found[0] == f"the picture '{tmp_path}/pictures/b.png' is not there"
    assert found[1] == f"the picture '{tmp_path}/pictures' is not there"
    assert found[2] == f"the picture '{tmp_path}/pictures/pipe' is not there"
    assert found[3] == "no picture, but NoneType"


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ({"kind": "folder", "path": "nowhere", "split": "train"}, "here.source.path = 'nowhere'"),
        ({"kind": "jsonl", "file": "no.jsonl", "images": "."}, "here.source.file = 'no.jsonl'"),
        ({"kind": "jsonl", "file": "f", "images": "no"}, "here.source.images = 'no'"),
        ({"kind": "folder", "path": ".", "split": "train"}, "nor are there files train.parquet"),
        ({"kind": "folder", "path": "counting_train_saved", "split": "test"}, "There are: train"),
        ({"kind": "folder", "path": "bad", "split": "train"}, "download it again"),
        ({"kind": "folder", "path": "half", "split": "train"}, "download it again"),
    ],
)
def test_a_source_that_cannot_be_read_is_told(source: dict[str, Any], fault: str) -> None:
    Path("f").touch()
    saved = make_train_set(Path(), "counting", 2, 0)
    (saved / "train/data-00000-of-00001.arrow").rename("x.arrow")
    Path("bad").mkdir()
    Path("bad/train-0.parquet").write_bytes(b"PAR1 no parquet PAR1")
    Path("half").mkdir()
    Path("half/state.json").write_text("{")
    with pytest.raises(ConfigurationError) as error:
        rows_of(split_source(source))
    assert fault in error.value.message


# --- Columns by their types, nested, and with options


def typed_rows(folder: Path, layout: str, columns: Mapping[str, Any], **values: Any) -> list[Any]:
    """The rows of a table with columns of given types, after a round trip through a file."""
    from datasets import Dataset, Features

    features = Features({name: feature for name, (feature, _) in values.items()})
    table = Dataset.from_dict({name: given for name, (_, given) in values.items()}, features)
    if layout == "saved":
        table.save_to_disk(folder / "set")
    else:
        (folder / "set").mkdir(parents=True)
        table.to_parquet(folder / "set" / "train.parquet")
    source = {"kind": "folder", "path": str(folder / "set"), "split": "train"}
    return rows_of(split_source(source, {"steps": None, **columns}))


PICTURE = {"bytes": png(), "path": None}
NAMED = {"image": "image", "question": "question", "answer": "answer"}


@pytest.mark.parametrize("layout", ["saved", "parquet"])
def test_values_mean_what_their_columns_say(tmp_path: Path, layout: str) -> None:
    from datasets import ClassLabel, List, Value
    from datasets import Image as ImageFeature

    types = {
        "label": (ClassLabel(names=["A", "B", "C", "D"]), [3, 0], ["D", "A"]),
        "float32": (Value("float32"), [2.55, 3.0], ["2.55", "3"]),
        "float16": (Value("float16"), [0.1, 2.0], ["0.1", "2"]),
        "decimal": (Value("decimal128(5, 2)"), [Decimal("2.55"), None], ["2.55", None]),
        "texts": (List(Value("float32")), [[0.1], [2.55, 3.0]], ['["0.1"]', '["2.55", "3"]']),
        "unlabelled": (ClassLabel(names=["A"]), [-1, 0], [None, "A"]),
    }
    for name, (feature, given, expected) in types.items():
        found = typed_rows(
            tmp_path / name,
            layout,
            NAMED,
            image=(ImageFeature(), [PICTURE] * 2),
            question=(Value("string"), ["?"] * 2),
            answer=(feature, given),
        )
        assert [row.answer for row in found] == expected, name


@pytest.mark.parametrize("layout", ["saved", "parquet"])
def test_columns_may_be_nested_and_hold_several_pictures(tmp_path: Path, layout: str) -> None:
    from datasets import Image as ImageFeature
    from datasets import List, Value

    (row,) = typed_rows(
        tmp_path,
        layout,
        {"image": "images", "question": "prompt.0.content", "answer": "reward.ground_truth"},
        images=(List(ImageFeature()), [[PICTURE, {"bytes": png(2, mode="L"), "path": None}]]),
        prompt=(List({"content": Value("string")}), [[{"content": "How many?"}]]),
        reward=({"ground_truth": Value("float32")}, [{"ground_truth": 0.1}]),
    )
    assert (row.question, row.answer, row.fault) == ("How many?", "0.1", "")
    assert row.images == (png(), png(2, mode="L"))


@pytest.mark.parametrize(
    ("options", "answer", "expected", "fault"),
    [
        (["cat", "dog"], "B", "B. dog", ""),
        (["cat", "dog"], "(b)", "B. dog", ""),
        (["cat", "dog"], "cat", "A. cat", ""),
        (["cat", "dog"], 1, "B. dog", ""),  # a number is a place from 0
        ([10, 20, None, ""], 20, None, "the answer 20 is none of the options A to B"),
        ([10, 20, None, ""], "20", "B. 20", ""),
        (["B", "A"], "A", None, "the answer 'A' is options A and B"),
        (["cat", "dog"], "C", None, "the answer 'C' is none of the options A to B"),
        (
            ["cat", "dog"],
            "1",
            None,
            "the answer '1' is none of the options A to B; a place",
        ),
        (["cat", "dog"], 1.0, "B. dog", ""),  # as tables write it where one is missing
        ([2.5, 2.0, 7.0], 2.0, None, "the answer 2.0 is options C and B"),  # a place, or the value
        (["cat", "dog"], -1, None, "the answer -1 is none of the options"),
        (["cat"], "A", None, "1 options: 2 to 26 are asked"),
        ("cat, dog", "A", None, "the options are str, not a list"),
    ],
)
def test_options_in_a_column(
    tmp_path: Path, options: Any, answer: Any, expected: str | None, fault: str
) -> None:
    columns = {**TEST_COLUMNS, "options": "choices"}
    (found,) = rows_of(
        lines_source(tmp_path, row(choices=options, ground_truth=answer), columns=columns)
    )
    assert found.fault.startswith(fault) and bool(found.fault) is bool(fault)
    if expected:
        assert found.answer == expected
        assert found.question.startswith(f"How many?\nA. {options[0]}\nB. {options[1]}")
    if options == ["cat", "dog"] and expected:
        split = {**columns, "options": ["x", "y"]}
        line = row(x="cat", y="dog", ground_truth=answer)
        assert rows_of(lines_source(tmp_path, line, columns=split)) == [found]


def test_a_json_array_is_read_as_lines_are(tmp_path: Path) -> None:
    lines = rows_of(lines_source(tmp_path, row(), row(ground_truth=4)))
    array = lines_source(tmp_path, json.dumps([row(), row(ground_truth=4)], indent=1))
    found = rows_of(array)
    assert [r.place for r in found] == ["item 1", "item 2"]
    assert [r._replace(place="") for r in found] == [r._replace(place="") for r in lines]


# --- A part does not pass for the whole


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["train.parquet"], None),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], None),
        (["train-0.parquet", "train-1.parquet", "test-0.parquet"], None),
        (["train-1.parquet", "train-2.parquet"], None),
        (["train-00000-of-00001-0a1b2c.parquet"], None),
        (["train-00000-of-00003.parquet"], "2 of its parts are missing, the first is number 1"),
        (["train-00001-of-00002.parquet"], "1 of its parts are missing, the first is number 0"),
        (["train-0.parquet", "train-2.parquet"], "the first is number 1"),
        (["train-v2-00000-of-00001.parquet"], "train-v2-00000-of-00001.parquet may or may not"),
        (["train.parquet", "train-v2.parquet"], "train-v2.parquet may or may not belong"),
        (["train.parquet", "train-0.parquet"], "train-0.parquet may or may not belong"),
        (["train-00000-of-00001.parquet", "train-00000-of-00002.parquet"], "of several wholes"),
        (["trainer.parquet"], "nor are there files train.parquet"),
    ],
)
def test_a_split_is_all_of_its_parts_and_nothing_else(
    tmp_path: Path, names: list[str], fault: str | None
) -> None:
    whole = make_train_set(tmp_path, "counting", 2, 0, "parquet")
    part = (whole / "train-00000-of-00002.parquet").read_bytes()
    folder = tmp_path / "parts"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(part)
    source = split_source({"kind": "folder", "path": str(folder), "split": "train"})
    if fault is None:
        assert len(rows_of(source)) == len([name for name in names if name[:5] == "train"])
        return
    with pytest.raises(ConfigurationError) as error:
        rows_of(source)
    assert fault in error.value.message


# --- Splitting


def meanings(pictures: list[int]) -> dict[int, Meaning]:
    """Row -> what it means: pictures by number, every text another."""
    return {
        row: Meaning(bytes([picture]) * 32, row.to_bytes(8)) for row, picture in enumerate(pictures)
    }


def test_no_picture_stands_in_train_and_validation() -> None:
    rng = Random(0)
    for _ in range(50):
        pictures = [rng.randrange(12) for _ in range(40)]
        chosen = choose_rows(meanings(pictures), {"train": 20, "validation": 9}, rng.randrange(9))
        assert len(chosen["validation"]) == 9
        seen = {split: {pictures[row] for row in rows} for split, rows in chosen.items()}
        assert not seen["train"] & seen["validation"]
        assert len(set(chosen["train"])) == len(chosen["train"]) <= 20
        left = sum(picture not in seen["validation"] for picture in pictures)
        assert len(chosen["train"]) == min(20, left)


def test_the_order_of_the_rows_does_not_matter() -> None:
    rows = meanings([n // 2 for n in range(60)])
    places = list(rows)
    Random(1).shuffle(places)
    shuffled = {place: rows[old] for place, old in enumerate(places)}
    sizes = {"train": 20, "validation": 7}
    plain, other = choose_rows(rows, sizes, 3), choose_rows(shuffled, sizes, 3)
    assert [places[row] for row in other["validation"]] == plain["validation"]
    assert [places[row] for row in other["train"]] == plain["train"]


def test_the_choice_is_random_by_the_seed() -> None:
    rows, sizes = meanings(list(range(200))), {"train": 50, "validation": 50}
    first, second = choose_rows(rows, sizes, 0), choose_rows(rows, sizes, 1)
    assert first == choose_rows(rows, sizes, 0)
    for split in ("train", "validation"):
        assert 2 < len(set(first[split]) & set(second[split])) < 30  # 12.5 are expected
        assert 12 < sum(row < 100 for row in first[split]) < 38
    fewer = choose_rows(rows, {"train": 10, "validation": 50}, 0)
    assert fewer["train"] == first["train"][:10]


# --- Publishing


@pytest.mark.parametrize("task", ["counting", "geometry"])
def test_a_task_is_read_split_and_published(task: str, public: dict[str, Any]) -> None:
    manifest = prepare(public, task)
    folder = Path(FOLDERS.examples) / task
    assert manifest == Examples.read_folder(folder, "")
    assert sorted(path.name for path in folder.iterdir()) == [
        *("manifest.json", "test.arrow", "train.arrow", "validation.arrow")
    ]
    assert (manifest.rejected, manifest.overlapping, manifest.near_duplicates) == (0, 0, 0)
    assert manifest.sources["test"] == public[task]["test"]["source"]
    prompts = {split: part.prompt for split, part in manifest.splits.items()}
    assert prompts == {"train": TRAIN_PROMPT, "validation": TRAIN_PROMPT, "test": TEST_PROMPT}
    items = {
        "train": {item.png: item for item in draw_items(task, TRAIN, 0)},
        "test": {item.png: item for item in draw_items(task, TEST, 1)},
    }
    items["validation"] = items["train"]
    pictures: dict[str, list[bytes]] = {}
    for split in CELL_SPLITS:
        table = table_of(split, manifest)
        assert len(table) == manifest.splits[split].examples == SIZES[split]
        undecoded = table.data.column("image").to_pylist()
        pictures[split] = [image["bytes"] for image in undecoded]
        for number, example in enumerate(table):
            item = items[split][pictures[split][number]]
            assert example["id"] == f"{task}-{split}-{number:06d}"
            assert (example["task"], example["split"], example["form"]) == (task, split, "")
            assert (example["question"], example["answer"]) == (item.question, str(item.answer))
            assert example["key"] == sha256(decode(item.png).tobytes())
            assert find_fault({**example, "image": item.png}, EXACT) is None
    assert pictures["test"] == list(items["test"])[: SIZES["test"]], "the first rows, in order"
    everything = [key for keys in pictures.values() for key in keys]
    assert len(everything) == len(set(everything))
    order = list(items["train"])
    validation = [order.index(picture) for picture in pictures["validation"]]
    assert validation != sorted(validation), "the first of them are a random choice, too"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_both_layouts_make_the_same_examples(tmp_path: Path, public: dict[str, Any]) -> None:
    first = prepare(public)
    train = make_train_set(tmp_path, "counting", TRAIN, 0, "parquet")
    block = edited(public["counting"], "train", path=str(train))
    second = prepare({"counting": block})
    assert second.key != first.key
    digests = [[part.digest for part in m.splits.values()] for m in (first, second)]
    assert digests[0] == digests[1]
    other = prepare({"counting": block}, seed=1)
    assert other.splits["test"].digest == first.splits["test"].digest
    assert other.splits["train"].digest != first.splits["train"].digest
    assert other.splits["validation"].digest != first.splits["validation"].digest


def edited(block: dict[str, Any], split: str, **source: Any) -> dict[str, Any]:
    part = block[split]
    return {**block, split: {**part, "source": {**part["source"], **source}}}


def test_a_prompt_that_is_null_is_the_common_one(public: dict[str, Any]) -> None:
    block = {**public["counting"], "test": {**public["counting"]["test"], "prompt": None}}
    manifest = prepare({"counting": block})
    assert manifest.splits["test"].prompt == "{question}!"
    assert manifest.splits["train"].prompt == TRAIN_PROMPT


def test_train_and_test_are_at_most_as_many_as_asked_for(public: dict[str, Any]) -> None:
    splits = {"base": 0, "train": 500, "validation": 6, "test": 500}
    manifest = prepare(public, splits=splits)
    found = {split: part.examples for split, part in manifest.splits.items()}
    assert found == {"train": TRAIN - 6, "validation": 6, "test": TEST}


def test_too_few_examples_are_told(public: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as error:
        prepare(public, splits={**SIZES, "validation": TRAIN})
    assert "sources.counting.train: 30 examples that can be used (0 rejected" in error.value.message
    assert "data_preparation.splits.validation = 30" in error.value.message
    assert not (Path(FOLDERS.examples) / "counting").exists()


def test_pictures_of_the_test_split_are_not_trained_on(
    tmp_path: Path, public: dict[str, Any]
) -> None:
    """Another encoding of the same pixels is the same picture."""
    file, images = make_test_file(tmp_path, "counting", TEST, 0)  # drawn as the training set is
    for path in images.rglob("*.png"):
        Image.open(path).save(path, "PNG", compress_level=1)
    source = {"file": str(file), "images": str(images)}
    splits = {**SIZES, "train": 500, "test": 5}
    manifest = prepare({"counting": edited(public["counting"], "test", **source)}, splits=splits)
    assert (manifest.rejected, manifest.overlapping) == (0, 5)
    assert manifest.splits["train"].examples == TRAIN - 5 - 6
    keys = {split: set(table_of(split, manifest)["key"]) for split in CELL_SPLITS}
    assert not keys["test"] & (keys["train"] | keys["validation"])
    listed = pd.read_csv("data/03/counting_rejected.csv")
    assert list(listed["id"]) == [f"counting train source, row {number}" for number in range(5)]
    assert set(listed["reason"]) == {"its picture is in the test split"}


def test_what_is_nearly_in_the_test_split_is_named_and_kept(
    tmp_path: Path, public: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The training pictures again, each with one pixel changed: pixels alone tell them apart."""
    file, images = make_test_file(tmp_path, "counting", TEST, 0)
    for path in images.rglob("*.png"):
        image = Image.open(path).convert("RGB")
        image.putpixel((0, 0), (1, 2, 3))
        image.save(path, "PNG")
    source = {"file": str(file), "images": str(images)}
    splits = {**SIZES, "train": 500, "test": 5}
    near = prepare({"counting": edited(public["counting"], "test", **source)}, splits=splits)
    assert (near.overlapping, near.near_duplicates) == (0, 5)
    assert near.splits["train"].examples == TRAIN - 6
    listed = pd.read_csv("data/03/counting_near_duplicates.csv")
    assert set(listed["like"]) == {f"counting-test-00000{number}" for number in range(5)}
    assert "counting: 5 of 5 test examples show almost the same picture" in caplog.text


def test_rows_that_cannot_be_used_are_listed_with_their_reasons(
    tmp_path: Path, public: dict[str, Any]
) -> None:
    bad = [
        (row(ground_truth="many"), "the answer 'many' does not parse"),
        (row(ground_truth=None), "field 'answer' is NoneType, not text"),
        (row(ground_truth=float("nan")), "field 'answer' is NoneType, not text"),
        (row(ground_truth=True), 'the answer \'["yes", "true"]\' does not parse'),
        (row(question=" "), "the question is empty"),
        (row(question=7), "field 'question' is int, not text"),
        (row(image_path="b.png"), f"the picture '{tmp_path}/pictures/b.png' is not there"),
        (row(image_path="broken.png"), "the image does not decode: "),
        (row(image_path="long.png"), "the image is 1 x 300: more than 200 times as long"),
    ]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "broken.png").write_bytes(png()[:40])
    (tmp_path / "pictures" / "long.png").write_bytes(png(size=(1, 300)))
    split = lines_source(tmp_path, row(), *(line for line, _ in bad), row(question="And now?"))
    source = TaskSource.model_validate({**public["counting"], "train": split.model_dump()})
    survey = source_splits.survey_sources("counting", source, 10, EXACT)
    assert len(survey.train) == 2
    places = [listed["id"] for listed in survey.rejected]
    assert places == [f"counting train source, line {n}" for n in range(2, 11)]
    for found, (_, reason) in zip(survey.rejected, bad, strict=True):
        assert found["reason"].startswith(reason)
    block = {**public["counting"], "train": split.model_dump()}
    with pytest.raises(ConfigurationError, match="the first: counting train source, line 2: the a"):
        prepare({"counting": block}, max_rejected=8)
    listed = pd.read_csv("data/03/counting_rejected.csv")
    assert list(listed["id"]) == places


def test_a_test_set_is_taken_as_it_is_or_not_at_all(tmp_path: Path, public: dict[str, Any]) -> None:
    split = lines_source(tmp_path, row(), row(ground_truth="many"))
    block = {**public["counting"], "test": split.model_dump()}
    message = r"sources\.counting\.test: 1 examples cannot be used.* line 2: the answer 'many'"
    with pytest.raises(ConfigurationError, match=message):
        prepare({"counting": block}, max_rejected=100)


def test_what_is_drawn_on_nothing_is_told_apart() -> None:
    """As models see it: what is transparent is white."""

    def pixels(box: tuple[int, int, int, int]) -> bytes:
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        image.paste((0, 0, 0, 255), box)
        content = io.BytesIO()
        image.save(content, "PNG")
        texts = dict.fromkeys(TEXT_FIELDS, "x") | {"answer": "1", "image": content.getvalue()}
        return read_pixels(texts, None, EXACT)

    assert pixels((0, 0, 4, 4)) != pixels((4, 4, 8, 8))
    assert pixels((0, 0, 4, 4))[:3] == bytes(3)
    assert pixels((0, 0, 4, 4))[-3:] == bytes([255] * 3)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_every_kind_of_picture_is_told_apart_by_its_colours(tmp_path: Path, mode: str) -> None:
    split = lines_source(tmp_path, row(image_path="b.png"))
    (tmp_path / "pictures" / "b.png").write_bytes(png(1, mode=mode))
    (found,) = rows_of(split)
    meaning = source_splits._read_meaning(found, "counting", "test", EXACT)
    with Image.open(io.BytesIO(found.images[0])) as image:
        assert image.mode == mode
        rgba = image.convert("RGBA")
        seen = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        assert meaning.picture.hex() == sha256(seen.tobytes())


def test_nothing_changed_nothing_is_read(
    public: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(public)
    monkeypatch.setattr(source_splits, "read_source", lambda *_: pytest.fail("read again"))
    assert prepare(public) == first


def test_the_key_covers_what_the_examples_come_from(tmp_path: Path) -> None:
    block = make_source(tmp_path, "counting", 4, 3, 0)
    file = Path(block["test"]["source"]["file"])
    picture = next((tmp_path / "counting_test").rglob("*.png"))
    arrow = next((tmp_path / "counting_train_saved").rglob("*.arrow"))

    def key(**changes: Any) -> str:
        return examples_key(settings({"counting": {**block, **changes}}), "counting", CELL_SPLITS)

    keys = [key(), key(test={**block["test"], "prompt": "{question}?"})]
    hub = {"kind": "hub", "id": "a/b", "revision": "main", "split": "train"}
    keys.append(key(train={**block["train"], "source": hub}))
    keys.append(key(train={**block["train"], "source": {**hub, "revision": "v2"}}))
    for touched in (file, picture, arrow):
        status = touched.stat()
        os.utime(touched, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        keys.append(key())
        with touched.open("ab") as content:
            content.write(b" ")
        os.utime(touched, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
        keys.append(key())
    picture.rename(picture.with_name("z.png"))
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert key() == keys[-1]
    (picture.parent / ".DS_Store").touch()
    assert key() == keys[-1]
    assert examples_key(settings({}), "counting", CELL_SPLITS) not in keys
    file.unlink()
    with pytest.raises(ConfigurationError, match=r"sources\.counting\.test\.source\.file = "):
        key()


def test_the_key_covers_the_pictures_that_are_named_and_no_others(tmp_path: Path) -> None:
    """Behind a linked folder, too; of whatever else lies beside them nothing."""
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "b.png").write_bytes(png())
    split = lines_source(tmp_path, row(image_path="linked/b.png"))
    (tmp_path / "pictures" / "linked").symlink_to(real)
    block = {"train": split.model_dump(), "test": split.model_dump()}
    key = partial(examples_key, settings({"counting": block}), "counting", CELL_SPLITS)
    first = key()
    (tmp_path / "pictures" / "unrelated.png").touch()
    (tmp_path / "pictures" / "a.png").unlink()  # it is not named
    assert key() == first
    (real / "b.png").write_bytes(png(size=(1, 1)))
    assert key() != first


@pytest.mark.parametrize("layout", ["saved", "parquet"])
def test_the_key_covers_pictures_that_tables_name(tmp_path: Path, layout: str) -> None:
    from datasets import Value

    typed_rows(
        tmp_path,
        layout,
        NAMED,
        image=(Value("string"), ["a.png"]),
        question=(Value("string"), ["?"]),
        answer=(Value("int64"), [1]),
    )
    folder = {"kind": "folder", "path": str(tmp_path / "set"), "split": "train"}
    part = {"source": folder, "columns": {**NAMED, "steps": None}, "prompt": None}
    block = {"train": part, "test": part}
    key = partial(examples_key, settings({"counting": block}), "counting", CELL_SPLITS)
    missing = key()
    (tmp_path / "set" / "a.png").write_bytes(png())
    assert key() != missing


def test_pictures_in_parquet_are_not_read_for_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    picture = pa.array([{"bytes": png(), "path": "a.png"}])
    pq.write_table(pa.table({"flat": [png()], "image": picture}), tmp_path / "train.parquet")
    read, asked = pq.ParquetFile.iter_batches, []

    def spy(file: Any, rows: int, columns: list[str]) -> Any:
        asked.append(columns)
        return read(file, rows, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    folder = {"kind": "folder", "path": str(tmp_path), "split": "train"}
    for column in ("flat", "image"):
        fingerprint(split_source(folder, {**NAMED, "image": column, "steps": None}), "here")
    assert asked == [[], ["image.path"]]


def test_pictures_in_base64_are_not_held_for_the_key(tmp_path: Path) -> None:
    split = lines_source(tmp_path, *(row(image_path=f"{n:0200000}") for n in range(20)))
    tracemalloc.start()
    fingerprint(split, "here")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000  # of 4 MB


def test_the_key_covers_the_kind_of_answers(public: dict[str, Any]) -> None:
    kinds: list[Any] = [{}, {"counting": {"kind": "text"}}, {"geometry": {"kind": "text"}}]
    keys = [examples_key(settings(public, answers=k), "counting", CELL_SPLITS) for k in kinds]
    assert keys[0] == keys[2] != keys[1]


def test_answers_are_read_by_the_kind_of_their_task(tmp_path: Path, public: dict[str, Any]) -> None:
    words = [
        row(ground_truth=word, question=str(word)) for word in ("a cat", ["dog", "hound"], True)
    ]
    block = {**public["counting"], "test": lines_source(tmp_path, *words).model_dump()}
    with pytest.raises(ConfigurationError, match="line 1: the answer 'a cat' does not parse"):
        prepare({"counting": block})
    manifest = prepare({"counting": block}, answers={"counting": {"kind": "text"}})
    assert manifest.answers.kind == "text"
    assert list(table_of("test", manifest)["answer"]) == [
        *("a cat", '["dog", "hound"]', '["yes", "true"]')
    ]
    again = Examples.read_folder(Path(FOLDERS.examples) / "counting", "")
    assert again.answers == manifest.answers


def test_a_data_set_has_no_base_split(public: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"'counting' is read from data sets, and only"):
        prepare_splits(settings(public), "counting", ("base",), Path("data/base"))


def test_a_long_reading_says_how_far_it_is(
    public: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(source_splits, "PROGRESS_ROWS", 10)
    with caplog.at_level("INFO"):
        prepare(public)
    assert [line for line in caplog.messages if "looked at" in line] == [
        "counting: 10 rows of the train source looked at",
        "counting: 20 rows of the train source looked at",
    ]


# --- Preflight


def test_a_task_that_is_not_prepared_is_looked_into(public: dict[str, Any]) -> None:
    splits = compatibility.draw_splits("geometry", settings(public))
    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 16,
        "validation": 16,
        "test": TEST,
    }
    checked = compatibility.check_examples("geometry", splits, EXACT)
    assert [row.outcome for row in checked] == ["ok"] * 3
    assert len({image.size for image in splits["train"]["image"]}) > 1


def test_a_row_that_cannot_be_used_is_found_before_anything_is_prepared(
    tmp_path: Path, public: dict[str, Any]
) -> None:
    split = lines_source(tmp_path, row(), row(ground_truth="many"))
    block = {**public["counting"], "test": split.model_dump()}
    with pytest.raises(ConfigurationError, match=r"sources\.counting\.test: line 2: the answer"):
        compatibility.draw_splits("counting", settings({"counting": block}, max_rejected=9))
    block = {**public["counting"], "train": split.model_dump()}
    with pytest.raises(ConfigurationError, match=r"sources\.counting\.train: line 2: the answer"):
        compatibility.draw_splits("counting", settings({"counting": block}))
    allowed = settings({"counting": block}, max_rejected=1)
    assert len(compatibility.draw_splits("counting", allowed)["train"]) == 1


def test_nothing_is_downloaded_to_check_a_task(public: dict[str, Any]) -> None:
    hub = {"kind": "hub", "id": "a/b", "revision": "main", "split": "train"}
    block = {**public["counting"], "train": {**public["counting"]["train"], "source": hub}}
    assert compatibility.draw_splits("counting", settings({"counting": block})) == {}
    here = {**block["test"], "source": {**block["test"]["source"], "file": "nowhere.jsonl"}}
    with pytest.raises(ConfigurationError, match="no such file"):
        compatibility.draw_splits("counting", settings({"counting": {**block, "test": here}}))
    assert _instead("counting", settings({"counting": block})) == "nothing to check"
    assert _instead("counting", settings(public)) == "some are read"
    assert _instead("counting", settings({})) == "some are drawn"
