"""A `kedro run` that dies, or has its server die, at a chosen call of a chosen function.

python -m tests.faults.victim WOUND STEPS [options of kedro run]

WOUND is JSON: {} for none, else {"point": a key of POINTS, "call": 1.., "after": before or after
that call, "signal": 9, "pid": whom to send it to; null: this process itself, or "fill": a file that
takes what room the disk has instead}. STEPS is a file that grows by one byte with every optimizer
step; {"count": FILE} writes how often each point was passed.

On Ray the points are those of its workers, each of which counts for itself; "once" is a file that
says that one of them has struck, "pid" may be "driver".
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from othink_pipeline.cluster.surroundings import enter
from othink_pipeline.cluster.worker import run_node

WOUND, STEPS = "OTHINK_TEST_WOUND", "OTHINK_TEST_STEPS"
"""Environment variables that tell Ray's workers what ``main`` was told."""
POINTS = {
    "drawing examples": "othink_pipeline.data.examples:update_digest",
    "generation": "othink_pipeline.training.shared_prompts:sample",
    "reward": "othink_pipeline.training.rewards:score",
    "optimizer step": "torch.optim:AdamW.step",
    "state write": "transformers:Trainer._save_optimizer_and_scheduler",
    "checkpoint write": "othink_pipeline.models.load:save_model",
    "publish": "os:replace",
    "journal write": "othink_pipeline.tracking.journal:Journal._append",
    "evaluation": "othink_pipeline.evaluation.predictions:complete",
    "MLflow write": "mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore.log_batch",
    "report": "othink_pipeline.pipelines.cross_task.nodes:report_markdown",
}


def main(wound: dict[str, Any], steps: Path, options: list[str]) -> None:
    """Wrap every point, then run Kedro in this process."""
    passed: Counter[str] = Counter()
    if any("RayRunner" in option for option in options):
        from othink_pipeline.cluster import worker
        from tests.faults import victim  # this module by its name, which Ray's workers know

        worker.run_node = victim.run_hurt_node
        if wound.get("pid") == "driver":
            wound["pid"] = os.getpid()
        os.environ[WOUND], os.environ[STEPS] = json.dumps(wound), str(steps)
    else:
        wrap_points(wound, steps, passed)

    from othink_pipeline.__main__ import main as kedro_run

    try:
        kedro_run(options)
    finally:
        if "count" in wound:
            Path(wound["count"]).write_text(json.dumps(passed))


def run_hurt_node(*arguments: Any) -> Any:
    """What Ray's workers do in a run that is hurt."""
    enter(arguments[1])  # the environment, among others
    _wrap_points_once()
    return run_node(*arguments)


@cache
def _wrap_points_once() -> None:
    wrap_points(json.loads(os.environ[WOUND]), Path(os.environ[STEPS]), Counter())


def wrap_points(wound: dict[str, Any], steps: Path, passed: Counter[str]) -> None:
    """Let every point count its calls, and be where this process is hurt."""

    def strike() -> None:
        if "once" in wound:
            try:
                Path(wound["once"]).touch(exist_ok=False)
            except FileExistsError:
                return
        if "fill" in wound:
            free_bytes = shutil.disk_usage(Path(wound["fill"]).parent).free
            with open(wound["fill"], "wb") as file:
                os.posix_fallocate(file.fileno(), 0, free_bytes - 20_000)
        else:
            os.kill(wound.get("pid") or os.getpid(), wound["signal"])

    def wrap(point: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            passed[point] += 1
            hit = (point, passed[point]) == (wound.get("point"), wound.get("call"))
            if hit and not wound["after"]:
                strike()
            result = function(*args, **kwargs)
            if point == "optimizer step":
                with steps.open("ab") as file:
                    file.write(b".")
            if hit and wound["after"]:
                strike()
            return result

        return counted

    for point, place in POINTS.items():
        module, _, path = place.partition(":")
        *owners, name = path.split(".")
        owner = import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        setattr(owner, name, wrap(point, getattr(owner, name)))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    main(json.loads(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
