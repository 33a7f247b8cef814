"""What spawned processes of a training do in a test: they import this and little else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from othink_pipeline.cells.job import CellJob


def note(job: CellJob, run_id: str, tracking_uri: str) -> None:
    """Write down what this process was given."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "OTHINK_TEST")
    given = [job.name, run_id, tracking_uri, *(os.environ.get(name) for name in names)]
    Path(f"process_{os.environ['RANK']}.json").write_text(json.dumps(given))
