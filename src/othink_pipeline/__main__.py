"""Run the packaged project: `othink-pipeline` or `python -m othink_pipeline`."""

import sys
from pathlib import Path
from typing import Any

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project


def main(*args: Any, **kwargs: Any) -> Any:
    """Call `kedro run` on this package with the given command-line arguments."""
    package_name = Path(__file__).parent.name
    configure_project(package_name)

    # An interactive caller wants the outputs back, not an exit.
    kwargs["standalone_mode"] = not hasattr(sys, "ps1")

    run = find_run_command(package_name)
    return run(*args, **kwargs)


if __name__ == "__main__":
    main()
