"""All pipelines of the project.

Each holds everything that it needs, from the data onwards; ``evaluation`` alone starts from
checkpoints that are there, and tests them again; ``report`` starts from what all models scored, and
needs none of them; ``register`` takes one to MLflow's registry; ``preflight`` makes nothing.
"""

from kedro.pipeline import Pipeline

from othink_pipeline.config_loader import read_grid
from othink_pipeline.pipelines.base_model import pipeline as base_model
from othink_pipeline.pipelines.cross_task import pipeline as cross_task
from othink_pipeline.pipelines.data_preparation import pipeline as data_preparation
from othink_pipeline.pipelines.preflight import pipeline as preflight
from othink_pipeline.pipelines.registration import pipeline as registration
from othink_pipeline.pipelines.same_task_eval import pipeline as same_task_eval
from othink_pipeline.pipelines.training import pipeline as training


def register_pipelines() -> dict[str, Pipeline]:
    """Pipelines by name; ``__default__`` is the whole experiment."""
    grid = read_grid()
    tests = same_task_eval.create_pipeline(grid) + cross_task.create_pipeline(grid)
    report = tests.only_nodes_with_tags(cross_task.FROM_CELLS)
    if not grid.trains:  # what another environment has finished must not be trained again
        return {"evaluation": tests, "report": report, "__default__": tests}
    start = data_preparation.create_pipeline(grid) + base_model.create_check(grid)
    sft_cells, rl_cells = (training.create_pipeline(grid, each) for each in ("sft", "rl"))
    cells = start + sft_cells + rl_cells
    same_task = cells + same_task_eval.create_pipeline(grid) + same_task_eval.create_table(grid)
    whole = cells + tests
    made = data_preparation.create_pipeline(grid) + base_model.create_pipeline(grid)
    rebuild = {"base_model": made} if grid.drawn else {}
    return {
        "preflight": preflight.create_pipeline(),
        "data_preparation": start,
        **rebuild,
        "sft": start + sft_cells,
        "rl": start + rl_cells,
        "same_task_eval": same_task,
        "cross_task": whole,
        "evaluation": tests,
        "report": report,
        "register": registration.create_pipeline(),
        "__default__": whole,
    }
