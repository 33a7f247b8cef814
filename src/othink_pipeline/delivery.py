"""The thread that brings a journal's records to MLflow, however often the server goes away.

Delivery may be repeated from anywhere on: every write is one that may be repeated
(`mlflow_store.py`), so nothing is lost, and nothing is there twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from othink_pipeline.journal import Checkpoint, Dataset, Entry, Journal, Metrics, Tag
from othink_pipeline.lifecycle import redact_uri

if TYPE_CHECKING:
    from mlflow.store.tracking.abstract_store import AbstractStore

logger = logging.getLogger(__name__)

_VALUES_AT_ONCE = 1000
_REFUSALS = 3
"""So often the store must say no to a request: while a server restarts its proxy may say so."""
_NOTE_EVERY_S = 30.0


class TrackingUnavailableError(click.ClickException):
    """MLflow did not take the records in time; they are kept, and so is the training."""


class TrackingRefusedError(click.ClickException):
    """MLflow says no to a record; they are all kept, and so is the training."""


def raise_if_away(error: Exception) -> None:
    """Say what an error means if it comes from a store that does not answer.

    Raises:
        TrackingUnavailableError: it does.
    """
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException) and not _is_refusal(error):
        raise TrackingUnavailableError(
            f"MLflow at {_address()} does not answer ({_brief(error)}). Nothing is lost: what is "
            "finished is kept. Start the server, then run the same command again."
        ) from None


class Delivery:
    """Brings the records of one journal to one MLflow run, in order, from `start` to `leave`."""

    def __init__(
        self,
        run_id: str,
        name: str,
        journal: Journal,
        base_model_id: str | None,
        retry_s: tuple[float, float],
    ) -> None:
        """Arguments as of `recording.Recorder`."""
        self._run_id, self._name, self._journal = run_id, name, journal
        self._base_model_id, self._base_model_checked = base_model_id, base_model_id is None
        self._first_s, self._longest_s = retry_s
        self._thread = threading.Thread(target=self._run, name=f"records {name}", daemon=True)
        self._changed = threading.Condition()  # all below is its holder's
        self._done = journal.delivered(run_id)
        self._error: Exception | None = None  # why the latest request failed, if it did
        self._away: tuple[float, int] | None = None  # since when, and how many were delivered
        self._refused = self._hurry = self._leaving = self._abandoned = self._ended = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Look for new records."""
        with self._changed:
            self._changed.notify_all()

    def wait(self, patience_s: float) -> None:
        """Wait until MLflow has all that the journal holds now, `patience_s` at most.

        Raises:
            TrackingUnavailableError: the server stayed away.
            TrackingRefusedError: the server says no.
        """
        started_s = time.monotonic()
        target = len(self._journal.entries)
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            try:
                for portion_s in _portions(patience_s):
                    if self._changed.wait_for(lambda: self._settled(target), portion_s):
                        break
                    logger.info(
                        "%s: %d records wait for MLflow since %.0f s, at most %.0f s (%s)",
                        self._name,
                        target - self._done,
                        time.monotonic() - started_s,
                        patience_s,
                        _brief(self._error),
                    )
            finally:
                self._hurry = False
            if self._done < target:
                raise self._fault(target - self._done, patience_s)

    def leave(self, grace_s: float) -> int:
        """Try once more and end, within `grace_s`; returns how many records are left."""
        with self._changed:
            self._leaving = True
            self._changed.notify_all()
        self._thread.join(grace_s)
        with self._changed:
            self._abandoned = True  # a request may hang; whatever it brings does not count
            return len(self._journal.entries) - self._done

    def _settled(self, target: int) -> bool:
        return self._done >= target or self._ended

    def _fault(self, records: int, patience_s: float) -> click.ClickException:
        kept = (
            "Nothing is lost: what was trained is kept, and so are the records, in "
            f"{self._journal.path}."
        )
        again = "run the same command again: it trains nothing anew, but delivers the records."
        if self._refused:
            return TrackingRefusedError(
                f"{self._name}: MLflow at {_address()} refuses a record ({_brief(self._error)}). "
                f"{kept} Remove the cause (was run {self._run_id} deleted? may it be written?), "
                f"then {again}"
            )
        return TrackingUnavailableError(
            f"{self._name}: MLflow at {_address()} did not take {records} records within "
            f"{patience_s:.0f} s ({_brief(self._error)}). {kept} Start the server, then {again}"
        )

    # The thread's own.

    def _run(self) -> None:
        failures = refusals = 0
        try:
            while batch := self._next_batch():
                try:
                    self._send(batch)
                except Exception as error:  # whatever it is, training goes on and `wait` raises
                    failures += 1
                    refusals += _is_refusal(error)
                    if not self._goes_on(error, failures, refusals):
                        return
                else:
                    failures = refusals = 0
                    self._count(len(batch))
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _next_batch(self) -> list[Entry]:
        """What one request can take of what comes next; empty when there is no more to do."""
        entries = self._journal.entries
        with self._changed:
            self._changed.wait_for(lambda: self._done < len(entries) or self._leaving)
            if self._abandoned:
                return []
            batch: list[Entry] = []
            values = 0
            for entry in entries[self._done : self._done + _VALUES_AT_ONCE]:
                plain = isinstance(entry, Metrics) and entry.checkpoint is None
                values += len(entry.metrics) if isinstance(entry, Metrics) else 0
                if batch and not (plain and values <= _VALUES_AT_ONCE):
                    break
                batch.append(entry)
                if not plain:
                    break
            return batch

    def _send(self, batch: list[Entry]) -> None:
        from othink_pipeline import mlflow_store

        store, run_id = mlflow_store.quick_store(), self._run_id
        models: dict[int, str] = {}
        match batch[0]:
            case Tag(key=key, value=value):
                mlflow_store.write_tag(store, run_id, key, value)
            case Dataset(dataset=dataset, context=context):
                mlflow_store.write_dataset(store, run_id, dataset, context)
            case Checkpoint(checkpoint=step, path=path, digest=digest):
                tags = {"checkpoint": path, "digest": digest}
                models[step] = mlflow_store.write_checkpoint(store, run_id, self._name, step, tags)
            case Metrics(checkpoint=checkpoint):
                model_id = self._scored_model(store, checkpoint)
                values = [
                    value
                    for entry in batch
                    if isinstance(entry, Metrics)
                    for value in mlflow_store.metric_entities(
                        run_id, entry.metrics, entry.step, entry.time_ms, model_id, entry.dataset
                    )
                ]
                mlflow_store.write_metrics(store, run_id, values)
        if not self._abandoned:
            self._journal.mark_delivered(run_id, self._done + len(batch), models)

    def _scored_model(self, store: AbstractStore, checkpoint: int | None) -> str | None:
        from othink_pipeline.mlflow_store import has_model

        if checkpoint is None:
            return None
        if checkpoint > 0:
            return self._journal.model_id(self._run_id, checkpoint)
        if not self._base_model_checked and self._base_model_id is not None:
            if not has_model(store, self._base_model_id):
                logger.warning(
                    "%s: MLflow has no base model %s: its scores stand on the run only",
                    self._name,
                    self._base_model_id,
                )
                self._base_model_id = None
            self._base_model_checked = True
        return self._base_model_id

    def _count(self, delivered: int) -> None:
        with self._changed:
            self._done += delivered
            self._error = None
            if self._away is not None and self._done == len(self._journal.entries):
                since_s, done = self._away
                logger.warning(
                    "%s: MLflow is back after %.0f s; the %d records that waited are delivered",
                    self._name,
                    time.monotonic() - since_s,
                    self._done - done,
                )
                self._away = None
            self._changed.notify_all()

    def _goes_on(self, error: Exception, failures: int, refusals: int) -> bool:
        """Tell a failure once and pause; False when the request is not to be repeated."""
        with self._changed:
            if self._abandoned:
                return False
            self._error = error
            self._refused = refusals >= _REFUSALS
            if self._refused:
                logger.error(
                    "%s: MLflow at %s refuses a record (%s). Training goes on, but nothing more "
                    "is delivered: the records are kept in %s",
                    self._name,
                    _address(),
                    _brief(error),
                    self._journal.path,
                )
                return False
            if self._away is None and not refusals:
                self._away = time.monotonic(), self._done
                logger.warning(
                    "%s: MLflow at %s does not answer (%s). Training goes on and nothing is lost: "
                    "the records wait in %s",
                    self._name,
                    _address(),
                    _brief(error),
                    self._journal.path,
                )
            if self._leaving:
                return False
            hurry = self._hurry
            doublings = 0 if hurry else min(failures - 1, 16)
            self._changed.wait_for(
                lambda: self._leaving or (self._hurry and not hurry),
                min(self._first_s * 2**doublings, self._longest_s),
            )
            return True


def _is_refusal(error: Exception) -> bool:
    from othink_pipeline.mlflow_store import is_refusal

    return is_refusal(error)


def _address() -> str:
    import mlflow

    return redact_uri(mlflow.get_tracking_uri())


def _brief(error: Exception | None) -> str:
    """The first line of an error, without credentials."""
    if error is None:
        return "it is slow"
    return redact_uri(f"{type(error).__name__}: {error}").partition("\n")[0][:300]


def _portions(total_s: float) -> Iterator[float]:
    """`total_s` in portions, after each of which the user is told what is waited for."""
    while total_s > 0:
        yield min(total_s, _NOTE_EVERY_S)
        total_s -= _NOTE_EVERY_S
