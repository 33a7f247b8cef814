"""What runs on the other machines of a cell's training: their share of its processes."""

from __future__ import annotations

import pickle
from typing import NamedTuple

from othink_pipeline.cluster.surroundings import begin_task


class BadEnd(NamedTuple):
    """A share whose processes failed."""

    message: str
    killed: bool
    """One was ended by a signal, and could not say anything."""


def run_share(share: bytes, surroundings: bytes, threads: int) -> BadEnd | None:
    """Run the processes of another machine than the first.

    Args:
        share: the pickled job, the id of its MLflow run and this machine's ``Share``.
        surroundings, threads: as of ``worker.run_node``.

    Returns:
        How they failed, if they did.
    """
    begin_task(surroundings, threads)
    import click
    import ray

    from othink_pipeline.cells.processes import ProcessKilledError, train_here

    job, run_id, part = pickle.loads(share)
    try:
        train_here(job, run_id, part._replace(address=ray.util.get_node_ip_address()))
    except click.ClickException as error:
        return BadEnd(error.message, isinstance(error, ProcessKilledError))
    return None
