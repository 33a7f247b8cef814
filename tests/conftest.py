"""What the tests share: a mini model small enough to train in seconds, and examples to match.

The tests talk to nobody: the environment is set before any library reads it.
"""

import os

os.environ["DO_NOT_TRACK"] = "true"  # MLflow takes nothing but "true"
os.environ["KEDRO_DISABLE_TELEMETRY"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING"] = "false"  # a thread a run, for nothing
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads are slower on tensors this small
# Tests that run as processes import what they share, too.
os.environ["PYTHONPATH"] = os.pathsep.join(
    [os.path.dirname(os.path.dirname(__file__)), *filter(None, [os.environ.get("PYTHONPATH")])]
)

import gc
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.support import versions  # noqa: F401 (before anything takes the function itself)

if TYPE_CHECKING:
    from datasets import Dataset

    from tests.support.fake_hub import FakeHub

LONGEST = ("cells", "faults", "tracking", "training", "whole")
"""Folders of tests that train, or start processes."""
TASKS = ("counting", "geometry")
BASE = {"base": 300}
"""Examples of a task that the base model is trained on."""
PROMPT = "{question}  Answer in <think> </think> and <answer> </answer> tags."


class MiniModel(NamedTuple):
    """A base model: its folder, its digest, how it was made and with which sizes."""

    path: Path
    digest: str
    facts: dict[str, Any]
    rebuild: Any


def tiny_rebuild(**changes: Any) -> Any:
    """Sizes of a mini Qwen2-VL that trains at some 10 updates a second."""
    from othink_pipeline.models.parameters import Rebuild

    sizes: dict[str, Any] = {
        "path": "data/06_models/rebuilt",
        "seed": 0,
        "vocab_size": 400,
        "context_tokens": 256,
        "hidden_size": 64,
        "layers": 2,
        "vision_size": 32,
        "vision_layers": 1,
        "updates": 80,
        "batch_size": 16,
        "learning_rate": 5.0e-3,
        "bf16": False,
        "worked_rate": 0.2,
        "last_phase_updates": 0,
        "last_phase_worked_rate": 0.2,
    }
    return Rebuild(**{**sizes, **changes})


@cache
def _read_shipped() -> dict[str, Any]:
    """Once: it takes a tenth of a second."""
    import yaml

    blocks: dict[str, Any] = {}
    for file in (Path(__file__).parents[1] / "conf/base").glob("parameters_*.yml"):
        blocks |= yaml.safe_load(file.read_text())
    return blocks


def shipped_parameters() -> dict[str, Any]:
    """All blocks of conf/base as the project ships them, to be changed at will."""
    return deepcopy(_read_shipped())


def shipped(block: str, **changes: Any) -> dict[str, Any]:
    """A block of conf/base as the project ships it, but for some keys."""
    content = deepcopy(_read_shipped()[block])
    assert changes.keys() <= content.keys()
    return {**content, **changes}


def shipped_health() -> Any:
    """The policies for numbers that go wrong, as the project ships them."""
    from othink_pipeline.training.parameters import Health

    return Health(**shipped("health"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first: begun last, it would leave the other process idle."""
    items.sort(key=lambda item: item.path.parent.name not in LONGEST)


def pytest_collection_finish() -> None:
    """All that the tests import has been imported."""
    from tests.support import preloaded  # noqa: F401


def pytest_sessionfinish() -> None:
    """What is frozen would not be cleared at the exit, and some libraries complain of that."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, "Dataset"]]:
    """Examples as ``write_splits`` returns them."""
    return write_splits(tmp_path_factory.mktemp("examples"), {**BASE, "train": 12, "test": 8})


def write_splits(folder: Path, sizes: Mapping[str, int]) -> dict[str, dict[str, "Dataset"]]:
    """Task -> split -> examples, from files as the nodes read them."""
    from othink_pipeline.data.examples import draw_examples, read_examples
    from tests.support.examples import write_examples

    tables: dict[str, dict[str, Dataset]] = {}
    for task in TASKS:
        examples = list(draw_examples(task, sizes, seed=0))
        tables[task] = {}
        for split in sizes:
            file = folder / f"{task}_{split}.arrow"
            write_examples([row for row in examples if row["split"] == split], file)
            tables[task][split] = read_examples(file)
    return tables


@pytest.fixture(scope="session")
def mini_model(
    tmp_path_factory: pytest.TempPathFactory, splits: Mapping[str, Mapping[str, "Dataset"]]
) -> MiniModel:
    """A base model as ``make_mini_model`` trains it."""
    return make_mini_model(splits, tmp_path_factory.mktemp("mini_model"))


def make_mini_model(splits: Mapping[str, Mapping[str, "Dataset"]], home: Path) -> MiniModel:
    """Train a base model until it has learnt the format and guesses the answers."""
    from othink_pipeline.core.files import digest_folder
    from othink_pipeline.models.load import save_model
    from othink_pipeline.models.pretraining import pretrain

    rebuild = tiny_rebuild()
    base = {task: tables["base"] for task, tables in splits.items()}
    model, processor, facts = pretrain(base, PROMPT, rebuild, lambda *_: None, home / "state.pt")
    folder = home / "model"
    save_model(model, processor, folder)
    return MiniModel(folder, digest_folder(folder), facts, rebuild)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables, to be copied: making them takes seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("empty_store") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def loaded(mini_model: MiniModel) -> tuple[Any, Any]:
    """The mini model, fresh from its folder, and its processor."""
    from othink_pipeline.models.load import load_model

    return load_model(str(mini_model.path))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["FakeHub"]:
    """A hub of the test's own, and an empty cache."""
    import datasets
    from huggingface_hub import constants

    from tests.support.fake_hub import FakeHub

    with FakeHub() as server:
        home = tmp_path / "hf_home"
        # What the environment says was read when the library was imported.
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HOME", str(home))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield server
        server.shutdown()


def stock_rows(examples: Any) -> Any:
    """What stock TRL is fed for GRPO: messages, pictures and answers."""
    from othink_pipeline.models.prompts import user_message

    messages = [
        [{"role": "user", "content": user_message(PROMPT, question)}]
        for question in examples["question"]
    ]
    return examples.select_columns(["image", "answer"]).add_column("prompt", messages)


def grpo_config(folder: Path, **changes: Any) -> Any:
    """TRL's settings for three short updates on a CPU, 5 prompts x 4 completions each."""
    from trl import GRPOConfig

    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "beta": 0.3,
        "loss_type": "grpo",
        "max_steps": 3,
        "per_device_train_batch_size": 5 * 4,
        "num_generations": 4,
        "max_completion_length": 10,
        "temperature": 1.3,
        "learning_rate": 5.0e-3,
        "lr_scheduler_type": "constant",
        "shuffle_dataset": False,
        "activation_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "seed": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return GRPOConfig(**{**settings, **changes})
