"""Where the examples of each task come from: drawn by the project, or read from a data set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, field_validator

from othink_pipeline.core.blocks import Block, Count, HubId, Name, Place, Positive
from othink_pipeline.scoring.kinds import EXACT, AnswerKind


class SplitSizes(Block):
    """Examples in each split of a task; of a data set ``train`` and ``test`` are at most so many.

    A data set's ``validation`` is held out of its training examples.
    """

    base: Count
    """What the base model is trained on: of tasks that are drawn."""
    train: Positive
    """What the methods learn from."""
    validation: Positive
    """What checkpoints on the way are scored on."""
    test: Positive
    """What the finished models are tested on, once."""


class Hub(Block):
    """A data set of the Hugging Face hub."""

    kind: Literal["hub"]
    id: HubId
    """Its name on the hub."""
    revision: str
    """A commit, tag or branch; the commit that it stood for is recorded."""
    split: str
    """Train, test, or whatever it is called there."""
    subset: str | None = None
    """Where it has several; the hub calls it a configuration."""


class Folder(Block):
    """A folder that ``datasets`` saved (``save_to_disk``), or one of parquet files."""

    kind: Literal["folder"]
    path: Place
    """The folder."""
    split: str
    """Of a saved ``DatasetDict``; of parquet files ``split.parquet``, or all of
    ``split-00000-of-00003.parquet``."""


class Jsonl(Block):
    """A file with a JSON object in each line, or with an array of them, and its pictures."""

    kind: Literal["jsonl"]
    file: Place
    """The file with the objects."""
    images: Place
    """The folder that the paths in the file start from."""


class Columns(Block):
    """What the data set calls what an example consists of.

    A nested column's parts are joined by dots, also of a list: ``reward_model.ground_truth``,
    ``prompt.0.content``.
    """

    image: str
    """Bytes, base64, data URLs, paths below the data set's folder, or lists of these: several
    pictures of a question are laid side by side."""
    question: str
    """What is asked, without the prompt around it."""
    answer: str
    """May be wrapped: ``<answer> 3 </answer>``. A list: several accepted answers, or the items of a
    list or set, as the task's kind of answer says."""
    steps: str | None
    """Worked solutions, for methods with ``target: steps``; null: there are none."""
    options: Annotated[tuple[str, ...], Field(strict=False)] | str | None = None
    """Of multiple choice: one column with lists, or one a text. They are shown below the question
    as ``A. …``; the answer is a letter, one of the texts, or a number: the option's place from 0.
    """


class SplitSource(Block):
    """Where one split of a task is read from, and how the model is asked."""

    source: Annotated[Hub | Folder | Jsonl, Field(discriminator="kind")]
    """Where the examples lie."""
    columns: Columns
    """What they are called there."""
    prompt: str | None
    """Sent after the image, as ``data_preparation.prompt``, which null stands for."""

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str | None) -> str | None:
        return prompt if prompt is None else _with_question(prompt)


class TaskSource(Block):
    """Where a task's examples are read from."""

    train: SplitSource
    """Training examples, of which ``validation`` is held out."""
    test: SplitSource
    """Test examples."""


class DataPreparation(Block):
    """How the examples of every task are made."""

    seed: Count
    """Of what is drawn, and of what is held out or left out of a data set."""
    splits: SplitSizes
    """How many examples each split of a task has."""
    prompt: str
    """Sent after the image; ``{question}`` stands for the question."""
    train_examples: dict[Name, Positive]
    """Tasks that are trained on another number of examples than ``splits.train``."""
    max_rejected: Count
    """More rejected examples of a task than this stop the run."""
    sources: dict[Name, TaskSource]
    """Tasks that are read from data sets; all others are drawn by a file in ``tasks/``."""
    answers: dict[Name, AnswerKind] = Field(default_factory=dict)
    """How answers are judged, in rewards and tests alike; of tasks that are not named exactly."""

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, prompt: str) -> str:
        return _with_question(prompt)

    def sizes_of(self, task: str, splits: Iterable[str]) -> dict[str, int]:
        """How many examples of a task each of ``splits`` has; of a data set at most."""
        sizes: dict[str, int] = self.splits.model_dump()
        sizes["train"] = self.train_examples.get(task, sizes["train"])
        return {split: sizes[split] for split in splits}

    def answers_of(self, task: str) -> AnswerKind:
        """The kind of a task's answers."""
        return self.answers.get(task, EXACT)

    def prompt_of(self, task: str, split: str) -> str:
        """What is sent after the images of one split of a task."""
        if task not in self.sources:
            return self.prompt
        source = self.sources[task]
        own = (source.test if split == "test" else source.train).prompt
        return self.prompt if own is None else own


def _with_question(prompt: str) -> str:
    if prompt.count("{question}") != 1:
        raise ValueError("must hold {question} exactly once")
    return prompt
