"""A few of the faults of `make faults`: one project is stopped, killed and damaged in turn.

And one is run on Ray, which loses a worker: cells side by side come to the same, too.
"""

import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import MiniModel
from tests.faults.on_ray import at, raylet_pid, two_machines
from tests.faults.project import (
    ON_RAY,
    PARAMETERS,
    TASKS,
    UPDATES,
    leftovers,
    make_project,
    read_outcome,
    run,
    start,
    steps_taken,
)
from tests.faults.scenarios import DAMAGES, Undisturbed, run_undisturbed
from tests.support.terminal import COLOURS, Terminal

BY_RL: dict[str, Any] = {  # `make faults` hurts cells of both kinds
    "experiment": {"tasks": list(TASKS), "methods": ["grpo_d"], "seeds": [0]},
    "report": {**PARAMETERS["report"], "comparisons": []},
}


@pytest.fixture(scope="module")
def undisturbed(mini_model: MiniModel, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """In it MLflow makes its tables itself, as everywhere but in tests."""
    return run_undisturbed(
        tmp_path_factory.mktemp("faults") / "undisturbed", mini_model.path, **BY_RL
    )


def press_ctrl_c(project: Path, columns: int, point: str, call: int, kept: str) -> None:
    """At a terminal that wide, in a run: it is heard at once, and what is done is ``kept``."""
    terminal = Terminal(columns)
    wound = {"point": point, "call": call, "after": True, "signal": signal.SIGINT}
    code = start(project, wound, output=terminal.path).wait(timeout=600)
    said = COLOURS.sub("", terminal.read()).replace("\r\n", "\n")
    assert code == 130, said
    assert "Traceback" not in said
    heard, _, end = said.partition("\nstopping in order; what is finished or saved by now")
    assert f"2 cells: {kept} and reused" in end, said
    assert "The same command goes on from there." in end
    lines = [line for line in re.split("[\r\n]", heard) if "█" in line]
    assert all(len(line) < columns for line in lines)
    assert lines or point == "drawing examples"


def test_a_run_that_is_stopped_and_killed_again_and_again_comes_to_the_same(
    mini_model: MiniModel, empty_store: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """In preparing, in training and in evaluating; the same command goes on."""
    assert undisturbed.steps == len(TASKS) * UPDATES
    project = make_project(tmp_path / "project", mini_model.path, **BY_RL)
    shutil.copy(empty_store, project)
    press_ctrl_c(project, 80, "drawing examples", 1, "2 to train, 0 to resume, 0 finished")
    # In the last update of the first cell: there are states of updates 2 and 4.
    wound = {"point": "optimizer step", "call": 5, "after": False, "signal": signal.SIGKILL}
    assert run(project, wound) == -signal.SIGKILL, (project / "log.txt").read_text()
    # That of update 4 is damaged: the training goes on from update 2, and takes three more.
    DAMAGES["newest state: a bit flipped"](project)
    # In the second cell's third update: there is a state of the second.
    press_ctrl_c(project, 120, "optimizer step", 3 + 3, "0 to train, 1 to resume, 1 finished")
    # After its validations: the first test.
    press_ctrl_c(project, 80, "evaluation", 5, "0 to train, 0 to resume, 2 finished")
    assert run(project) == 0, (project / "log.txt").read_text()
    log = (project / "log.txt").read_text()
    assert "\x1b" not in log and "\r" not in log  # where there is no terminal
    assert read_outcome(project) == undisturbed.outcome
    assert leftovers(project) == []
    lost = 2 + 1  # updates 3 and 4 of the first cell, 3 of the second
    assert steps_taken(project) == undisturbed.steps + lost


def test_a_run_on_ray_that_loses_a_worker_comes_to_the_same(
    mini_model: MiniModel, empty_store: Path, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    """Two cells on two machines, each with as many threads as the undisturbed run had."""
    project = make_project(tmp_path / "project", mini_model.path, **BY_RL)
    shutil.copy(empty_store, project)
    third = {"point": "optimizer step", "call": 3, "after": False, "signal": signal.SIGKILL}
    with two_machines() as cluster:
        code = run(project, {**third, "once": str(project / "struck")}, ON_RAY, at(cluster))
    log = (project / "log.txt").read_text()
    assert code == 0, log
    assert log.count("given again (1 of 3)") == 1
    assert read_outcome(project) == undisturbed.outcome
    assert leftovers(project) == []
    # The update that was under way is all that was lost: there was a state of the one before.
    assert steps_taken(project) == undisturbed.steps


@pytest.mark.slow
def test_a_cell_on_two_machines_that_loses_one_goes_on_with_another(
    mini_model: MiniModel, tmp_path: Path
) -> None:
    """And comes to what two processes of one machine come to."""
    together = {"compute.num_processes": 2, "training.prompts_per_update": 4}
    together["training.updates"] = 40  # a cell is still trained when the machine is lost
    alone, project = (
        make_project(tmp_path / name, mini_model.path) for name in ("alone", "project")
    )
    assert run(alone, None, "--params=" + ",".join(f"{k}={v}" for k, v in together.items())) == 0
    with two_machines() as cluster:
        machines = {**together, "cluster.train.machines": 2}
        command = start(project, None, ON_RAY, at(cluster, **machines))
        while not any(project.glob("data/06_models/*/*/s0/*/resume/checkpoint-*")):
            assert command.is_alive(), (project / "log.txt").read_text()
            time.sleep(0.05)
        raylet = psutil.Process(raylet_pid(cluster))  # of a machine that the cell is on
        cluster.add_node(num_cpus=1)
        # With all that runs on it: what is left without a raylet would train on to the end.
        for process in (*raylet.children(recursive=True), raylet):
            process.kill()
        code = command.wait(1200)
    log = (project / "log.txt").read_text()
    assert code == 0, log
    assert log.count("given again (1 of 3)") == 1
    assert read_outcome(project) == read_outcome(alone)
    assert leftovers(project) == []
