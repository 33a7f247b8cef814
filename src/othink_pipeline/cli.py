"""`kedro run` of this project: Kedro's own, but for how it ends when it is stopped."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run

from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.config_loader import GridConfigLoader
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.preflight.plan import describe_plan, plan_grid, without_fresh

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C has stopped: 128 + SIGINT."""


@click.group()
def cli() -> None:
    """Take the place of Kedro's commands of the same names."""


def _run(**options: Any) -> Any:
    assert kedro_run.callback
    try:
        return kedro_run.callback(**options)
    except KeyboardInterrupt:
        end = f"Stopped. {_kept()}"
        with suppress(OSError):  # the terminal is gone
            click.echo(end, err=True)
        raise SystemExit(INTERRUPTED) from None


run = click.Command("run", params=kedro_run.params, callback=_run, help=kedro_run.help)
cli.add_command(run)


def _kept() -> str:
    """What there is of the grid, and how to go on."""
    loader = GridConfigLoader.current
    if loader is None:
        return "Nothing had begun."
    try:
        parameters = Parameters.read(loader["parameters"])
        kept = parameters.compute.model_copy(update={"fresh": False})
        planned = plan_grid(parameters.model_copy(update={"compute": kept}))
    except ConfigurationError:  # that is why it was stopped
        return "Nothing was changed."
    every = parameters.compute.resume_every_updates
    change = without_fresh(parameters.compute)
    return (
        f"What is there of the grid:\n{describe_plan(planned)}\n"
        f"The same command{change} goes on from there. Done again is what a training did after its "
        f"last state (one every {every} updates), and the test that ran."
    )
