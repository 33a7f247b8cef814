"""Splits by meaning, validation with reasons, digests of what a model sees, round trips."""

import hashlib
import io
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.data import examples as module
from othink_pipeline.data.examples import (
    TEXT_FIELDS,
    draw_examples,
    read_examples,
    update_digest,
)
from othink_pipeline.data.pictures import UnusableError, picture_size, shown
from othink_pipeline.data.tasks import IMAGE_SIZE_PX, SPLIT_SHARES, Problem, load_task, split_of
from othink_pipeline.scoring.kinds import EXACT
from tests.support.examples import decode, png_of_size, write_examples

TASKS = ("counting", "digits", "geometry")
SIZES = {"base": 60, "train": 40, "validation": 10, "test": 30}

find_fault = partial(module.find_fault, answers=EXACT)
read_pixels = partial(module.read_pixels, size_px=None, answers=EXACT)


@cache
def drawn(task: str, seed: int = 0) -> tuple[dict[str, Any], ...]:
    return tuple(draw_examples(task, SIZES, seed))


def digest_of(examples: Iterable[Mapping[str, Any]]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        update_digest(digest, example, decode(example["image"]).tobytes())
    return digest.hexdigest()


def parts_of(example: Mapping[str, Any]) -> list[str]:
    """What decides an example's split: its scans, if it has any, or its meaning."""
    if example["task"] != "digits":
        return [example["key"]]
    return [f"scan {item.partition(':')[2]}" for item in example["key"].split("|")]


def png_of(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def test_a_meaning_stands_in_the_same_split_for_ever() -> None:
    """Pinned: else a later version trains on what an earlier base model was tested on."""
    assert {key: split_of("counting", key) for key in "abcde"} == {
        "a": "base",
        "b": "train",
        "c": "base",
        "d": "validation",
        "e": "test",
    }
    assert [split_of("geometry", key) for key in "abcde"] == [
        *("train", "train", "base", "test", "base"),
    ]


def test_splits_get_their_shares() -> None:
    count = 20_000
    found = Counter(split_of("counting", str(number)) for number in range(count))
    assert sum(SPLIT_SHARES.values()) == 100
    for split, share in SPLIT_SHARES.items():
        assert found[split] / count == pytest.approx(share / 100, abs=0.012), split


@pytest.mark.parametrize("task", ["counting", "geometry"])
def test_the_problems_of_a_task_get_their_shares(task: str) -> None:
    draw_problem, rng = load_task(task), Random(1)
    keys = {draw_problem(rng).key for _ in range(6000)}
    found = Counter(split_of(task, key) for key in keys)
    for split, share in SPLIT_SHARES.items():
        assert found[split] / len(keys) == pytest.approx(share / 100, abs=0.03), split


@pytest.mark.parametrize("task", TASKS)
def test_every_split_is_full_and_numbered(task: str) -> None:
    assert Counter(example["split"] for example in drawn(task)) == SIZES
    for split, size in SIZES.items():
        ids = [example["id"] for example in drawn(task) if example["split"] == split]
        assert ids == [f"{task}-{split}-{number:06d}" for number in range(size)]
    for example in drawn(task):
        assert set(example) == {*TEXT_FIELDS, "image"}
        assert example["task"] == task
        assert {split_of(task, name) for name in parts_of(example)} == {example["split"]}
        assert read_pixels(example, size_px=IMAGE_SIZE_PX)


@pytest.mark.parametrize("task", TASKS)
def test_no_two_splits_share_a_meaning_or_a_scan_whatever_the_seed(task: str) -> None:
    splits: dict[str, set[str]] = {split: set() for split in SIZES}
    for seed in (0, 1, 2):
        for example in drawn(task, seed):
            splits[example["split"]] |= {example["key"], *parts_of(example)}
    everything = [name for names in splits.values() for name in names]
    assert len(everything) == len(set(everything))


def test_a_problem_made_of_parts_of_several_splits_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there are parts the key does not count."""
    parts: tuple[str, ...] = ("a", "c")

    def draw_problem(rng: Random) -> Problem:
        picture = Image.new("RGB", (IMAGE_SIZE_PX, IMAGE_SIZE_PX))
        return Problem("b", "form", "1?", "1", "", lambda: picture, parts)

    monkeypatch.setattr(module, "load_task", lambda name: draw_problem)
    (example,) = draw_examples("counting", {"base": 1}, 0)
    assert (example["split"], split_of("counting", "b")) == ("base", "train")
    parts = ("a", "d")
    with pytest.raises(ValueError, match=r"'b' belong to several splits \(base, validation\)"):
        next(draw_examples("counting", {"base": 1}, 0))


def test_no_meaning_stands_twice_where_it_is_measured() -> None:
    """A task of few problems draws each of them often: only ``base`` may keep the repeats."""
    examples = list(draw_examples("geometry", {"base": 600, "test": 250, "validation": 60}, 0))
    for split in ("test", "validation"):
        keys = [example["key"] for example in examples if example["split"] == split]
        assert len(keys) == len(set(keys)), split
    base = [example["key"] for example in examples if example["split"] == "base"]
    assert len(base) > len(set(base)), "this test needs repeats"


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("counting", "40422377a51c4974"),
        ("digits", "f65c8ca5af65eb39"),
        ("geometry", "09c3574bcdd7f536"),
    ],
)
def test_a_seed_gives_the_same_digest_everywhere(task: str, expected: str) -> None:
    """Pinned: fields and pixels, on every machine and with every version of PNG encoders."""
    assert digest_of(drawn(task)) == digest_of(draw_examples(task, SIZES, 0))
    assert digest_of(drawn(task))[:16] == expected
    assert digest_of(drawn(task, 1)) != digest_of(drawn(task))


def test_a_larger_split_begins_like_a_smaller_one() -> None:
    """Sizes of other splits do not matter either: results stay comparable."""
    larger = draw_examples("counting", {"train": 50, "test": 5}, 0)
    larger_train = [example for example in larger if example["split"] == "train"]
    train = [example for example in drawn("counting") if example["split"] == "train"]
    assert digest_of(larger_train[:40]) == digest_of(train)


def test_too_large_a_split_stops_with_the_key_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MISSES", 500)
    with pytest.raises(ConfigurationError, match=r"data_preparation\.splits") as error:
        list(draw_examples("geometry", {"train": 2, "validation": 5000}, 0))
    assert "'geometry'" in error.value.message
    assert "'validation': " in error.value.message
    assert "'train'" not in error.value.message


def test_a_task_that_is_only_rarely_lucky_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Misses are counted in a row: in all there are many more than the limit."""
    monkeypatch.setattr(module, "MAX_MISSES", 500)
    assert len(list(draw_examples("counting", {"validation": 100}, 0))) == 100


@pytest.mark.parametrize(
    ("field", "text", "fault"),
    [
        ("question", "How \ud83d many?", "field 'question' holds half a character: surr"),
        ("steps", "1 \udfff", "field 'steps' holds half a character: surr"),
        ("question", "<image>\nHow many?", "field 'question' holds '<image>', which models take"),
        ("question", "<|image_pad|> How many?", "field 'question' holds '<|image_pad|>', which"),
        ("steps", "so<|im_end|>", "field 'steps' holds '<|im_end|>', which models take"),
    ],
)
def test_text_that_no_model_can_be_asked_is_a_fault(field: str, text: str, fault: str) -> None:
    found = find_fault({**drawn("counting")[0], field: text})
    assert found is not None
    assert found.startswith(fault)
    assert find_fault({**drawn("counting")[0], "question": "Is 1 < 2 |x|> 3 <y>?"}) is None


def test_a_field_that_is_missing_or_no_text_is_named() -> None:
    for field in TEXT_FIELDS:
        example = {**drawn("counting")[0], field: 3}
        assert find_fault(example) == f"field {field!r} is int, not text"
        del example[field]
        assert find_fault(example) == f"field {field!r} is NoneType, not text"


def test_an_empty_question_is_a_fault() -> None:
    assert find_fault({**drawn("counting")[0], "question": " \n"}) == "the question is empty"


def test_an_answer_that_does_not_parse_is_a_fault() -> None:
    answer = "9" * 500
    fault = find_fault({**drawn("counting")[0], "answer": answer})
    assert fault == f"the answer {shown(answer)} does not parse"


def test_an_image_that_is_missing_or_no_bytes_is_a_fault() -> None:
    example = {**drawn("counting")[0], "image": 3}
    assert find_fault(example) == "field 'image' is int, not bytes"
    del example["image"]
    assert find_fault(example) == "field 'image' is NoneType, not bytes"


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"no picture",
        b"\x89PNG\r\n\x1a\n",
        png_of_size(64, 64)[:33],
        png_of_size(64, 64)[:45],
    ],
)
def test_an_image_that_does_not_decode_is_a_fault(image: bytes) -> None:
    fault = find_fault({**drawn("counting")[0], "image": image})
    assert fault is not None
    assert fault.startswith("the image does not decode: ")


def test_a_truncated_image_is_a_fault_wherever_it_ends() -> None:
    """But for its last chunk, which holds nothing, every byte counts."""
    image = drawn("counting")[0]["image"]
    for end in range(0, len(image) - 24, 7):
        fault = find_fault({**drawn("counting")[0], "image": image[:end]})
        assert fault is not None, end
        assert fault.startswith("the image does not decode: ")


def test_no_damage_to_an_image_raises() -> None:
    example, rng = drawn("geometry")[0], Random(0)
    faults: Counter[bool] = Counter()
    for _ in range(300):
        image = bytearray(example["image"])
        image[rng.randrange(len(image))] = rng.randrange(256)
        faults[find_fault({**example, "image": bytes(image)}) is not None] += 1
    assert faults[True] > 200


@pytest.mark.parametrize("size", [(480, 320), (1, 1), (400, 2), (5000, 100)])
def test_a_picture_of_any_other_size_is_none(size: tuple[int, int]) -> None:
    image = png_of(Image.new("RGB", size, (1, 2, 3)))
    assert picture_size(image) == size
    assert read_pixels({**drawn("counting")[0], "image": image}) == b"\1\2\3" * size[0] * size[1]


@pytest.mark.parametrize("size", [(65, 64), (64, 63), (32, 32), (128, 128)])
def test_another_size_than_the_one_asked_for_is_a_fault(size: tuple[int, int]) -> None:
    image = png_of(Image.new("RGB", size))
    with pytest.raises(UnusableError, match=f"^the image is {size[0]} x {size[1]}, not 64 x 64$"):
        read_pixels({**drawn("counting")[0], "image": image}, size_px=64)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("WEBP", "RGBA")],
)
def test_photographs_and_webp_decode_as_rgb(kind: str, mode: str) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (30, 20)).save(buffer, kind)
    image = buffer.getvalue()
    assert len(read_pixels({**drawn("counting")[0], "image": image})) == 30 * 20 * 3
    assert picture_size(image) == (30, 20)


def test_an_answer_that_the_scorer_alone_reads_will_do() -> None:
    assert find_fault({**drawn("counting")[0], "answer": "8√{3}"}) is None


def test_a_picture_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded, convert = [], Image.Image.convert

    def count(image: Image.Image, *given: Any) -> Image.Image:
        decoded.append(image)
        return convert(image, *given)

    monkeypatch.setattr(Image.Image, "convert", count)
    example = drawn("counting")[0]
    digest = hashlib.sha256()
    update_digest(digest, example, read_pixels(example, size_px=64))
    assert len(decoded) == 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "I;16"])
def test_every_kind_of_png_decodes_as_rgb(mode: str) -> None:
    image = png_of(Image.new(mode, (64, 64)))
    assert len(read_pixels({**drawn("counting")[0], "image": image})) == 64 * 64 * 3


def test_a_digest_covers_every_field_and_pixel_but_not_the_encoding() -> None:
    example = drawn("counting")[0]
    picture = decode(example["image"])
    before = digest_of([example])
    for field in TEXT_FIELDS:
        assert digest_of([{**example, field: example[field] + "x"}]) != before, field
    other_encoding = png_of(picture, compress_level=9)
    assert other_encoding != example["image"]
    assert digest_of([{**example, "image": other_encoding}]) == before
    picture.putpixel((63, 63), (1, 2, 3))
    assert digest_of([{**example, "image": png_of(picture)}]) != before


def test_text_cannot_move_between_fields_or_rows_unseen() -> None:
    a, b = drawn("counting")[:2]
    moved = {**a, "question": a["question"] + a["answer"][:1], "answer": a["answer"][1:]}
    assert digest_of([moved]) != digest_of([a])
    assert digest_of([a, b]) != digest_of([b, a])
    assert digest_of([a]) != digest_of([a, a])


def test_a_file_gives_back_fields_and_decoded_pictures(tmp_path: Path) -> None:
    examples = [example for example in drawn("counting") if example["split"] == "test"]
    write_examples(examples, tmp_path / "test.arrow")
    table = read_examples(tmp_path / "test.arrow")
    assert len(table) == 30
    assert table.column_names == [*TEXT_FIELDS, "image"]
    for written, read in zip(examples, table, strict=True):
        assert {name: read[name] for name in TEXT_FIELDS} == {
            name: written[name] for name in TEXT_FIELDS
        }
        assert isinstance(read["image"], Image.Image)
        assert (read["image"].mode, read["image"].size) == ("RGB", (64, 64))
        assert read["image"].tobytes() == decode(written["image"]).tobytes()


def test_a_file_is_mapped_and_not_read(tmp_path: Path) -> None:
    """What is mapped costs no memory of its own, and another process gets a path, not pictures."""
    examples = [{**row, "image": row["image"] + bytes(1_000_000)} for row in drawn("counting")[:20]]
    write_examples(examples, tmp_path / "x.arrow")
    before = pa.total_allocated_bytes()
    table = read_examples(tmp_path / "x.arrow")
    assert table[7]["image"].size == (64, 64)
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert [Path(file["filename"]) for file in table.cache_files] == [tmp_path / "x.arrow"]
    assert len(pickle.dumps(table)) < 100_000


def test_anyone_can_read_the_file_with_datasets_alone(tmp_path: Path) -> None:
    """Same columns, types and notes as where ``datasets`` itself made the table."""
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    examples = list(drawn("geometry")[:5])
    write_examples(examples, tmp_path / "x.arrow")
    columns: dict[str, Any] = {name: [row[name] for row in examples] for name in TEXT_FIELDS}
    columns["image"] = [{"bytes": row["image"], "path": None} for row in examples]
    features = Features({name: Value("string") for name in TEXT_FIELDS} | {"image": ImageFeature()})
    theirs = Dataset.from_dict(columns, features=features)
    ours = Dataset.from_file(str(tmp_path / "x.arrow"))
    assert ours.features == theirs.features
    assert ours.data.schema.equals(theirs.data.schema, check_metadata=True)
    assert ours.data.table.combine_chunks().equals(theirs.data.table.combine_chunks())
    assert ours[3]["image"].tobytes() == decode(examples[3]["image"]).tobytes()


def batches(file: Path) -> list[int]:
    """Examples in each batch of a file."""
    with pa.ipc.open_stream(file.read_bytes()) as content:
        return [batch.num_rows for batch in content]


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (3, [3]), (4, [4]), (8, [4, 4]), (10, [4, 4, 2])]
)
def test_every_batch_is_in_the_file_and_none_is_lost(
    count: int, sizes: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_EXAMPLES", 4)
    examples = list(drawn("counting")[:count])
    write_examples(examples, tmp_path / "x.arrow")
    assert batches(tmp_path / "x.arrow") == sizes
    table = read_examples(tmp_path / "x.arrow")
    assert list(table["id"]) == [example["id"] for example in examples]
    images = [{"bytes": example["image"], "path": None} for example in examples]
    assert table.data.column("image").to_pylist() == images


def test_large_pictures_make_small_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 1000)
    sizes = [400, 400, 400, 999, 1, 2000, 10, 1000, 5]
    examples = [{**drawn("counting")[0], "image": bytes(size)} for size in sizes]
    write_examples(examples, tmp_path / "x.arrow")
    assert batches(tmp_path / "x.arrow") == [3, 2, 1, 2, 1]
