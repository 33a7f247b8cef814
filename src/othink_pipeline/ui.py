"""Open MLflow at the right page: `python -m othink_pipeline.ui`, or `make ui`.

The page is the transfer matrix of the latest `kedro run`. Without a tracking server it starts one
on this machine, for as long as the command lasts.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import click
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
from kedro.utils import find_kedro_project

from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.tracking import views


@click.command()
@click.option("--env", default=None, help="The environment whose mlflow.yml says where runs are.")
def main(env: str | None) -> None:
    """Open MLflow at the transfer matrix of the latest run."""
    project = find_kedro_project(Path.cwd())
    if project is None:
        raise ConfigurationError(f"{Path.cwd()}: not in a Kedro project. Go to its folder.")
    bootstrap_project(project)
    with KedroSession.create(project, env=env) as session:
        # kedro-mlflow makes the store of its mlflow.yml the current one.
        cast(KedroSession, session).load_context()
    links = views.latest_links()
    page = next(iter(links.values()), views.server_address())
    for title, link in links.items():
        click.echo(f"{title:<20} {link}")
    if _answers(page):
        click.launch(page)
        return
    address = urlsplit(page)
    server = _start_server(str(address.port))
    try:
        _wait_for(page)
        click.launch(page)
        click.echo("Ctrl-C ends it.")
        server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()


def _answers(page: str) -> bool:
    address = urlsplit(page)
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((address.hostname, address.port or 443)) == 0


def _start_server(port: str) -> subprocess.Popen[bytes]:
    import mlflow

    store = mlflow.get_tracking_uri()
    if store.startswith("http"):
        raise ConfigurationError(f"{views.server_address()}: the tracking server does not answer.")
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--port", port]
    return subprocess.Popen(command)


def _wait_for(page: str) -> None:
    from urllib3 import PoolManager, Retry

    patience = Retry(connect=60, backoff_factor=0.1, backoff_max=1)
    PoolManager().request("GET", page, retries=patience)


if __name__ == "__main__":
    main()
