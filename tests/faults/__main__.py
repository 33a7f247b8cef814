"""Try every fault; write what happened to docs/faults.md. ``make faults``, about half an hour.

python -m tests.faults [--only TEXT]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.conftest import BASE, make_mini_model, write_splits
from tests.faults import on_ray, scenarios
from tests.faults.project import ROOT, make_project
from tests.faults.scenarios import Found, Undisturbed

PAGE = ROOT / "docs" / "faults.md"
MARK = "<!-- written by make faults -->"


def list_scenarios(
    undisturbed: Undisturbed,
) -> dict[str, Callable[[Path], Found]]:
    """Every scenario by name, to be called with a fresh project."""
    named: dict[str, Callable[[Path], Found]] = {}
    for name, wound in scenarios.choose_kills(undisturbed.passed).items():
        named[name] = partial(scenarios.kill, wound=wound, undisturbed=undisturbed)
    for name in scenarios.DAMAGES:
        named[name] = partial(scenarios.damage, name=name, undisturbed=undisturbed)
    for name in scenarios.DAMAGES_AFTER:
        named[name] = partial(scenarios.damage_finished, name=name, undisturbed=undisturbed)
    named["MLflow server killed and started again"] = partial(
        scenarios.lose_server, undisturbed=undisturbed
    )
    named["two runs at once"] = partial(scenarios.run_twice_at_once, undisturbed=undisturbed)
    named |= on_ray.list_scenarios(undisturbed)
    if os.geteuid() == 0:
        named["disk full"] = partial(scenarios.fill_disk, undisturbed=undisturbed)
    return named


def main() -> int:
    """Exit code 1 if any scenario ends otherwise than an undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="scenarios whose name holds this text")
    only = parser.parse_args().only
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        model = make_mini_model(write_splits(folder, BASE), folder).path
        undisturbed = scenarios.run_undisturbed(folder / "undisturbed", model)
        for number, (name, scenario) in enumerate(list_scenarios(undisturbed).items()):
            if only not in name:
                continue
            # A folder of its own: MLflow's client keeps the store of an address open.
            project = make_project(folder / f"project_{number}", model)
            found = scenario(project)
            verdict = "; ".join(found.faults) or "the same result"
            print(f"{name}: {found.happened}: {verdict}; {found.lost_steps} lost", flush=True)
            rows.append((name, found.happened, str(found.lost_steps), verdict))
            if found.faults:
                print((project / "log.txt").read_text()[-4000:])
            shutil.rmtree(project)
    if not only:
        header = ("fault", "what happened", "updates taken twice", "the next run")
        lines = [header, ("---",) * len(header), *rows]
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        text = PAGE.read_text().partition(MARK)[0]
        PAGE.write_text(f"{text}{MARK}\n\n{table}\n")
    return int(any(row[3] != "the same result" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
