"""Open MLflow at the right page: `python -m othink_pipeline.ui`, or `make ui`.

The page is the transfer matrix of the environment's latest `kedro run`. Without a tracking server
it starts one on this machine, for as long as the command lasts.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import click
import mlflow
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.utils import find_kedro_project
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.tracking import views
from othink_pipeline.tracking.lifecycle import BASE_ENVIRONMENT


@click.command()
@click.option("--env", default=None, help="The environment; without it conf/base.")
def main(env: str | None) -> None:
    """Open MLflow at the transfer matrix of an environment's latest run."""
    project = find_kedro_project(Path.cwd())
    if project is None:
        raise ConfigurationError(f"{Path.cwd()}: not in a Kedro project. Go to its folder.")
    bootstrap_project(project)
    with KedroSession.create(project, env=env) as session:
        # kedro-mlflow makes the store of its mlflow.yml the current one.
        cast(KedroSession, session).load_context()
    links = views.latest_links(env or BASE_ENVIRONMENT)
    if mlflow.get_tracking_uri().startswith("http"):
        _show(links, views.server_address())
        return
    usual = urlsplit(views.server_address()).port or 0
    port = _find_port(usual)
    if port != usual:
        click.echo(f"Port {usual} is taken: where a report's link says {usual}, read {port}.")
    address = f"http://127.0.0.1:{port}"
    server = _start_server(port)
    try:
        _wait_for(f"{address}/health", server)
        _show({title: _at(link, address) for title, link in links.items()}, address)
        click.echo("Ctrl-C ends it.")
        server.wait()
    except KeyboardInterrupt:
        pass
    finally:
        server.terminate()
        server.wait()


def _show(links: dict[str, str], otherwise: str) -> None:
    """Print all links and open the first one."""
    for title, link in links.items():
        click.echo(f"{title:<20} {link}")
    click.launch(next(iter(links.values()), otherwise))


def _at(link: str, address: str) -> str:
    """A link of ``views`` on another server."""
    return address + link.removeprefix(views.server_address())


def _find_port(usual: int) -> int:
    """The usual port, or any other one where something listens there."""
    for port in (usual, 0):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)) as probe:
            return int(probe.getsockname()[1])
    raise ConfigurationError("127.0.0.1: no port is free for MLflow's server.")


def _start_server(port: int) -> subprocess.Popen[bytes]:
    # For one reader: one worker, and no queue of jobs, which take seconds and a GB to start.
    command = [sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--workers", "1"]
    environment = {
        **os.environ,
        # Not as an argument, which everybody on the machine can read: it may hold a password.
        "MLFLOW_BACKEND_STORE_URI": mlflow.get_tracking_uri(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return subprocess.Popen(command, env=environment)


def _wait_for(page: str, server: subprocess.Popen[bytes]) -> None:
    """Until it answers, for five minutes at most: a cold start on a busy machine imports much.

    Raises:
        ConfigurationError: it does not, or its server has ended.
    """
    for _ in range(300):
        with suppress(HTTPError):
            PoolManager().request("GET", page, retries=False, timeout=1)
            return
        with suppress(subprocess.TimeoutExpired):
            server.wait(1)
            break
    raise ConfigurationError(f"{page}: MLflow's server does not answer; above it says why.")


if __name__ == "__main__":
    main()
