"""The notebook shows what there is where cells failed."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from othink_pipeline.config_loader import GridConfigLoader
from othink_pipeline.report.markdown import TITLE, VERDICT
from tests.support.examples import write_examples
from tests.support.handmade import NO_FAILURES, matrix_of, two_tasks
from tests.support.page import picture

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "results.ipynb"


@pytest.mark.parametrize(
    ("failed", "learnt", "disagree"),
    [
        ({}, ("counting", "grpo_d"), ("sft", "grpo_d")),
        ({"train_task": "counting", "method": "grpo_d"}, ("counting", "sft"), ("base", "sft")),
        ({"train_task": "counting"}, ("geometry", "grpo_d"), ("sft", "grpo_d")),
        ({"method": "grpo_d"}, ("counting", "sft"), ("base", "sft")),
    ],
    ids=str,
)
def test_the_notebook_shows_what_has_answers(
    failed: dict[str, str],
    learnt: tuple[str, str],
    disagree: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = two_tasks()
    gone = pd.Series(bool(failed), index=whole.index) & (whole["method"] != "base")
    for column, value in failed.items():
        gone &= whole[column] == value
    holes = whole[gone].drop_duplicates(["train_task", "method", "eval_task"])
    failures = holes.assign(reason="no memory")[NO_FAILURES.columns]
    predictions = whole[~gone]
    folder = tmp_path / "data/08_reporting"
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "conf").symlink_to(NOTEBOOK.parents[1] / "conf")
    matrix_of(predictions, failures).to_csv(folder / "transfer_matrix.csv", index=False)
    predictions.to_parquet(folder / "predictions.parquet")
    (folder / "report.md").write_text(f"# {TITLE}\n\n## {VERDICT}\n\nas in the report")
    for task, answers in whole.groupby("eval_task"):
        text = dict.fromkeys(("split", "key", "form", "steps"), "")
        text |= {"task": str(task), "question": "how many?", "answer": "7"}
        file = tmp_path / "data/03_primary" / str(task) / "test.arrow"
        file.parent.mkdir(parents=True)
        names = answers["example_id"].unique()
        write_examples([{**text, "id": name, "image": picture(0)} for name in names], file)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(GridConfigLoader, "current", None)  # the notebook makes one of its own
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    *rest, of_mlflow = code
    assert "mlflow.search_runs" in of_mlflow
    shown: dict[str, Any] = {}
    place = next(number for number, cell in enumerate(rest) if cell.startswith("trained_on, "))
    exec("\n".join(rest[:place]), shown)
    assert (shown["trained_on"], shown["method"]) == learnt
    exec("\n".join(rest[place:]), shown)
    assert (shown["method_a"], shown["method_b"]) == disagree
    assert len(shown["a"]) == len(shown["b"]) > 0
    plt.close("all")
    assert shown["store"].startswith("sqlite:///mlflow.db")
