"""What a training records: its journal takes it at once, MLflow as soon as it can.

Training must neither wait for the MLflow server nor die of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from othink_pipeline.delivery import Delivery
from othink_pipeline.journal import Checkpoint, Dataset, Journal, Tag
from othink_pipeline.tracking import Context, DatasetRef

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

_LEAVING_S = 5.0
"""How long a training that failed or was stopped waits for its last records."""


class Recorder:
    """Records one run.

    As a context manager it delivers from entry to exit, what the journal holds from earlier
    processes first. Leaving the block in order is a `flush`; leaving it by an error or an
    interrupt takes some seconds at most, and the journal keeps what is left.
    """

    def __init__(
        self,
        run_id: str,
        name: str,
        journal: Journal,
        *,
        base_model_id: str | None = None,
        patience_s: float = 600.0,
        retry_s: tuple[float, float] = (1.0, 30.0),
    ) -> None:
        """Nothing is delivered before the block is entered.

        Args:
            run_id: the MLflow run that the records belong to.
            name: the cell's name, ``counting/grpo_d/s0``.
            journal: keeps the records.
            base_model_id: the logged model that checkpoint 0 stands for.
            patience_s: how long leaving the block waits for a server that is away.
            retry_s: the first and the longest pause before a request is repeated.
        """
        self._run_id, self._name, self._journal = run_id, name, journal
        self._patience_s = patience_s
        self._delivery = Delivery(run_id, name, journal, base_model_id, retry_s)

    def __enter__(self) -> Self:
        """Begin to deliver."""
        self._delivery.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Deliver the rest.

        Raises:
            TrackingUnavailableError, TrackingRefusedError: as of `flush`, after a block that
                ended in order.
        """
        try:
            if kind is None:
                self.flush()
        finally:
            left = self._delivery.leave(_LEAVING_S)
            if kind is not None and left:
                logger.warning(
                    "%s: %d records are not in MLflow yet; they wait in %s for the next run of "
                    "this cell",
                    self._name,
                    left,
                    self._journal.path,
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
            dataset: what it was scored on.
        """
        self._journal.metrics(step, int(time.time() * 1000), values, checkpoint, dataset)
        self._delivery.wake()

    def checkpoint(self, step: int, path: Path, digest: str) -> None:
        """Record a published checkpoint; it becomes a logged model by reference."""
        uri = path.resolve().as_uri()
        self._journal.add(Checkpoint(checkpoint=step, path=uri, digest=digest))
        self._delivery.wake()

    def tag(self, key: str, value: str) -> None:
        """Record a tag of the run."""
        self._journal.add(Tag(key=key, value=value))
        self._delivery.wake()

    def dataset(self, dataset: DatasetRef, context: Context) -> None:
        """Record which examples the run uses, and for what."""
        self._journal.add(Dataset(dataset=dataset, context=context))
        self._delivery.wake()

    def history(self) -> pd.DataFrame:
        """All values in logging order, those of earlier processes first: step, metric, value."""
        return self._journal.history()

    def flush(self, patience_s: float | None = None) -> None:
        """Wait until MLflow has all that was recorded so far.

        Args:
            patience_s: how long at most; None is the recorder's own patience.

        Raises:
            TrackingUnavailableError: the server stayed away.
            TrackingRefusedError: the server says no.
        """
        self._delivery.wait(self._patience_s if patience_s is None else patience_s)

    def model_id(self, checkpoint: int) -> str:
        """Id of the logged model of a recorded checkpoint, after a `flush`.

        Raises:
            TrackingUnavailableError, TrackingRefusedError: as of `flush`.
            KeyError: no such checkpoint was recorded.
        """
        self.flush()
        return self._journal.model_id(self._run_id, checkpoint)
