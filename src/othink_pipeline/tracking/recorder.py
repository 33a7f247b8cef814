"""What a training records: its journal takes it at once, MLflow as soon as it can.

Training must neither wait for the MLflow server nor die of it. Delivery may be repeated from
anywhere on: every write is one that may be repeated (`mlflow_store.py`), so nothing is lost, and
nothing is there twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import click
import mlflow
from mlflow.exceptions import MlflowException

from othink_pipeline.core.redaction import failure, redact_uri
from othink_pipeline.tracking import mlflow_store
from othink_pipeline.tracking.journal import (
    Checkpoint,
    Context,
    Dataset,
    DatasetRef,
    Entry,
    Journal,
    Metrics,
    Table,
    Tag,
)

logger = logging.getLogger(__name__)

_PATIENCE_S = 600.0
"""How long a training that ended in order waits for a server that is away."""
_NOTE_EVERY_S = 30.0
"""After each of these parts of its patience the user is told what is waited for."""
_LEAVING_S = 5.0
"""How long a training that failed or was stopped waits for its last records."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
"""Before a request is repeated; every pause is twice the one before."""
_REFUSALS = 3
"""So often the store must say no to a request: while a server restarts its proxy may say so."""
_VALUES_AT_ONCE = 1000


class TrackingUnavailableError(click.ClickException):
    """MLflow did not take the records in time; they are kept, and so is the training."""


class TrackingRefusedError(click.ClickException):
    """MLflow says no to a record; they are all kept, and so is the training."""


def raise_if_away(error: Exception) -> None:
    """Say what an error means if it comes from a store that does not answer.

    Raises:
        TrackingUnavailableError: it does.
    """
    if isinstance(error, MlflowException) and not mlflow_store.is_refusal(error):
        raise TrackingUnavailableError(
            f"MLflow at {_address()} does not answer ({_brief(error)}). Nothing is lost: what is "
            "finished is kept. Start the server, then run the same command again, without "
            "compute.fresh."
        ) from None


@contextmanager
def told_if_away() -> Iterator[None]:
    """Tell an outage of the tracking server as one; see ``raise_if_away``."""
    try:
        yield
    except Exception as error:
        raise_if_away(error)
        raise


class _State(Enum):
    """What the delivery is at; it only ever goes on to a later one."""

    DELIVERING = auto()
    """Training goes on: pauses between the tries at a server that is away grow."""
    FLUSHING = auto()
    """Training is done and waits for the rest: pauses stay short."""
    LEAVING = auto()
    """Nobody waits any longer: each request is tried once more, without a pause."""
    ENDED = auto()
    """No more is delivered: what a hanging request may still bring does not count."""


class Recorder:
    """Records one run, and brings the records to it in order, from a thread of its own.

    As a context manager it delivers from entry to exit, what the journal holds from earlier
    processes first. Leaving the block in order waits until MLflow has all that was recorded;
    leaving it by an error or an interrupt takes some seconds at most, and the journal keeps what
    is left.
    """

    def __init__(
        self, run_id: str, name: str, journal: Journal, *, base_model_id: str | None = None
    ) -> None:
        """Nothing is delivered before the block is entered.

        Args:
            name: the cell's name, ``counting/grpo_d/s0``.
            base_model_id: the logged model that checkpoint 0 stands for.
        """
        self._run_id, self._name, self.journal = run_id, name, journal
        self._base_model_id = base_model_id
        self._thread = threading.Thread(target=self._deliver, name=f"records {name}", daemon=True)
        self._changed = threading.Condition()  # all below is its holder's
        self._state = _State.DELIVERING
        self._done = journal.delivered(run_id)
        self._error: Exception | None = None  # why the latest request failed, if it did

    def __enter__(self) -> Self:
        """Begin to deliver."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Deliver the rest.

        Raises:
            TrackingUnavailableError: the server stayed away, after a block that ended in order.
            TrackingRefusedError: the server says no, after a block that ended in order.
        """
        try:
            if kind is None:
                self._flush()
        finally:
            self._go_on_to(_State.LEAVING)
            self._thread.join(_LEAVING_S)  # a request may hang
            self._go_on_to(_State.ENDED)
            if kind is not None and self._left():
                logger.warning(
                    "%s: %d records are not in MLflow yet; they wait in %s for the next run of "
                    "this cell",
                    self._name,
                    self._left(),
                    self.journal.path,
                )

    def metrics(
        self,
        step: int,
        values: Mapping[str, float],
        checkpoint: int | None = None,
        dataset: DatasetRef | None = None,
    ) -> None:
        """Record the values of one optimizer step; those recorded before are ignored.

        Args:
            step: optimizer step, at least 0.
            values: name to value; the same names in every cell. NaN is unknown.
            checkpoint: step of the recorded checkpoint that they score; MLflow then shows them on
                its logged model as well. 0 is the base model.
        """
        self.journal.metrics(step, int(time.time() * 1000), values, checkpoint, dataset)
        self._wake()

    def checkpoint(self, step: int, path: Path, digest: str) -> None:
        """Record a published checkpoint; it becomes a logged model by reference."""
        uri = path.resolve().as_uri()
        self.journal.add(Checkpoint(checkpoint=step, path=uri, digest=digest))
        self._wake()

    def tag(self, key: str, value: str) -> None:
        """Record a tag of the run."""
        self.journal.add(Tag(key=key, value=value))
        self._wake()

    def dataset(self, dataset: DatasetRef, context: Context) -> None:
        """Record which examples the run uses, and for what."""
        self.journal.add(Dataset(dataset=dataset, context=context))
        self._wake()

    def table(self, file: str, columns: list[str], rows: list[list[str | float | None]]) -> None:
        """Record a table, which becomes the artifact `file` (``….json``); None is unknown."""
        self.journal.add(Table(file=file, columns=columns, rows=rows))
        self._wake()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _go_on_to(self, state: _State) -> None:
        with self._changed:
            if self._state is not _State.ENDED:
                self._state = state
                self._changed.notify_all()

    def _left(self) -> int:
        return len(self.journal.entries) - self._done

    def _flush(self) -> None:
        """Wait until MLflow has all; raises as `__exit__`."""
        started_s = time.monotonic()
        self._go_on_to(_State.FLUSHING)
        with self._changed:
            for _ in range(round(_PATIENCE_S / _NOTE_EVERY_S)):
                if self._changed.wait_for(
                    lambda: not self._left() or self._state is _State.ENDED, _NOTE_EVERY_S
                ):
                    break
                logger.info(
                    "%s: %d records wait for MLflow since %.0f s, at most %.0f s (%s)",
                    self._name,
                    self._left(),
                    time.monotonic() - started_s,
                    _PATIENCE_S,
                    _brief(self._error),
                )
            if not self._left():
                return
            kept = (
                "Nothing is lost: what was trained is kept, and so are the records, in "
                f"{self.journal.path}."
            )
            again = (
                "run the same command again, without compute.fresh: it trains nothing anew, but "
                "delivers the records."
            )
            if self._state is _State.ENDED:
                raise TrackingRefusedError(
                    f"{self._name}: MLflow at {_address()} refuses a record "
                    f"({_brief(self._error)}). {kept} Remove the cause (was run {self._run_id} "
                    f"deleted? may it be written?), then {again}"
                )
            raise TrackingUnavailableError(
                f"{self._name}: MLflow at {_address()} did not take {self._left()} records within "
                f"{_PATIENCE_S:.0f} s ({_brief(self._error)}). {kept} Start the server, then "
                f"{again}"
            )

    # The thread's own.

    def _deliver(self) -> None:
        failures = refusals = 0
        away: tuple[float, int] | None = None  # since when, and how many were delivered
        try:
            while batch := self._next_batch():
                state = self._state
                try:
                    self._send(batch)
                except Exception as error:  # whatever it is, training goes on; `_flush` raises
                    if self._state is _State.ENDED:
                        return
                    self._error = error
                    failures += 1
                    refusals += mlflow_store.is_refusal(error)
                    told = self._name, _address(), _brief(error), self.journal.path
                    if refusals == _REFUSALS:
                        logger.error(
                            "%s: MLflow at %s refuses a record (%s). Training goes on, but nothing "
                            "more is delivered: the records are kept in %s",
                            *told,
                        )
                        return
                    if away is None and not refusals:
                        away = time.monotonic(), self._done
                        logger.warning(
                            "%s: MLflow at %s does not answer (%s). Training goes on and nothing "
                            "is lost: the records wait in %s",
                            *told,
                        )
                    if not self._pause(state, failures):
                        return
                else:
                    failures, refusals, self._error = 0, 0, None
                    if away is not None and not self._left():
                        logger.warning(
                            "%s: MLflow is back after %.0f s; the %d records that waited are "
                            "delivered",
                            self._name,
                            time.monotonic() - away[0],
                            self._done - away[1],
                        )
                        away = None
        finally:
            self._go_on_to(_State.ENDED)

    def _next_batch(self) -> list[Entry]:
        """What one request can take of what comes next; empty when there is no more to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._left() or self._is_over())
            if self._state is _State.ENDED:
                return []
            batch = self.journal.entries[self._done : self._done + _VALUES_AT_ONCE]
        values = 0
        for number, entry in enumerate(batch):
            if isinstance(entry, Metrics) and entry.checkpoint is None:
                values += len(entry.metrics)
            else:
                values += _VALUES_AT_ONCE  # it goes alone
            if number and values > _VALUES_AT_ONCE:
                return batch[:number]
        return batch

    def _send(self, batch: list[Entry]) -> None:
        store, run_id = mlflow_store.quick_store(), self._run_id
        models: dict[int, str] = {}
        match batch[0]:
            case Tag(key=key, value=value):
                mlflow_store.write_tag(store, run_id, key, value)
            case Dataset(dataset=dataset, context=context):
                mlflow_store.write_dataset(store, run_id, dataset, context)
            case Table(file=file, columns=columns, rows=rows):
                mlflow_store.write_table(store, run_id, file, columns, rows)
            case Checkpoint(checkpoint=step, path=path, digest=digest):
                tags = {"checkpoint": path, "digest": digest}
                models[step] = mlflow_store.write_checkpoint(store, run_id, self._name, step, tags)
            case Metrics(checkpoint=checkpoint):
                model_id = self._base_model if checkpoint == 0 else None
                if checkpoint:
                    model_id = self.journal.model_id(run_id, checkpoint)
                values = [
                    value
                    for entry in batch
                    if isinstance(entry, Metrics)
                    for value in mlflow_store.metric_entities(
                        run_id, entry.metrics, entry.step, entry.time_ms, model_id, entry.dataset
                    )
                ]
                mlflow_store.write_metrics(store, run_id, values)
        with self._changed:
            if self._state is not _State.ENDED:
                self.journal.mark_delivered(run_id, self._done + len(batch), models)
                self._done += len(batch)
                self._changed.notify_all()

    @cached_property
    def _base_model(self) -> str | None:
        """Id of the base model, if the store has it."""
        store = mlflow_store.quick_store()
        if self._base_model_id is None or mlflow_store.has_model(store, self._base_model_id):
            return self._base_model_id
        logger.warning(
            "%s: MLflow has no base model %s: its scores stand on the run only",
            self._name,
            self._base_model_id,
        )
        return None

    def _pause(self, state: _State, failures: int) -> bool:
        """Pause before a request of ``state`` is repeated; False when it is not to be."""
        with self._changed:
            if self._is_over():
                return False
            doublings = min(failures - 1, 16) if state is _State.DELIVERING else 0
            pause_s = min(_FIRST_PAUSE_S * 2**doublings, _LONGEST_PAUSE_S)
            self._changed.wait_for(lambda: self._state is not state, pause_s)
            return True

    def _is_over(self) -> bool:
        return self._state in (_State.LEAVING, _State.ENDED)


def _address() -> str:
    return redact_uri(mlflow.get_tracking_uri())


def _brief(error: Exception | None) -> str:
    return "it is slow" if error is None else failure(error)
