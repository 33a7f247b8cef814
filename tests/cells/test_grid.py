"""Cells: their names, their order."""

from othink_pipeline.cells.grid import Grid


def test_cells_come_task_by_task_then_method_by_method() -> None:
    grid = Grid(("counting", "geometry"), {"sft": "sft", "grpo": "rl"}, (3, 1))
    assert [cell.name for cell in grid.cells] == [
        "counting.sft.s3",
        "counting.sft.s1",
        "counting.grpo.s3",
        "counting.grpo.s1",
        "geometry.sft.s3",
        "geometry.sft.s1",
        "geometry.grpo.s3",
        "geometry.grpo.s1",
    ]
