"""A few of the faults of `make faults`: one project is killed three times, and once damaged."""

import signal
from pathlib import Path
from typing import Any

from tests.conftest import MiniModel
from tests.faults.project import leftovers, make_project, read_outcome, run, steps_taken
from tests.faults.scenarios import DAMAGES, run_undisturbed

WOUNDS: list[dict[str, Any]] = [
    # In the last update of the first cell, by RL: there are states of updates 2 and 4.
    {"point": "optimizer step", "call": 5, "after": False, "signal": signal.SIGKILL},
    # That of update 4 is damaged before this: the training goes on from update 2.
    {"point": "checkpoint write", "call": 2, "after": True, "signal": signal.SIGKILL},
    {"point": "evaluation", "call": 9, "after": False, "signal": signal.SIGTERM},
]


def test_a_run_that_is_killed_again_and_again_comes_to_the_same(
    mini_model: MiniModel, tmp_path: Path
) -> None:
    undisturbed = run_undisturbed(tmp_path / "undisturbed", mini_model.path)
    assert undisturbed.steps == 4 * 5
    project = make_project(tmp_path / "project", mini_model.path)
    codes = []
    for number, wound in enumerate(WOUNDS):
        codes.append(run(project, wound))
        if number == 0:
            DAMAGES["newest state: a bit flipped"](project)
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 1], (project / "log.txt").read_text()
    assert run(project) == 0, (project / "log.txt").read_text()
    assert read_outcome(project) == undisturbed.outcome
    assert leftovers(project) == []
    assert undisturbed.steps < steps_taken(project) < 2 * undisturbed.steps
