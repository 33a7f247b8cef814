"""What runs in Ray's processes: one node's function, in the surroundings of the run."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import click

from othink_pipeline.cluster.surroundings import begin_task

logger = logging.getLogger(__name__)


class NodeFailedError(click.ClickException):
    """A node raised this; where its message does not say it all, the worker has logged the rest."""


def run_node(task: bytes, surroundings: bytes, threads: int, machines: int = 1) -> dict[str, Any]:
    """Run a node in the surroundings of its run; what it makes, by dataset.

    Args:
        task: the pickled node and its inputs.
        surroundings: pickled ``Surroundings``.
        threads: how many compute, on each machine.
        machines: of this task's placement group; 1: it has none.

    Raises:
        MachineLostError: another machine is gone, or a process of a training.
        NodeFailedError: the node raised something. No exception crosses as it is: not every one
            can be pickled, and Ray would take ``sys.exit`` for a crash.
    """
    try:
        begin_task(surroundings, threads)
        from othink_pipeline.cluster.machines import on_machines

        node, inputs = pickle.loads(task)
        with on_machines(machines, surroundings, threads):
            outputs: dict[str, Any] = node.run(inputs)
    except click.ClickException as error:
        raise NodeFailedError(error.message) from None
    except (Exception, SystemExit) as error:
        from othink_pipeline.cells.processes import MachineLostError

        if isinstance(error, MachineLostError):
            raise
        logger.exception("failed")
        raise NodeFailedError(f"{type(error).__name__}: {error}") from None
    return outputs
