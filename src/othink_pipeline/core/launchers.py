"""What launchers of several processes leave in the environment of one that is alone."""

from __future__ import annotations

import os

LAUNCHERS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"),
    *("MASTER_PORT", "TORCHELASTIC_", "ACCELERATE_", "FSDP_", "PMI_RANK", "PMI_SIZE"),
    *("OMPI_COMM_WORLD_", "MV2_COMM_WORLD_"),
)
"""How the variables begin by which torch and Accelerate take a process for one of several."""


def drop_launcher_variables() -> list[str]:
    """Drop them from this process's environment; their names, sorted.

    Left over from a shell, or set by a platform for every job, they would make a training wait for
    processes that do not come.
    """
    names = sorted(name for name in os.environ if name.startswith(LAUNCHERS))
    for name in names:
        del os.environ[name]
    return names
