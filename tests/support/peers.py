"""What peers of a benchmark do in its tests: their processes import this and nothing heavy."""

from benchmarks.harness import Turn


def add_up(turn: Turn, start: int, steps: int) -> int:
    """Take so many steps, from ``start``."""
    for _ in range(steps):
        turn()
        start += 1
    turn()
    return start


def fail(turn: Turn) -> None:
    """Die before the first step."""
    raise ValueError("no such thing")
