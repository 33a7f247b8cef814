"""A cell's records on its own disk: an append-only file that outlives process and server.

One JSON object a line. Floats are written with all their digits; NaN and the infinities, which JSON
does not have, are the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from othink_pipeline.core.blocks import ConfigurationError

HISTORY_COLUMNS = ["step", "metric", "value"]

Context = Literal["train", "validation", "test"]


@dataclass(frozen=True, slots=True)
class DatasetRef:
    """One split of one task's examples, by reference.

    Attributes:
        name: readable and stable, e.g. ``counting_test``.
        digest: our own digest. MLflow's covers only the first 10,000 rows, and holds at most 36
            characters: a longer one is cut there and kept whole in the dataset's profile.
        source: where the examples are, a path or a URI.
        examples: how many there are, at least 0.
    """

    name: str
    digest: str
    source: str
    examples: int


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class Metrics(_Entry):
    """Values of one step.

    Attributes:
        step: optimizer step, at least 0.
        time_ms: when they were logged, milliseconds since 1970; MLflow tells repeats by it.
        checkpoint: step of the checkpoint that they score, if they score one.
        dataset: what it was scored on.
    """

    kind: Literal["metrics"] = "metrics"
    step: int
    time_ms: int
    metrics: dict[str, float]
    checkpoint: int | None = None
    dataset: DatasetRef | None = None


class Checkpoint(_Entry):
    """A published checkpoint: its step, its folder and the digest of its files."""

    kind: Literal["checkpoint"] = "checkpoint"
    checkpoint: int
    path: str
    digest: str


class Tag(_Entry):
    """A tag of the run."""

    kind: Literal["tag"] = "tag"
    key: str
    value: str


class Dataset(_Entry):
    """Examples that the run used, and for what."""

    kind: Literal["dataset"] = "dataset"
    dataset: DatasetRef
    context: Context


class Table(_Entry):
    """Rows to be read: an artifact of the run, a path ending in ``.json``; None is unknown."""

    kind: Literal["table"] = "table"
    file: str
    columns: list[str]
    rows: list[list[str | float | None]]


class Delivered(_Entry):
    """The store has the first `entries` records of this file, under `run_id`.

    `models`: step of a checkpoint delivered with them -> id of its logged model.
    """

    kind: Literal["delivered"] = "delivered"
    run_id: str
    entries: int
    models: dict[int, str] = {}


Entry = Metrics | Checkpoint | Tag | Dataset | Table

_LINE: TypeAdapter[Entry | Delivered] = TypeAdapter(
    Annotated[Entry | Delivered, Field(discriminator="kind")]
)


class Journal:
    """The records of one cell, in the order in which they were logged.

    What is repeated is ignored: after a crash a training repeats the updates after its last resume
    state, and its curves must not double. One process writes at a time, from any of its threads.

    Attributes:
        path: the file; made, with its folder, by the first record.
        entries: all records so far, first logged first; they only ever grow.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there; a torn last line (killed process, full disk) is cut off.

        Raises:
            ConfigurationError: a line that is no record, with file and line.
        """
        self.path = path
        self.entries: list[Entry] = []
        self._delivered: dict[str, int] = {}
        self._models: dict[tuple[str, int], str] = {}
        self._values: set[tuple[str, int]] = set()
        self._latest: dict[tuple[object, ...], Entry] = {}
        self._lock = threading.Lock()
        for number, line in enumerate(self._whole_lines(), start=1):
            try:
                entry = _LINE.validate_json(line)
            except ValidationError as error:
                fault = error.errors()[0]["msg"]
                raise ConfigurationError(
                    f"{path}, line {number}: no record of a training ({fault}). Correct the line "
                    "or delete it (what it recorded is then lost), or delete the cell's folder to "
                    "train it again."
                ) from None
            self._remember(entry)

    def metrics(
        self,
        step: int,
        time_ms: int,
        values: Mapping[str, float],
        checkpoint: int | None = None,
        dataset: DatasetRef | None = None,
    ) -> None:
        """Record the values of a step that it does not have yet, by name and step.

        Raises:
            ValueError: a checkpoint that was not recorded before its scores (0, the base model,
                needs no record).
        """
        if checkpoint and ("checkpoint", checkpoint) not in self._latest:
            raise ValueError(f"checkpoint {checkpoint} is scored before it is recorded")
        with self._lock:
            new = {k: float(v) for k, v in values.items() if (k, step) not in self._values}
            if new:
                self._append(
                    Metrics(
                        step=step,
                        time_ms=time_ms,
                        metrics=new,
                        checkpoint=checkpoint,
                        dataset=dataset,
                    )
                )

    def add(self, entry: Checkpoint | Tag | Dataset | Table) -> None:
        """Record all but metrics, unless it says what the latest one of its subject said."""
        with self._lock:
            if self._latest.get(_subject(entry)) != entry:
                self._append(entry)

    def mark_delivered(self, run_id: str, entries: int, models: dict[int, str]) -> None:
        """Record that the store has the first `entries` records under `run_id`.

        Args:
            models: step of a checkpoint among them -> id of its logged model.
        """
        with self._lock:
            self._append(Delivered(run_id=run_id, entries=entries, models=models))

    def model_id(self, run_id: str, checkpoint: int) -> str:
        """Id of the logged model of a checkpoint that was delivered under `run_id`."""
        return self._models[run_id, checkpoint]

    def delivered(self, run_id: str) -> int:
        """How many of the records the store has for certain under `run_id`; it may have more."""
        marked = min(self._delivered.get(run_id, 0), len(self.entries))
        for index, entry in enumerate(self.entries[:marked]):
            unknown = (
                isinstance(entry, Checkpoint) and (run_id, entry.checkpoint) not in self._models
            )
            if unknown:  # its mark was deleted by hand; asking again finds its model
                return index
        return marked

    def history(self) -> pd.DataFrame:
        """All values in logging order: step, metric, value."""
        rows = [
            (entry.step, name, value)
            for entry in self.entries
            if isinstance(entry, Metrics)
            for name, value in entry.metrics.items()
        ]
        return pd.DataFrame(rows, columns=HISTORY_COLUMNS)

    def _whole_lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        return content[:whole].splitlines()

    def _append(self, entry: Entry | Delivered) -> None:
        line = entry.model_dump_json(exclude_none=True).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                if file.write(line) < len(line):
                    raise OSError(
                        f"{self.path}: the disk took only a part of a record; is it full?"
                    )
            except OSError:
                file.truncate(end)  # half a line would spoil the next
                raise
        self._remember(entry)

    def _remember(self, entry: Entry | Delivered) -> None:
        if isinstance(entry, Delivered):
            self._delivered[entry.run_id] = entry.entries
            self._models.update({(entry.run_id, k): v for k, v in entry.models.items()})
            return
        if isinstance(entry, Metrics):
            self._values.update((name, entry.step) for name in entry.metrics)
        else:
            self._latest[_subject(entry)] = entry
        self.entries.append(entry)


def _subject(entry: Checkpoint | Tag | Dataset | Table) -> tuple[object, ...]:
    """What an entry speaks of: a later one of the same subject takes its place."""
    match entry:
        case Checkpoint():
            return entry.kind, entry.checkpoint
        case Tag():
            return entry.kind, entry.key
        case Table():
            return entry.kind, entry.file
        case Dataset():
            return entry.kind, entry.dataset.name, entry.dataset.digest, entry.context
