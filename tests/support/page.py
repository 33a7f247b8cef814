"""A page of a grid by hand, with pictures, forms of questions and a model that is out for harm."""

from __future__ import annotations

import io

import pandas as pd
from PIL import Image

from othink_pipeline.data.pictures import decode
from othink_pipeline.report.comparison import compare_all, differences_table
from othink_pipeline.report.matrix import sort_rows
from othink_pipeline.report.page.items import Item, make_items
from othink_pipeline.report.page.render import Content, render_page
from othink_pipeline.report.page.samples import choose_samples
from tests.support.handmade import (
    KNOWN,
    MARGIN,
    METHODS,
    NO_FAILURES,
    matrix_of,
    report_on,
    two_tasks,
)

HOSTILE = (
    '<think></script><script>document.title="owned"</script></think>'
    '<answer><img src="http://evil.example/x" onerror="document.title=1">\' ]]> <!--</answer>'
)
COMPARISONS = [("grpo_d", "sft")]


def page_predictions() -> pd.DataFrame:
    """``two_tasks``, its first items asking for a price; one answer is hostile."""
    table = two_tasks()
    is_first = table["example_id"].str[-1].isin(["0", "1", "2"])
    table["form"] = is_first.map({True: "price", False: "total"})
    hit = (table["method"] == "base") & (table["example_id"] == "counting-0")
    table.loc[hit, "completion"] = HOSTILE
    return table


def with_samples(predictions: pd.DataFrame) -> pd.DataFrame:
    """The same where three completions of each example were sampled, too, the second one right."""
    every = range(len(predictions))
    return predictions.assign(
        sampled_completions=[["first", HOSTILE, "third"] for _ in every],
        sampled_correct=[[False, True, False] for _ in every],
        sampled_answers=[["1", "7", None] for _ in every],
    )


def page_items(predictions: pd.DataFrame) -> list[Item]:
    """An example for each, in their order, a picture with a colour of its own for each."""
    examples = predictions.drop_duplicates("example_id").sort_values("example_id")
    rows = (
        {
            "id": row.example_id,
            "task": row.eval_task,
            "form": row.form,
            "question": f"What is asked in {row.example_id}? <b>&",
            "answer": "7",
            "image": picture(number),
        }
        for number, row in enumerate(examples.itertuples())
    )
    return make_items(rows, decode)


def picture(number: int, size: tuple[int, int] = (32, 24)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (20 * number % 256, 90, 200)).save(file, "PNG")
    return file.getvalue()


HISTORY = pd.DataFrame(
    [
        (task, "grpo_d", 0, step, metric, value * step)
        for task in ("counting", "geometry")
        for step in (1, 2, 3)
        for metric, value in {
            "val/counting": 0.2,
            "val/geometry": 0.1,
            "train/kl": 0.01,
            "train/kl_weight": 0.04,
            "train/reward": 0.5,
        }.items()
    ],
    columns=["task", "method", "seed", "step", "metric", "value"],
)


def page_of(predictions: pd.DataFrame, failures: pd.DataFrame = NO_FAILURES) -> str:
    """The page of the hand-made grid."""
    training = pd.DataFrame({"task": ["counting"], "method": ["sft"], "seed": [0], "updates": [6]})
    compared = compare_all(sort_rows(predictions, METHODS), COMPARISONS, MARGIN)
    content = Content(
        report=report_on(predictions, training, failures=failures, comparisons=COMPARISONS),
        matrix=matrix_of(predictions, failures),
        predictions=predictions,
        differences=differences_table(compared),
        history=HISTORY,
        items={item.example_id: item for item in page_items(predictions)},
        samples=choose_samples(sort_rows(predictions, METHODS), METHODS, COMPARISONS),
    )
    return render_page(content, METHODS, KNOWN)
