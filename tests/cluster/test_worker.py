"""What a worker makes of what a node raises, and with how many threads it computes."""

import os
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kedro.pipeline import Node

from othink_pipeline.cells.processes import (
    MachineLostError,
    ProcessKilledError,
    train_here,
    train_on,
)
from othink_pipeline.cluster import machines, surroundings, worker
from othink_pipeline.core.blocks import BadParametersError


@pytest.fixture
def wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[bytes]:
    """Surroundings of a project in which this process works, until the test is over."""
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(surroundings.os, "environ", dict(os.environ))
    monkeypatch.setattr(surroundings.logging.config, "dictConfig", lambda _: None)
    handler = signal.getsignal(signal.SIGINT)
    yield pickle.dumps(surroundings.describe_surroundings(["othink_pipeline.cluster.worker"]))
    signal.signal(signal.SIGINT, handler)


def refuse() -> None:
    raise BadParametersError(["rl.lr: unknown key"])


def divide() -> float:
    return 1 / 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (refuse, "bad parameters\n  rl.lr: unknown key"),
        (divide, "ZeroDivisionError: division by zero"),
        (sys.exit, "SystemExit: "),
    ],
)
def test_what_a_node_raises_crosses_in_words(wanted: bytes, function: Any, message: str) -> None:
    task = pickle.dumps((Node(function, None, "out"), {}))
    with pytest.raises(worker.NodeFailedError) as error:
        worker.run_node(task, wanted, 1)
    assert pickle.loads(pickle.dumps(error.value)).message == message


def test_a_node_computes_with_as_many_threads_as_it_was_given(wanted: bytes) -> None:
    import torch

    before = torch.get_num_threads()
    task = pickle.dumps((Node(torch.get_num_threads, None, "threads"), {}))
    try:
        assert worker.run_node(task, wanted, 3) == {"threads": 3}
    finally:
        torch.set_num_threads(before)


def train() -> None:
    train_on.get()(None, "run")  # type: ignore[arg-type]


def test_nor_is_the_death_of_a_process_of_a_training(
    wanted: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory may be full: it is given again, as where Ray ends a worker."""

    def be_killed(*_: object) -> None:
        raise ProcessKilledError("process 1 of 2 was ended by SIGKILL")

    monkeypatch.setattr(machines, "train_here", be_killed)
    with pytest.raises(MachineLostError, match="process 1 of 2 was ended by SIGKILL"):
        worker.run_node(pickle.dumps((Node(train, None, "out"), {})), wanted, 1)
    assert train_on.get() is train_here


def lose() -> None:
    raise MachineLostError("counting.sft.s0")


def test_the_loss_of_a_machine_is_no_failure_of_the_node(wanted: bytes) -> None:
    with pytest.raises(MachineLostError, match=r"counting\.sft\.s0"):
        worker.run_node(pickle.dumps((Node(lose, None, "out"), {})), wanted, 1)
