"""Draw the README's pictures from the last finished run of ``conf/base``: ``make pictures``.

``samples.png`` shows of each task the first test example, by id, that the base model gets wrong and
GRPO, trained on counting alone, right; ``training_curves.png`` is the run's own. ``digits.png``, a
question of each form of that task, needs no run.
"""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path
from random import Random

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from othink_pipeline.data.examples import read_examples
from othink_pipeline.data.manifests import Examples
from othink_pipeline.data.tasks import Problem, digits

RUN, IMAGES = Path("data"), Path("docs/images")
METHOD, TRAINED_ON = "grpo", "counting"
WRONG, RIGHT = "#b3261e", "#1b6e3c"


def first_learnt(predictions: pd.DataFrame, task: str) -> pd.DataFrame:
    """The answers of the base model and of the trained one to one example: a row a method."""
    answers = predictions[predictions["eval_task"] == task]
    base = answers[answers["method"] == "base"].set_index("example_id", drop=False)
    trained = answers[(answers["method"] == METHOD) & (answers["train_task"] == TRAINED_ON)]
    trained = trained.set_index("example_id", drop=False).loc[base.index]
    chosen = base.index[~base["correct"] & trained["correct"]].min()
    return pd.DataFrame([base.loc[chosen], trained.loc[chosen]]).set_index("method")


def draw_samples(predictions: pd.DataFrame, tasks: list[str], file: Path) -> None:
    """A row a task: the picture, the question, both answers."""
    figure, rows = plt.subplots(
        len(tasks),
        2,
        figsize=(8.4, 1.9 * len(tasks)),
        width_ratios=(1, 3.6),
        layout="constrained",
    )
    for (left, right), task in zip(rows, tasks, strict=True):
        answers = first_learnt(predictions, task)
        manifest = Examples.read(RUN / f"03_primary/{task}.json", "Make it: make demo")
        examples = read_examples(Path(manifest.splits["test"].path))
        example = examples[list(examples["id"]).index(answers["example_id"].iloc[0])]
        left.imshow(example["image"])
        left.set_title(task, fontsize=10)
        left.axis("off")
        _write(right, example["question"], example["answer"], answers)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def _write(axes: Axes, question: str, gold: str, answers: pd.DataFrame) -> None:
    axes.axis("off")
    lines = [(textwrap.fill(question, 80), "black", "sans-serif", 10)]
    lines.append((f"Right answer: {gold}", "#555555", "sans-serif", 9))
    for method, mark, color in (("base", "✗", WRONG), (METHOD, "✓", RIGHT)):
        name = "base model" if method == "base" else f"GRPO, trained on {TRAINED_ON}"
        said = textwrap.fill(answers.loc[method, "completion"], 84, subsequent_indent="  ")
        lines.append((f"{mark} {name}", color, "sans-serif", 9))
        lines.append((said, color, "monospace", 8))
    below = 1.0
    for text, color, family, size in lines:
        axes.text(0, below, text, color=color, family=family, size=size, va="top", parse_math=False)
        below -= 0.15 * (text.count("\n") + 1)


def draw_digits(file: Path) -> None:
    """The first problem of each form of the task ``digits``, side by side."""
    rng, found = Random(0), dict[str, Problem]()
    while len(found) < len(digits.FORM_WEIGHTS):
        problem = digits.draw_problem(rng)
        found.setdefault(problem.form, problem)
    forms = list(digits.FORM_WEIGHTS)
    figure, columns = plt.subplots(1, len(forms), figsize=(11, 3), layout="constrained")
    for axes, form in zip(columns, forms, strict=True):
        problem = found[form]
        axes.imshow(problem.render())
        axes.set_title(textwrap.fill(problem.question, 26), fontsize=9)
        text = textwrap.fill(f"{problem.steps}. Answer: {problem.answer}", 28)
        axes.set_xlabel(text, fontsize=8, family="monospace")
        axes.set(xticks=[], yticks=[])
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    draw_digits(IMAGES / "digits.png")
    table = pd.read_parquet(RUN / "08_reporting/predictions.parquet")
    draw_samples(table, sorted(table["eval_task"].unique()), IMAGES / "samples.png")
    shutil.copy(RUN / "08_reporting/training_curves.png", IMAGES)
