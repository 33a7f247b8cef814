"""All that a cell is trained from, without a `kedro run` that makes it."""

import shutil
from pathlib import Path

import mlflow
import pytest

from othink_pipeline.cells.parameters import Folders
from othink_pipeline.data.parameters import DataPreparation
from othink_pipeline.data.preparation import CELL_SPLITS, prepare_splits
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.tracking import records, runs
from tests.conftest import PROMPT, TASKS, MiniModel, shipped

FOLDERS = Folders(  # relative: a copy of the project is a project of its own
    examples="data/examples", checkpoints="data/models", predictions="data/predictions"
)
STORE = "mlflow.db"


def prepare_project(project: Path, mini_model: MiniModel, empty_store: Path) -> None:
    """Put a base model, examples of both tasks and a store into it; nothing is trained."""
    shutil.copy(empty_store, project / STORE)
    sizes = {"base": 1, "train": 12, "validation": 4, "test": 4}
    preparation = DataPreparation.model_validate(
        shipped("data_preparation", splits=sizes, prompt=PROMPT)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.delenv(runs.PARENT_VARIABLE, raising=False)
        for task in TASKS:
            prepare_splits(preparation, task, CELL_SPLITS, Path(FOLDERS.examples, task))
        shutil.copytree(mini_model.path, "model")
        mlflow.set_tracking_uri(f"sqlite:///{project / STORE}")
        mlflow.set_experiment("tests")
        run_id = runs.start_run("base/b0", "base_model", {})
        model_id = records.log_checkpoint(run_id, "base/b0", 0, Path("model"), {})
    base = BaseModelCheckpoint(
        path="model", digest=mini_model.digest, run_id=run_id, model_id=model_id
    )
    base.write(project / "base.json")
