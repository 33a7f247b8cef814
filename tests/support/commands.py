"""Python commands in processes of their own that need not import the large libraries first.

Each is forked from a server that has done so once for all commands of the tests. What a process is
to the product stays as it is: its own pid, environment, folder, signals and exit code.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from kedro.framework import project as kedro_project

# Other people's: a test may bring its own copy of this project's code.
_IMPORTED = [
    "tests.support.versions",
    "IPython",
    "datasets",
    "kedro.framework.cli",
    "kedro_mlflow.framework.hooks",
    "matplotlib.pyplot",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "peft",
    "scipy.stats",
    "torch",
    "transformers.models.qwen2_vl.modeling_qwen2_vl",
    "trl.trainer.grpo_trainer",
    "trl.trainer.sft_trainer",
    "tests.support.preloaded",
]
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(_IMPORTED)


class Command:
    """A command that was started."""

    def __init__(self, *arguments: Any) -> None:
        self._process = processes.Process(target=_work, args=arguments)
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process.pid is not None
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.is_alive()

    def send(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, timeout: float) -> int:
        """Its exit code; negative for a signal.

        Raises:
            TimeoutError: it did not end in ``timeout`` seconds; it is killed.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            raise TimeoutError(f"{self._process.name} did not end in {timeout} s")
        return code


def start(
    module: str, *options: str, cwd: Path, output: Path, env: Mapping[str, str] | None = None
) -> Command:
    """`python -m module options` in ``cwd``; what it says is appended to ``output``.

    Args:
        output: a file; or a pipe with a name, which is then to be opened and read.
    """
    environment = dict(os.environ if env is None else env)
    return Command(module, options, str(cwd), environment, str(output))


def run(
    module: str, *options: str, cwd: Path, env: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """Run `python -m module options` to its end; standard error is part of its output."""
    with tempfile.NamedTemporaryFile("r", prefix="output") as said:
        code = start(module, *options, cwd=cwd, output=Path(said.name), env=env).wait(600)
        return CompletedProcess([module, *options], code, said.read())


def run_two_processes(module: str, *options: str, folder: Path) -> None:
    """Run a command as the two processes of a distributed training on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    outputs = [folder / f"output{rank}.txt" for rank in range(2)]
    both = []
    for rank, output in enumerate(outputs):
        env = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        both.append(start(module, *options, cwd=Path.cwd(), output=output, env=env))
    for process, output in zip(both, outputs, strict=True):
        assert process.wait(300) == 0, output.read_text()


def _work(
    module: str, options: Sequence[str], cwd: str, environment: dict[str, str], output: str
) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.argv = [module, *options]
    # As `python -m` has it: where the command is called and where PYTHONPATH leads comes first.
    paths = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*paths, *(path for path in sys.path if path not in paths)]
    # Kedro chose it when it was imported, by the folder in which the server was started.
    kedro_project.LOGGING = type(kedro_project.LOGGING)()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing's processes end without them
