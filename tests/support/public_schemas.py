"""Small data sets with the schemas of the paper's public ones, drawn here: nothing is downloaded.

``counting`` stands for CLEVR-70k-Counting and SuperCLEVR, ``geometry`` for GEOQA-8k and GeoQA.
Training sets have the columns ``image``, ``problem``, ``solution`` (``<answer> 3 </answer>``),
test files ``image_path``, ``question``, ``ground_truth`` (ints, or strings such as ``140°``).
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageDraw

from othink_pipeline.data.tasks import load_task

Layout = Literal["saved", "parquet"]

CLEVR_SIZE = (480, 320)
GEOMETRY_SIZES = ((143, 98), (201, 77), (64, 257), (325, 222))
TRAIN_COLUMNS = {"image": "image", "question": "problem", "answer": "solution", "steps": None}
TEST_COLUMNS = {
    "image": "image_path",
    "question": "question",
    "answer": "ground_truth",
    "steps": None,
}
TRAIN_PROMPT = (
    "{question}  Output the thinking process in <think> </think> and final answer (number) in "
    "<answer> </answer> tags."
)
TEST_PROMPT = TRAIN_PROMPT.replace("  Output", " First output")


class Item(NamedTuple):
    """A question about a picture: PNG bytes."""

    question: str
    answer: int | str
    png: bytes


def draw_items(task: str, examples: int, seed: int) -> Iterator[Item]:
    """Items of ``task``; every other one of ``geometry`` has a radical for its answer."""
    rng = Random(f"{task}/{seed}")
    for number in range(examples):
        if task == "geometry" and number % 2:
            yield _ask_height(rng)
            continue
        problem = load_task(task)(rng)
        if task == "counting":
            question = "How many different items are there in the image?"
            answer: int | str = problem.key.count("|") + 1  # the key lists the items
            size = CLEVR_SIZE
        else:
            question, answer = problem.question, f"{problem.answer}°"
            size = rng.choice(GEOMETRY_SIZES)
        yield Item(question, answer, _png(problem.render().resize(size)))


def make_train_set(
    folder: Path, task: str, examples: int, seed: int, layout: Layout = "saved"
) -> Path:
    """A folder with a split ``train``, saved by ``datasets`` or of two parquet files."""
    from datasets import Dataset, DatasetDict, Features, Value
    from datasets import Image as ImageFeature

    rows = [
        {
            "image": {"bytes": item.png, "path": f"{task}_{number:06d}.png"},
            "problem": item.question,
            "solution": f"<answer> {item.answer} </answer>",
        }
        for number, item in enumerate(draw_items(task, examples, seed))
    ]
    features = Features(
        {"image": ImageFeature(), "problem": Value("string"), "solution": Value("string")}
    )
    train = Dataset.from_list(rows, features)
    home = folder / f"{task}_train_{layout}"
    if layout == "saved":
        DatasetDict({"train": train}).save_to_disk(home)
    else:
        home.mkdir(parents=True)
        for number in range(2):
            train.shard(2, number).to_parquet(home / f"train-{number:05d}-of-00002.parquet")
    return home


def make_test_file(folder: Path, task: str, examples: int, seed: int) -> tuple[Path, Path]:
    """A file with a JSON object in each line, and the folder that its pictures lie below."""
    images = folder / f"{task}_test"
    (images / "images").mkdir(parents=True)
    lines = []
    for number, item in enumerate(draw_items(task, examples, seed)):
        name = f"images/{task}_{number:06d}.png"
        (images / name).write_bytes(item.png)
        lines.append(
            {
                "image_path": f"./{name}",
                "question": item.question,
                "ground_truth": item.answer,
            }
        )
    file = folder / f"{task}_test.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file, images


def source_block(train: Path, test: tuple[Path, Path]) -> dict[str, Any]:
    """One task's entry of ``data_preparation.sources``, as it would stand in YAML."""
    file, images = test
    return {
        "train": {
            "source": {"kind": "folder", "path": str(train), "split": "train"},
            "columns": dict(TRAIN_COLUMNS),
            "prompt": TRAIN_PROMPT,
        },
        "test": {
            "source": {"kind": "jsonl", "file": str(file), "images": str(images)},
            "columns": dict(TEST_COLUMNS),
            "prompt": TEST_PROMPT,
        },
    }


def make_source(folder: Path, task: str, train: int, test: int, seed: int) -> dict[str, Any]:
    """A training set and a test file of ``task``, drawn with seeds of their own; their block."""
    trained = make_train_set(folder, task, train, 2 * seed)
    return source_block(trained, make_test_file(folder, task, test, 2 * seed + 1))


def _ask_height(rng: Random) -> Item:
    half = rng.randint(2, 19)
    width, height = size = rng.choice(GEOMETRY_SIZES)
    image = Image.new("RGB", size, "white")
    side = rng.randint(min(size) // 2, min(size) - 4)
    left, low = rng.randint(1, width - side - 1), rng.randint(side, height - 2)
    top = (left + side / 2, low - side * 3**0.5 / 2)
    draw = ImageDraw.Draw(image)
    draw.polygon([(left, low), (left + side, low), top], outline="black")
    draw.line([top, (left + side / 2, low)], fill="black")
    question = f"As shown in the figure, triangle ABC has three sides of {2 * half}. Its height is"
    return Item(question, f"{half}√{{3}}", _png(image))


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
