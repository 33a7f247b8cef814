"""What stops a run on Ray before it trains anything."""

import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from othink_pipeline.cells.parameters import Cluster
from othink_pipeline.cluster import connection
from othink_pipeline.core.blocks import ConfigurationError
from tests.conftest import shipped

BOX = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}
SMALL = {"CPU": 2.0, "memory": 1e9}


def cluster(**changes: Any) -> Cluster:
    return Cluster.model_validate(shipped("cluster", **changes))


def demand(cpus: int, gpus: float = 0, machines: int = 1, **custom: float) -> dict[str, Any]:
    return {"machines": machines, "cpus": cpus, "gpus": gpus, "custom": custom}


@pytest.mark.parametrize(
    ("train", "machines", "fault"),
    [
        (demand(2), [SMALL], None),
        (demand(1, 0.5), [SMALL, BOX], None),
        (demand(8, 2, fast=1.0), [BOX, {**BOX, "fast": 1.0}], None),
        (demand(9), [SMALL, SMALL], "train asks for 9 CPU. Machines that have it: 0. There"),
        (demand(4, 1), [SMALL, SMALL], "4 CPU, 1 GPU. Machines that have it: 0. There are"),
        # Two machines have it together, but a cell lives on one.
        (demand(1, 4), [BOX, BOX], "There are: 8 CPU, 2 GPU; 8 CPU, 2 GPU. Ask for less"),
        (demand(8, 2, machines=2), [BOX, SMALL, BOX], None),
        (demand(8, 2, machines=2), [BOX, SMALL], "on each of 2 machines. Machines that have it: 1"),
        (demand(1, fast=1.0), [SMALL], "There are: 2 CPU, 0 fast."),
        (demand(1), [SMALL, BOX], "cluster.train.gpus = 0, and there are 2 GPUs"),
    ],
)
def test_what_no_machine_has_is_named(
    train: dict[str, Any], machines: list[dict[str, float]], fault: str | None
) -> None:
    evaluate = {"cpus": 1, "gpus": train["gpus"] and 0.5, "custom": {}}
    found = [
        each
        for each in connection.find_faults(cluster(train=train, evaluate=evaluate), machines)
        if each.startswith("cluster.train")
    ]
    assert found == [] if fault is None else len(found) == 1 and fault in found[0]


def test_without_ray_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    from othink_pipeline.cluster.runner import RayRunner

    monkeypatch.setattr(connection, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"--runner: RayRunner needs Ray.*\[ray\]"):
        RayRunner()


def test_an_address_that_does_not_answer_is_named_soon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(ConfigurationError, match=f"cluster.address = '{address}': does not answer"):
        connection.connect(cluster(address=address), [], [tmp_path])


def test_another_version_is_named_and_sigterm_stays_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def init(**_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 1.0")

    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ConfigurationError, match="cannot connect") as error:
        connection.connect(cluster(address="auto"), [], [tmp_path])
    assert "(Version mismatch: The cluster was started with: Ray: 1.0)" in error.value.message
    assert signal.getsignal(signal.SIGTERM) is before
