"""`mlflow server` as one process: the command starts a second one, which imports all of it again.

python -m tests.support.mlflow_server [options of mlflow server]
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Mapping
from typing import Any

from mlflow import cli, server


def serve(command: list[str], *, extra_env: Mapping[str, str], **_: Any) -> None:
    """Be the process that `python -m uvicorn ...` would be."""
    os.environ.update(extra_env)
    sys.argv = command[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    os.setsid()  # to be killed with its workers
    server._exec_cmd = serve  # type: ignore[assignment]
    cli.cli(["server", *sys.argv[1:]])
