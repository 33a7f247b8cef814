"""Makes quick what trains and records: imported by each process when all the rest has been."""

import gc
import sqlite3
from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import Engine


@event.listens_for(Engine, "connect")
def _leave_the_disk_to_its_cache(connection: Any, _: Any) -> None:
    """A record outlives a killed process, though not a power cut: MLflow commits each by itself."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous=OFF")


# Every training collects garbage: looking through all that was ever imported takes longer.
gc.collect()
gc.freeze()
