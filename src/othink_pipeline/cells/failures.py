"""What goes wrong in one cell: told in its place, while the others go on."""

from __future__ import annotations

import logging

import click

from othink_pipeline.core.redaction import failure
from othink_pipeline.tracking.recorder import (
    TrackingRefusedError,
    TrackingUnavailableError,
    raise_if_away,
)

logger = logging.getLogger(__name__)


def explain(error: Exception, what: str) -> str:
    """Log an error, with its traceback unless its message says it all; returns it in words.

    Args:
        what: what failed; begins the log line.

    Raises:
        TrackingUnavailableError, TrackingRefusedError: it is MLflow's, which no cell gets past.
    """
    if isinstance(error, TrackingUnavailableError | TrackingRefusedError):
        raise error
    raise_if_away(error)
    known = isinstance(error, click.ClickException)
    logger.error("%s: %s", what, failure(error), exc_info=None if known else error)
    return failure(error)
