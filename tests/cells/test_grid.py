"""Cells: their names, their order."""

from othink_pipeline.cells.grid import Cell, Grid


def test_a_cell_is_named_by_task_method_and_seed() -> None:
    assert Cell("counting", "grpo_d", 7).name == "counting.grpo_d.s7"
    assert Cell("counting", "grpo_d", 7)._asdict() == {
        "task": "counting",
        "method": "grpo_d",
        "seed": 7,
    }


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
