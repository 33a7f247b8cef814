"""Makes quick what trains and records: imported by each process when all the rest has been."""

import gc
import sqlite3
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine
from transformers import PreTrainedConfig


@event.listens_for(Engine, "connect")
def _leave_the_disk_to_its_cache(connection: Any, _: Any) -> None:
    """A record outlives a killed process, though not a power cut: MLflow commits each by itself."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


# Each loading of a model makes a text of its configuration twenty times, for no one to read: a
# quarter of the time of a short training.
PreTrainedConfig.__repr__ = object.__repr__  # type: ignore[method-assign]

# Every training collects garbage: looking through all that was ever imported takes longer.
gc.collect()
gc.freeze()
