"""A training that was killed ends bit for bit as one that was not.

Run as a script this file is one process: of a distributed training, or one that kills itself.
"""

import json
import logging
import os
import pickle
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback
from trl import SFTConfig

from othink_pipeline.core import files
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import MANIFEST, digest_folder, write_json
from othink_pipeline.models.load import load_model
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.models.prompts import CannotShareError
from othink_pipeline.scoring.kinds import EXACT
from othink_pipeline.training import loop, resume, sft, shared_prompts
from othink_pipeline.training import rl as rl_training
from othink_pipeline.training.dynamic_kl import DynamicKLTrainer
from othink_pipeline.training.kl import Accuracy, Adaptive, ExploreExploit
from othink_pipeline.training.parameters import RL, Lora
from othink_pipeline.training.resume import newest_checkpoint, update_of
from othink_pipeline.training.rows import rl_rows, sft_rows
from othink_pipeline.training.sft import ResumableSFTTrainer
from tests.conftest import (
    PROMPT,
    MiniModel,
    grpo_config,
    shipped,
    shipped_health,
)
from tests.support import commands
from tests.support.methods import small_rl, small_sft
from tests.support.rewards import reward

Splits = Mapping[str, Mapping[str, Any]]
COPIES = 4
ADAPTIVE = Adaptive(schedule="adaptive", start=0.3, target=0.02, gain=2.0, low=0.01, high=5.0)
ACCURACY = Accuracy(schedule="accuracy", weight=0.9)
DIP = ExploreExploit(schedule="explore_exploit", low=0.1, high=0.7, explore_share=0.6)
BUDGET = {"updates": 5, "lr_schedule": "cosine", "weight_decay": 0.01}
SFT_PARAMETERS = small_sft(**BUDGET)
RL_PARAMETERS = small_rl(**BUDGET, kl=ADAPTIVE)
COMPUTE = Compute(**shipped("compute", resume_every_updates=2))
LORA = Lora(rank=2, alpha=4.0, dropout=0.1, modules="all-linear", merge=False)
TIMES = {
    "step_time",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",  # Transformers' mean over the updates of the last attempt
}


class Killed(Exception):
    """The process is gone."""


class Kill(TrainerCallback):
    """Ends a training in the middle of the update after ``update``, its gradients computed."""

    def __init__(self, update: int | None) -> None:
        self.update = update

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.update:
            raise Killed


class Case(NamedTuple):
    """What is trained, and after which updates it is killed."""

    kills: list[int]
    save: int = 2
    updates: int = 6
    kind: str = "rl"
    kl: Any = ADAPTIVE
    examples: int = 12
    settings: Mapping[str, Any] = {}


class Outcome(NamedTuple):
    weights: dict[str, torch.Tensor]
    curve: list[dict[str, Any]]
    next_numbers: list[float]
    begun_at: int


def build(
    model_path: Path, examples: Any, case: Case, folder: Path, killed: int | None = None
) -> Any:
    """A trainer made from scratch, as a new process makes it."""
    model, processor = load_model(str(model_path))
    settings: dict[str, Any] = {
        "max_steps": case.updates,
        "per_device_train_batch_size": 2 * COPIES if case.kind == "rl" else 2,
        "learning_rate": 1.0e-2,
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": case.save,
        **case.settings,
    }
    examples = examples.take(case.examples)
    shared: dict[str, Any] = {
        "model": model,
        "processing_class": processor,
        "callbacks": [Kill(killed)],
    }
    if case.kind == "rl":
        rl: dict[str, Any] = {"beta": 1e-6, "max_completion_length": 8, "temperature": 1.0}
        return DynamicKLTrainer(
            **shared,
            args=grpo_config(folder, **{**rl, **settings}),
            reward_funcs=[reward],
            train_dataset=rl_rows(examples, PROMPT, processor),
            kl=case.kl,
        )
    common = {
        "bf16": False,
        "use_cpu": True,
        "seed": 3,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "activation_checkpointing": False,
        "completion_only_loss": True,
        "max_length": None,
    }
    return ResumableSFTTrainer(
        **shared,
        args=SFTConfig(output_dir=str(folder), **{**common, **settings}),
        train_dataset=sft_rows(examples, PROMPT, SFT_PARAMETERS, EXACT),
    )


def run(trainer: Any, folder: Path) -> Outcome:
    """Train from the newest checkpoint on."""
    newest = newest_checkpoint(folder)
    trainer.train(resume_from_checkpoint=newest and str(newest))
    curve = [
        {name: value for name, value in entry.items() if name not in TIMES}
        for entry in trainer.state.log_history
    ]
    numbers = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return Outcome(weights, curve, numbers, 0 if newest is None else update_of(newest))


def run_killed(model_path: Path, examples: Any, case: Case, folder: Path) -> Outcome:
    """The same training, killed, and begun again by a process that knows the folder alone."""
    for killed in case.kills:
        with pytest.raises(Killed):
            run(build(model_path, examples, case, folder, killed), folder)
        disturb_streams()
    return run(build(model_path, examples, case, folder), folder)


def disturb_streams() -> None:
    """A new process does not find the random streams as the old one left them."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)


def assert_same(outcome: Outcome, whole: Outcome) -> None:
    assert outcome.curve == whole.curve
    assert outcome.weights.keys() == whole.weights.keys()
    for name, weight in whole.weights.items():
        assert torch.equal(outcome.weights[name], weight), name
    assert outcome.next_numbers == whole.next_numbers


FOLLOWING = {"sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6}
CASES = {
    "killed-before-and-after-the-first-checkpoint-in-the-dip": Case([1, 3, 3], updates=4, kl=DIP),
    "with-a-reference-that-follows": Case(
        [6],  # between two moves, from a checkpoint between two others
        save=5,
        updates=7,
        settings=FOLLOWING,
    ),
    "iterations": Case([3], save=3, kl=ACCURACY, settings={"num_iterations": 2}),
    "micro-batches": Case(
        [1],
        save=1,
        updates=3,
        settings={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
    ),
    "sft-at-a-shuffled-epoch-boundary": Case([2], kind="sft", examples=4),
    "sft-after-shuffled-epochs": Case(
        [5], updates=7, kind="sft", examples=10, settings={"gradient_accumulation_steps": 2}
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_killed_training_ends_as_an_uninterrupted_one(
    mini_model: MiniModel, splits: Splits, tmp_path: Path, case: Case
) -> None:
    examples = splits["counting"]["train"]
    whole = run(build(mini_model.path, examples, case, tmp_path / "whole"), tmp_path / "whole")
    killed = run_killed(mini_model.path, examples, case, tmp_path / "killed")
    assert killed.begun_at == max(case.kills) // case.save * case.save
    assert_same(killed, whole)
    losses = [entry["loss"] for entry in whole.curve if "loss" in entry]
    assert len(set(losses)) == case.updates  # else a repeated batch would do as well


def test_completions_that_serve_later_updates_share_their_prompts_again(
    mini_model: MiniModel, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One prompt computed for each completion would be right, too, and slow."""
    case = Case([3], save=3, updates=4, settings={"num_iterations": 2})
    prompts: list[int] = []
    stock = DynamicKLTrainer._compute_loss

    def watch(self: Any, model: Any, inputs: Any) -> torch.Tensor:
        prompts.append(len({id(prompt) for prompt in inputs["encoded"]}))
        return stock(self, model, inputs)

    monkeypatch.setattr(DynamicKLTrainer, "_compute_loss", watch)
    run_killed(mini_model.path, splits["counting"]["train"], case, tmp_path)
    assert prompts == [2] * 5


def test_whether_prompts_can_be_shared_is_not_asked_again(
    mini_model: MiniModel, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise CannotShareError("no mask")

    case, examples = Case([2], updates=3), splits["counting"]["train"]
    with monkeypatch.context() as patch:
        patch.setattr(shared_prompts, "pack", refuse)
        whole = run(build(mini_model.path, examples, case, tmp_path / "1"), tmp_path / "1")
        with pytest.raises(Killed):
            trainer = build(mini_model.path, examples, case, tmp_path / "2", 2)
            run(trainer, tmp_path / "2")
    monkeypatch.setattr(DynamicKLTrainer, "_check", refuse)
    resumed = run(build(mini_model.path, examples, case, tmp_path / "2"), tmp_path / "2")
    assert_same(resumed, whole)
    assert {entry["shared_prompts"] for entry in whole.curve if "loss" in entry} == {0.0}


FALL_BACK = Case([5], kind="sft")


@pytest.fixture(scope="module")
def interrupted(
    mini_model: MiniModel, splits: Splits, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What an SFT killed after update 5 of 6 leaves: checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Killed):
        run(build(mini_model.path, splits["counting"]["train"], FALL_BACK, folder, 5), folder)
    return folder


@pytest.fixture
def left(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(interrupted, tmp_path / "left"))


def truncate(checkpoint: Path) -> None:
    file = checkpoint / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def lose_the_manifest(checkpoint: Path) -> None:
    (checkpoint / files.MANIFEST).unlink()


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "rng_state.pth").unlink()


def lose_all(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_the_manifest, lose_a_file, lose_all])
def test_a_damaged_checkpoint_is_passed_over_and_said(
    left: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    assert newest_checkpoint(left) == left / "checkpoint-4"
    assert not caplog.records
    damage(left / "checkpoint-4")
    with caplog.at_level(logging.WARNING, "othink_pipeline.training.resume"):
        assert newest_checkpoint(left) == left / "checkpoint-2"
    assert str(left / "checkpoint-4") in caplog.text
    assert "goes on from the checkpoint before" in caplog.text
    truncate(left / "checkpoint-2")
    assert newest_checkpoint(left) is None


def test_without_checkpoints_there_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_a_training_falls_back_and_replaces_what_was_damaged(
    mini_model: MiniModel, splits: Splits, left: Path, tmp_path: Path
) -> None:
    examples = splits["counting"]["train"]
    shutil.copytree(left / "checkpoint-4", left / "checkpoint-10")
    for number in (4, 10):
        truncate(left / f"checkpoint-{number}")
    whole = run(build(mini_model.path, examples, FALL_BACK, tmp_path / "w"), tmp_path / "w")
    resumed = run(build(mini_model.path, examples, FALL_BACK, left), left)
    assert resumed.begun_at == 2
    assert_same(resumed, whole)
    # Counting the damaged one of update 10, the two newest would be another two.
    assert sorted(path.name for path in left.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert newest_checkpoint(left) == left / "checkpoint-4"


def test_the_newest_two_stay_and_hold_no_pickled_settings(
    mini_model: MiniModel, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    replace = os.replace

    def watch(source: Path, target: Path) -> None:
        if Path(source).is_dir():  # not the file of a manifest
            seen.append(sorted(path.name for path in tmp_path.glob("checkpoint-*")))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    case = Case([], kind="sft", save=1, updates=4)
    run(build(mini_model.path, splits["counting"]["train"], case, tmp_path), tmp_path)
    names = [f"checkpoint-{update}" for update in (1, 2, 3)]
    # The oldest goes when the new one is there, and after the last update none is saved.
    assert seen == [[], names[:1], names[:2], names]
    assert sorted(path.name for path in tmp_path.iterdir()) == names[1:]
    assert not list(tmp_path.rglob("training_args*"))


class Malicious:
    """Makes a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "process_0.pt"])
def test_no_code_in_a_checkpoint_is_run(
    mini_model: MiniModel, splits: Splits, left: Path, tmp_path: Path, name: str
) -> None:
    checkpoint, trace = left / "checkpoint-4", tmp_path / "run"
    torch.save({"state": Malicious(trace)}, checkpoint / name)
    write_json(checkpoint / MANIFEST, {"digest": digest_folder(checkpoint)})
    assert newest_checkpoint(left) == checkpoint
    with pytest.raises(ConfigurationError, match="nothing in it was run"):
        run(build(mini_model.path, splits["counting"]["train"], FALL_BACK, left), left)
    assert not trace.exists()
    torch.load(checkpoint / name, weights_only=False)
    assert trace.exists()  # it would have been


def test_pickled_weights_are_not_looked_at(
    mini_model: MiniModel, splits: Splits, left: Path, tmp_path: Path
) -> None:
    checkpoint, trace = left / "checkpoint-4", tmp_path / "run"
    (checkpoint / "model.safetensors").unlink()
    with (checkpoint / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weight": Malicious(trace)}, file)
    write_json(checkpoint / MANIFEST, {"digest": digest_folder(checkpoint)})
    with pytest.raises(OSError, match=r"model\.safetensors"):
        run(build(mini_model.path, splits["counting"]["train"], FALL_BACK, left), left)
    assert not trace.exists()


def test_what_lay_on_another_gpu_comes_to_this_processs_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / resume.Resumable.PARTS_FILE, {})
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:7")
        torch.save({"completions": torch.ones(2)}, tmp_path / "process_0.pt")
    monkeypatch.setattr(Trainer, "_load_optimizer_and_scheduler", lambda *_: None)
    restored: list[dict[str, torch.Tensor]] = []
    monkeypatch.setattr(resume.Resumable, "_restore_own_state", lambda _, own: restored.append(own))
    trainer = object.__new__(resume.Resumable)
    here = torch.device("cpu")
    trainer.args = SimpleNamespace(world_size=1, process_index=0, device=here)
    trainer.parts = {}
    trainer._load_optimizer_and_scheduler(str(tmp_path))
    assert restored[0]["completions"].device == here


def test_updates_that_were_not_logged_are_not_saved(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    case = Case([], kind="sft", save=3, settings={"logging_steps": 2})
    with pytest.raises(ValueError, match="multiple of logging_steps"):
        run(build(mini_model.path, splits["counting"]["train"], case, tmp_path), tmp_path)


def test_how_often_to_save_can_be_changed_on_the_way(
    mini_model: MiniModel, splits: Splits, left: Path
) -> None:
    case = FALL_BACK._replace(save=5)
    run(build(mini_model.path, splits["counting"]["train"], case, left), left)
    assert sorted(path.name for path in left.iterdir()) == ["checkpoint-4", "checkpoint-5"]


class Cell(NamedTuple):
    """What ``training.train`` handed on, in its order, and what it returned."""

    events: list[tuple[str, int]]
    curve: dict[int, dict[str, float]]
    trained: loop.Trained
    weights: dict[str, torch.Tensor]


@pytest.fixture
def train_cell(
    mini_model: MiniModel, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Cell]]:
    """Train a cell on a clock that says 1 s a loss, 100 s a saved state, 1000 s a score or log."""
    now = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    events: list[tuple[str, int]] = []

    def train(
        parameters: Any, folder: str, killed: int | None = None, dtype: str = "float32"
    ) -> Cell:
        curve: dict[int, dict[str, float]] = {}
        weights: dict[str, torch.Tensor] = {}
        events.clear()

        def log(update: int, metrics: dict[str, float]) -> None:
            pass_time(1000)
            events.append(("log", update))
            curve[update] = metrics
            if update == killed:
                raise Killed

        def checkpoint(update: int, model: Any, processor: Any, state: Any) -> dict[str, float]:
            pass_time(1000)
            events.append(("checkpoint", update))
            weights.update({name: value.clone() for name, value in model.state_dict().items()})
            return {}

        job = loop.Job(
            name="a cell",
            model_path=str(mini_model.path),
            model=ModelSettings(**shipped("model", dtype=dtype)),
            examples=splits["counting"]["train"],
            prompt=PROMPT,
            parameters=parameters,
            compute=COMPUTE.model_copy(update={"bf16": dtype == "bfloat16"}),
            health=shipped_health(),
            seed=3,
            folder=tmp_path / folder,
        )
        trained = loop.train(
            rl_training if isinstance(parameters, RL) else sft,
            job,
            log,
            checkpoint,
            lambda *_: None,
        )
        return Cell(list(events), curve, trained, weights)

    write, step = resume.Resumable._write_state, TrainerCallback.on_step_begin

    def watch_write(self: Any, folder: Path) -> None:
        pass_time(100)
        write(self, folder)
        events.append(("saved", self.state.global_step))

    def watch_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, loop.Watcher):
            pass_time(1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(resume.Resumable, "_write_state", watch_write)
    monkeypatch.setattr(TrainerCallback, "on_step_begin", watch_step)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now)
    yield train


@pytest.mark.parametrize("parameters", [RL_PARAMETERS, SFT_PARAMETERS], ids=["rl", "sft"])
def test_a_cell_hands_on_what_came_after_its_newest_checkpoint_and_counts_all(
    train_cell: Callable[..., Cell], parameters: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole = train_cell(parameters, "whole")
    first, second = [("log", 1)], [("log", 2), ("checkpoint", 2), ("saved", 2)]
    later = [("log", 3), ("log", 4), ("checkpoint", 4), ("saved", 4)]
    later += [("log", 5), ("checkpoint", 5)]  # no more is saved: nothing follows
    assert whole.events == [("checkpoint", 0), *first, *second, *later]
    assert "goes on" not in caplog.text

    with pytest.raises(Killed):
        train_cell(parameters, "killed", killed=3)
    disturb_streams()
    with caplog.at_level(logging.INFO, "othink_pipeline.training"):
        resumed = train_cell(parameters, "killed")
    assert resumed.events == later
    assert "a cell goes on from update 2: " in caplog.text
    assert resumed.curve == {update: whole.curve[update] for update in (3, 4, 5)}
    assert all(torch.equal(resumed.weights[name], w) for name, w in whole.weights.items())
    # Update 3 was computed twice, and counts once.
    assert whole.trained.seconds == 5
    assert resumed.trained == whole.trained


@pytest.mark.parametrize("changes", [{"freeze_vision": True}, {"lora": LORA}], ids=lambda c: min(c))
def test_weights_of_two_types_go_on_with_their_bits(
    train_cell: Callable[..., Cell], changes: dict[str, Any]
) -> None:
    """What is trained is float32, in a model that is bfloat16."""
    parameters = RL_PARAMETERS.model_copy(update={"updates": 3, **changes})
    whole = train_cell(parameters, "whole", dtype="bfloat16")
    assert {weight.dtype for weight in whole.weights.values()} == {torch.float32, torch.bfloat16}
    with pytest.raises(Killed):
        train_cell(parameters, "killed", killed=3, dtype="bfloat16")
    disturb_streams()
    resumed = train_cell(parameters, "killed", dtype="bfloat16")
    assert resumed.curve == {3: whole.curve[3]}
    assert all(torch.equal(resumed.weights[name], w) for name, w in whole.weights.items())


KILLED_WHILE_SAVING = Case([], updates=5)
DISTRIBUTED = Case([3], 3, 5, settings={"num_iterations": 2, **FOLLOWING})


def test_a_process_killed_before_its_checkpoint_is_in_place_leaves_the_one_before(
    mini_model: MiniModel, splits: Splits, tmp_path: Path
) -> None:
    examples = splits["counting"]["train"]
    examples.to_parquet(tmp_path / "examples.parquet")
    folder = tmp_path / "killed"
    options, said = ("kill", str(mini_model.path), str(tmp_path)), tmp_path / "said"
    child = commands.start(__name__, *options, cwd=Path.cwd(), output=said)
    assert child.wait(300) == -signal.SIGKILL, said.read_text()
    assert sorted(path.name for path in folder.iterdir()) == [".checkpoint-4.new", "checkpoint-2"]
    assert newest_checkpoint(folder) == folder / "checkpoint-2"
    assert [path.name for path in folder.iterdir()] == ["checkpoint-2"]
    case = KILLED_WHILE_SAVING
    whole = run(build(mini_model.path, examples, case, tmp_path / "whole"), tmp_path / "whole")
    resumed = run(build(mini_model.path, examples, case, folder), folder)
    assert resumed.begun_at == 2
    assert_same(resumed, whole)


def test_two_processes_resume_as_one(mini_model: MiniModel, splits: Splits, tmp_path: Path) -> None:
    """Each has random streams, completions and prompts of its own."""
    splits["counting"]["train"].to_parquet(tmp_path / "examples.parquet")
    commands.run_two_processes(
        __name__, "resume", str(mini_model.path), str(tmp_path), folder=tmp_path
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["next_numbers"] != second["next_numbers"]
    names = {path.name for path in (tmp_path / "killed" / "checkpoint-3").iterdir()}
    assert {"rng_state_0.pth", "rng_state_1.pth", "process_0.pt", "process_1.pt"} <= names


def main(what: str, model_path: Path, folder: Path) -> None:
    """Train in a process that kills itself while it saves, or as one of two that resume."""
    from datasets import load_dataset

    examples = load_dataset(
        "parquet", data_files=str(folder / "examples.parquet"), cache_dir=str(folder), split="train"
    )
    if what == "resume":
        whole = run(build(model_path, examples, DISTRIBUTED, folder / "whole"), folder / "whole")
        killed = run_killed(model_path, examples, DISTRIBUTED, folder / "killed")
        assert killed.begun_at == 3
        assert_same(killed, whole)
        outcome = {"next_numbers": killed.next_numbers}
        (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(outcome))
        return

    replace = os.replace

    def die(source: Path, target: Path) -> None:
        if Path(target).name == "checkpoint-4":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = die  # type: ignore[assignment]
    run(build(model_path, examples, KILLED_WHILE_SAVING, folder / "killed"), folder / "killed")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
