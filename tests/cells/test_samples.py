"""The answers that MLflow shows: the same examples in every cell, each form's, with its picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from othink_pipeline.cells import samples
from othink_pipeline.data.manifests import Examples
from tests.support.examples import transparent, write_examples
from tests.support.manifests import examples_of, with_split

FORMS = ["price", "price", "price", "count", "count", "price"]


@pytest.fixture
def asked(splits: Mapping[str, Mapping[str, Any]]) -> tuple[Any, dict[str, Examples]]:
    """The test split of counting, and the manifest that names its file."""
    tests = splits["counting"]["test"]
    file = Path(tests.cache_files[0]["filename"])
    manifest = with_split(examples_of("counting"), "test", path=str(file))
    return tests, {"counting": manifest}


def answers(tests: Any, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "example_id": tests["id"][: len(FORMS)],
            "form": FORMS,
            "completion": [f"completion {place}" for place in range(len(FORMS))],
            "correct": [False, True, True, True, False, True],
            "completion_tokens": range(len(FORMS)),
            **columns,
        }
    )


def test_each_form_has_its_turn_and_each_row_its_question_gold_verdict_and_picture(
    asked: tuple[Any, dict[str, Examples]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tests, examples = asked
    monkeypatch.setattr(samples, "SAMPLES", 4)
    table = samples.sample_answers({"counting": answers(tests)}, examples)
    assert table["answer"].tolist() == [
        *("✗ completion 0", "✓ completion 3", "✓ completion 1", "✗ completion 4")
    ]
    assert table["form"].tolist() == ["price", "count", "price", "count"]
    row = tests[3]
    assert table["question"][1] == f"{row['id']}\n{row['question']}\nright: {row['answer']}"
    assert table["question"].is_unique
    assert list(table.columns[:2]) == ["question", "answer"]  # MLflow's page compares these
    assert max(table["picture"][0].size) == samples.PICTURE_PIXELS


def test_the_picture_is_as_models_see_it(tmp_path: Path) -> None:
    file = tmp_path / "test.arrow"
    row = dict.fromkeys(("task", "split", "key", "form", "question", "answer", "steps"), "")
    write_examples([{**row, "id": "clear", "image": transparent()}], file)
    manifest = with_split(examples_of("counting"), "test", path=str(file))
    table = pd.DataFrame([{"example_id": "clear", "form": "", "completion": "", "correct": False}])
    table = samples.sample_answers(
        {"counting": table.assign(completion_tokens=1)}, {"counting": manifest}
    )
    assert table["picture"][0].getpixel((0, 0)) == (255, 255, 255)


def test_the_picture_is_the_one_that_was_shown(asked: tuple[Any, dict[str, Examples]]) -> None:
    tests, examples = asked
    shuffled = answers(tests, image_of=[*tests["id"][1 : len(FORMS)], tests["id"][0]])
    shown = samples.sample_answers({"counting": shuffled}, examples)
    plain = samples.sample_answers({"counting": answers(tests)}, examples)
    pictures = dict(zip(plain["question"], plain["picture"], strict=True))
    first, second = (
        next(question for question in pictures if question.startswith(tests["id"][place]))
        for place in (0, 1)
    )
    shown = shown.set_index("question")["picture"]
    assert shown[first].tobytes() == pictures[second].tobytes() != pictures[first].tobytes()
