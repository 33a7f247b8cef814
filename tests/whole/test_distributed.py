"""One cell trained by several processes, of one machine or two: the same numbers, no orphans."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver, parent_process
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import psutil
import pytest
import torch
from safetensors.torch import load_file

from othink_pipeline.cells import accelerate_config, processes
from othink_pipeline.cells.accelerate_config import (
    check_launcher,
    find_device_fault,
    launcher_environment,
)
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.job import CellJob
from othink_pipeline.cells.keys import Settings, training_key
from othink_pipeline.cells.manifests import Checkpoint
from othink_pipeline.cells.processes import work as train
from othink_pipeline.cells.train import train_cell
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.data.manifests import Examples
from othink_pipeline.models.manifests import BaseModelCheckpoint
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.tracking import runs
from othink_pipeline.training.parameters import RL, SFT, Lora
from tests.conftest import TASKS, MiniModel, shipped_health
from tests.support import commands, light_work
from tests.support.manifests import examples_of
from tests.support.methods import small_evaluation, small_rl, small_sft
from tests.support.prepared import FOLDERS, STORE, prepare_project

Result = tuple[Any, pd.DataFrame]

BUDGET: dict[str, Any] = {
    "updates": 3,
    "prompts_per_update": 4,
    "validation_examples": 3,
    "weight_decay": 0.01,
}
METHODS: dict[str, SFT | RL] = {
    "sft": small_sft(**BUDGET, target="steps"),
    "grpo_d": small_rl(**BUDGET, max_completion_tokens=6),
}
HEALTH = shipped_health()
COMPUTE: dict[str, Any] = {
    "share_prompts": True,
    "bf16": False,
    "num_processes": 2,
    "launcher": None,
    "micro_batch_size": None,
    "gradient_checkpointing": False,
    "vllm": None,
    "resume_every_updates": 1,
    "fresh": False,
}
MODEL = ModelSettings(dtype="float32", attention="sdpa", min_pixels=None, max_pixels=None)
EVALUATION = small_evaluation()
SHIPPED = Path(__file__).parents[2] / "conf/base/accelerate"
WHAT = Path("what_to_do")
"""The file in the project that tells ``work``."""


@pytest.fixture(scope="module")
def prepared(
    mini_model: MiniModel, empty_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project with a base model, examples and a store, and nothing trained."""
    project = tmp_path_factory.mktemp("distributed")
    prepare_project(project, mini_model, empty_store)
    return project


@pytest.fixture(scope="module")
def alone(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """The cell of SFT, trained by one process."""
    project = tmp_path_factory.mktemp("alone") / "project"
    shutil.copytree(prepared, project)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)  # and back in the end
        enter(project)
        patch.delenv(runs.PARENT_VARIABLE, raising=False)
        manifest, history = call(num_processes=1)
    assert isinstance(manifest, Checkpoint), manifest
    return manifest.model_copy(update={"path": str(project / manifest.path)}), history


@pytest.fixture
def project(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of its own, with a store of its own, in which nothing is trained."""
    shutil.copytree(prepared, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")  # and back in the end
    enter(tmp_path / "project")
    monkeypatch.delenv(runs.PARENT_VARIABLE, raising=False)
    yield tmp_path / "project"
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)


def enter(project: Path) -> None:
    os.chdir(project)
    mlflow.set_tracking_uri(f"sqlite:///{project / STORE}")


def call(method: str = "sft", seed: int = 3, **compute: Any) -> Result:
    folders = [Path(FOLDERS.examples, task) for task in TASKS]
    return train_cell(
        Cell("counting", method, seed),
        METHODS[method],
        BaseModelCheckpoint.read(Path("base.json"), ""),
        tuple(Examples.read_folder(folder, "") for folder in folders),
        Settings(EVALUATION, FOLDERS, MODEL, Compute(**{**COMPUTE, **compute}), shipped_health()),
    )


def weights(manifest: Checkpoint) -> dict[str, torch.Tensor]:
    return dict(load_file(Path(manifest.path, "model.safetensors")))


def curve(result: Result) -> dict[tuple[str, int], float]:
    """All values but the time, each recorded once."""
    history = result[1]
    keys = list(zip(history["metric"], history["step"], strict=True))
    assert len(set(keys)) == len(keys)
    values = dict(zip(keys, history["value"], strict=True))
    return {key: value for key, value in values.items() if key[0] != "cost/seconds"}


def assert_alike(first: Result, second: Result, rel: float, atol: float) -> None:
    for manifest in (first[0], second[0]):
        assert isinstance(manifest, Checkpoint), manifest
    found, asked = curve(first), curve(second)
    for values in (found, asked):  # TRL's is the mean of the passes' means, of unequal lengths
        for update in (1, 2, 3):
            values.pop(("train/token_accuracy", update), None)
    assert found == pytest.approx(asked, rel=rel, abs=1e-5)
    one, other = weights(first[0]), weights(second[0])
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-3, atol=atol, msg=name)


@contextmanager
def on_two_machines(what: str) -> Iterator[None]:
    """Train in one process on each of two machines: what starts them here are two processes."""

    def train_together(job: CellJob, run_id: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        second = processes.Share(2, 1, endpoint=endpoint)
        share = (job, run_id, second, mlflow.get_tracking_uri())
        other = commands.processes.Process(target=be_second_machine, args=share)
        other.start()
        try:
            processes.train_here(job, run_id, processes.Share(2, 0, endpoint=endpoint))
        except processes.ProcessFailedError:
            other.join(60)
            if other.exitcode == -signal.SIGKILL:
                raise processes.MachineLostError from None
            raise
        finally:
            other.join(60)
            other.kill()
        assert other.exitcode == 0

    token = processes.train_on.set(train_together)
    try:
        with pytest.MonkeyPatch.context() as patch:
            write_what(what)
            patch.setattr(processes, "START_METHOD", "forkserver")
            patch.setattr(processes, "work", work)
            yield
    finally:
        processes.train_on.reset(token)


def be_second_machine(job: CellJob, run_id: str, share: processes.Share, tracking_uri: str) -> None:
    mlflow.set_tracking_uri(tracking_uri)
    processes.START_METHOD, processes.work = "fork", work  # it has imported all, and done nothing
    processes.train_here(job, run_id, share)


@pytest.fixture
def workers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the processes do what ``work`` of this file says."""

    def start(what: str) -> None:
        write_what(what)
        monkeypatch.setattr(processes, "work", work)

    return start


def write_what(what: str) -> None:
    WHAT.write_text(what)


def workers_of(project: Path) -> list[psutil.Process]:
    """Those that still live, spawned or forked from the server."""
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return [
        process
        for process in psutil.process_iter(["cmdline", "cwd", "pid"])
        if process.info["cwd"] == str(project)
        and process.info["pid"] != server
        and re.search(
            "--multiprocessing-fork|multiprocessing.forkserver",
            " ".join(process.info["cmdline"] or ()),
        )
    ]


def rows_of(project: Path) -> int:
    (journal,) = project.glob("data/models/counting/*/s3/*/journal.jsonl")
    return len(journal.read_text().splitlines())


# --- The same numbers


def test_supervised_training_is_the_same(alone: Result, project: Path) -> None:
    """On two machines, of one process each, of which the second is lost on the way."""
    with on_two_machines("lose_machine"), pytest.raises(processes.MachineLostError):
        call()
    begun = rows_of(project)
    with on_two_machines("train"):
        together = call()
    assert rows_of(project) > begun
    assert together[0].weights_changed > 0.01
    assert_alike(together, alone, 1e-3, 1e-4)


def test_reinforcement_learning_is_the_same_on_the_same_completions(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two passes of each process, too. Left to itself each process samples otherwise."""
    fix_completions(monkeypatch.setattr)
    alone = call("grpo_d", num_processes=1)
    values = curve(alone)
    kl_weights = [values["train/kl_weight", update] for update in (1, 2, 3)]
    assert kl_weights == pytest.approx([0.1, 0.4, 0.7])
    assert values["train/kl", 3] > 1e-3
    assert values["train/format_reward", 1] == 0.5
    with on_two_machines("fixed"):
        together = call("grpo_d", micro_batch_size=4)
    assert_alike(together, alone, 1e-2, 2e-3)


def fix_completions(patch: Callable[[Any, str, Any], None]) -> None:
    """Every second completion of a prompt has the format; all are of one length."""
    from othink_pipeline.training.shared_prompts import SharedPromptTrainer

    def generate(trainer: Any, *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        tokenizer = trainer._tokenizer
        end = trainer.eos_token_ids[0]
        formatted = tokenizer("<think></think><answer>7</answer>")["input_ids"]
        rows, seen = [], {}
        for prompt in trainer._prompts:
            count = seen[id(prompt)] = seen.get(id(prompt), -1) + 1
            start = (int(prompt.ids.sum()) + count) % 90
            other = [100 + (start + place) % 90 for place in range(len(formatted))]
            rows.append([*(other if count % 2 else formatted), end])
        return rows, None

    patch(SharedPromptTrainer, "_generate_single_turn", generate)


# --- Ended on the way


@pytest.mark.parametrize(
    "what", ["kill_partner", pytest.param("terminate_run", marks=pytest.mark.slow)]
)
def test_a_training_that_was_ended_goes_on_to_the_same_end(
    alone: Result,
    project: Path,
    workers: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """With two passes an update. ``work`` ends one of its processes, or the run, at update 2."""
    monkeypatch.setattr(processes, "START_METHOD", "forkserver")
    workers(what)
    if what == "kill_partner":
        manifest, _ = call(micro_batch_size=1)
        assert manifest.failed.startswith("ProcessKilledError: process 1 of 2 was ended by SIGKILL")
        (journal,) = project.glob("data/models/counting/*/s3/*/journal.jsonl")
        assert "train/loss" in journal.read_text()
    else:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as hooks.py does
        with pytest.raises(KeyboardInterrupt):
            call(micro_batch_size=1)
        signal.signal(signal.SIGTERM, before)
    assert not workers_of(project)
    begun = rows_of(project)
    workers("train")
    resumed = call(micro_batch_size=1)
    assert rows_of(project) > begun
    assert_alike(resumed, alone, 1e-3, 1e-4)


@pytest.mark.slow
def test_no_process_outlives_a_run_that_was_killed(project: Path) -> None:
    write_what("kill_run")
    command = [sys.executable, __file__]
    run = subprocess.run(command, cwd=project, timeout=200, check=False)
    assert run.returncode == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers_of(project), timeout=20)
    assert not alive
    assert isinstance(call()[0], Checkpoint)


@pytest.mark.slow
def test_sharded_weights_are_the_same_and_go_on(
    alone: Result, project: Path, workers: Callable[[str], None]
) -> None:
    """FSDP2 on a CPU: Accelerate would pass it over there, so ``work`` puts it in."""
    launcher = str(SHIPPED / "fsdp.yaml")
    workers("fsdp_kill_partner")
    assert "SIGKILL" in call(launcher=launcher)[0].failed
    workers("fsdp")
    sharded = call(launcher=launcher)
    assert math.isnan(sharded[0].weights_changed)
    both = (
        (manifest, history[history["metric"] != "cost/weights_changed"])
        for manifest, history in (sharded, alone)
    )
    assert_alike(*both, 1e-3, 1e-4)


def test_processes_are_spawned_with_the_environment_that_there_is(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are everywhere but in tests, which fork them: that takes no import of torch."""
    monkeypatch.setattr(processes, "work", light_work.note)
    monkeypatch.setenv("OTHINK_TEST", "today")
    assert "left no manifest" in call()[0].failed
    (run,) = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.kind = 'cell'", output_format="list"
    )
    job = ["counting/sft/s3", run.info.run_id, mlflow.get_tracking_uri()]
    for rank in ("0", "1"):
        given = json.loads((project / f"process_{rank}.json").read_text())
        assert given == [*job, rank, rank, "2", "today"]


def test_a_failure_is_told_as_the_process_told_it(
    project: Path, workers: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "START_METHOD", "forkserver")
    workers("fail")
    manifest, _ = call()
    assert manifest.failed == "ProcessFailedError: process 1 of 2: ValueError: the disk is on fire"
    assert "ERROR   process 1: failed\nTraceback" in Path("said").read_text()
    assert not workers_of(project)


def test_a_machine_that_is_told_to_gives_up_though_nothing_has_begun(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*_: Any) -> Callable[..., None]:
        return lambda *_: os.kill(os.getpid(), processes.GIVE_UP)

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", launch)
    one_of_two = partial(processes.train_here, share=processes.Share(machines=2))
    token = processes.train_on.set(one_of_two)
    try:
        with pytest.raises(processes.MachineLostError):
            call()
    finally:
        processes.train_on.reset(token)
    assert signal.getsignal(processes.GIVE_UP) is signal.SIG_DFL


def test_a_thread_starts_processes_too(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", lambda *_: lambda *_: None)
    with ThreadPoolExecutor() as pool:
        assert "left no manifest" in pool.submit(call).result()[0].failed


# --- What is launched


@pytest.mark.parametrize("name", ["ddp", "zero2", "zero3", "fsdp"])
def test_accelerate_reads_the_configurations_that_are_shipped(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    file = str(SHIPPED / f"{name}.yaml")
    kind = {"ddp": "MULTI_GPU", "fsdp": "FSDP"}.get(name, "DEEPSPEED")
    assert load_config_from_file(file).distributed_type == kind
    compute = Compute(**{**COMPUTE, "launcher": file, "bf16": True})
    made = launcher_environment(compute)
    assert made["ACCELERATE_MIXED_PRECISION"] == "bf16"
    assert made.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == {"zero2": "2", "zero3": "3"}.get(name)
    assert made.get("FSDP_VERSION") == ("2" if name == "fsdp" else None)
    assert not {"OMP_NUM_THREADS", "PYTHONPATH"} & made.keys()
    if kind == "DEEPSPEED":
        monkeypatch.setattr(accelerate_config, "find_spec", lambda _: None)
        with pytest.raises(ConfigurationError, match="DeepSpeed, which is not installed"):
            check_launcher(compute, HEALTH, [])
        monkeypatch.setattr(accelerate_config, "find_spec", lambda name: name)
        gathered = made.get("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL")
        assert gathered == ("true" if name == "zero3" else None)
    check_launcher(compute, HEALTH, [])


@pytest.mark.parametrize(
    ("content", "bf16", "message"),
    [
        ("distributed_type: MULTI_GPU\nmixed_precision: fp16", False, "'fp16' contradicts"),
        ("distributed_type: MULTI_GPU\nmixed_precision: bf16", False, "'bf16' contradicts"),
        ("distributed_type: MULTI_GPU\nmixed_precision: no", True, "False contradicts"),
        ("distributed_type: MULTI_GPU\nnum_machines: 2", False, "num_machines = 2"),
        ("distributed_type: TPU", False, "distributed_type = 'TPU'. Allowed: MULTI_GPU"),
        ("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}", False, "fsdp_version = 1"),
        ("distributed_type: FSDP", False, "fsdp_version = 1"),
        (
            "distributed_type: FSDP\nfsdp_config: {fsdp_version: 2, "
            "fsdp_state_dict_type: FULL_STATE_DICT}",
            False,
            "fsdp_state_dict_type = 'FULL_STATE_DICT'",
        ),
        ("[", False, "no YAML"),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: ds.json}",
            False,
            "deepspeed_config_file = 'ds.json': what another file says is in no training's key",
        ),
        ("", False, "distributed_type = None"),
    ],
)
def test_a_launcher_that_cannot_work_is_refused(
    tmp_path: Path, content: str, bf16: bool, message: str
) -> None:
    file = tmp_path / "launcher.yaml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"compute\.launcher = .*launcher\.yaml") as error:
        check_launcher(Compute(**{**COMPUTE, "launcher": str(file), "bf16": bf16}), HEALTH, [])
    assert message in error.value.message


@pytest.mark.parametrize("precision", ["", "mixed_precision: no", "mixed_precision: 'no'"])
def test_a_launcher_may_say_what_the_parameters_say(tmp_path: Path, precision: str) -> None:
    file = tmp_path / "launcher.yaml"
    file.write_text(f"distributed_type: MULTI_GPU\nnum_processes: 8\n{precision}")
    compute = Compute(**{**COMPUTE, "launcher": str(file)})
    check_launcher(compute, HEALTH, [])
    assert launcher_environment(compute)["ACCELERATE_MIXED_PRECISION"] == "no"


def test_what_sharded_weights_cannot_do_is_refused_before_it_is_due() -> None:
    def check(name: str, health: Any = HEALTH, method: str = "sft", **changes: Any) -> None:
        compute = Compute(**{**COMPUTE, "launcher": str(SHIPPED / f"{name}.yaml"), "bf16": True})
        check_launcher(compute, health, [METHODS[method].model_copy(update=changes)])

    skipping = HEALTH.model_copy(update={"kl_overflow": "skip_batch"})
    with pytest.raises(ConfigurationError, match=r"health\.kl_overflow = 'skip_batch'"):
        check("zero2", skipping)
    check("fsdp", skipping)
    adapters = Lora(rank=2, alpha=4.0, dropout=0.0, modules="all-linear", merge=True)
    with pytest.raises(ConfigurationError, match=r"lora\.merge = True"):
        check("fsdp", lora=adapters)
    check("fsdp", lora=adapters.model_copy(update={"merge": False}))
    for name in ("zero2", "zero3", "fsdp"):
        with pytest.raises(ConfigurationError, match=r"\(sync_ref_model = True\) is not saved"):
            check(name, method="grpo_d", sync_ref_model=True)
    check("ddp", method="grpo_d", sync_ref_model=True)


def test_the_key_covers_what_a_launcher_says_and_not_where_it_stands(tmp_path: Path) -> None:
    def key(file: Path | None, processes: int = 2) -> str:
        settings = {**COMPUTE, "num_processes": processes, "launcher": file and str(file)}
        blocks = Settings(EVALUATION, FOLDERS, MODEL, Compute(**settings), HEALTH)
        cell = Cell("counting", "sft", 0)
        return training_key(cell, METHODS["sft"], "0", [examples_of("counting")], blocks)

    here, there = tmp_path / "here.yaml", tmp_path / "there.yaml"
    here.write_text("distributed_type: MULTI_GPU")
    there.write_text("# the same\ndistributed_type: MULTI_GPU")
    assert key(here) == key(there) != key(None) != key(None, 1)
    there.write_text("distributed_type: MULTI_GPU\ndynamo_config: {dynamo_backend: INDUCTOR}")
    assert key(here) != key(there)


@pytest.mark.parametrize(
    ("count", "launcher", "gpus", "message"),
    [
        (1, None, 2, "2 GPUs can be seen, and compute.num_processes = 1"),
        (4, None, 2, "compute.num_processes = 4, and 2 GPUs can be seen"),
        (2, "fsdp.yaml", 0, "FSDP needs GPUs"),
        (2, "zero3.yaml", 0, "DEEPSPEED needs GPUs"),
        (2, "ddp.yaml", 0, None),
        (2, "fsdp.yaml", 2, None),
        (2, None, 0, None),
        (2, None, 4, None),
        (1, None, 1, None),
    ],
)
def test_processes_and_gpus_must_go_together(
    count: int, launcher: str | None, gpus: int, message: str | None
) -> None:
    file = None if launcher is None else str(SHIPPED / launcher)
    compute = Compute(**{**COMPUTE, "num_processes": count, "launcher": file})
    fault = find_device_fault(compute, gpus)
    assert (fault is None) if message is None else (fault is not None and message in fault[0])


def test_gpus_are_counted_on_each_machine() -> None:
    compute = Compute(**{**COMPUTE, "num_processes": 16})
    assert find_device_fault(compute, 8, machines=2) is None
    told = find_device_fault(compute, 4, machines=2)
    assert told is not None and "num_processes: 8" in told[1]
    assert find_device_fault(compute, 8) is not None


# --- As a process


def work(job: CellJob, run_id: str, tracking_uri: str) -> None:
    """Train as one of the processes, which may do harm at update 2."""
    from othink_pipeline.training import loop

    what = WHAT.read_text()
    run = parent_process()
    assert run is not None and run.pid is not None
    started_by = run.pid
    take = loop.Watcher._take_checkpoint
    doing: dict[str, Callable[[], None]] = {
        "kill_partner": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "kill_run": lambda: os.kill(started_by, signal.SIGKILL),
        "lose_machine": lambda: os.kill(started_by, signal.SIGKILL),
        "terminate_run": lambda: os.kill(started_by, signal.SIGTERM),
        "fail": fail,
    }

    def harm(watcher: Any, update: int, model: Any) -> None:
        due = 0 if what == "fail" else 2  # told early: there is nothing to wait for
        if update == due and os.environ["RANK"] == "1" and what in doing:
            doing[what]()
        take(watcher, update, model)

    if what == "fail":  # what is forked writes where the server of the forks did
        os.dup2(os.open("said", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if what.startswith("fsdp"):
        shard_on_cpu()
        what = what.removeprefix("fsdp").removeprefix("_")
    loop.Watcher._take_checkpoint = harm  # type: ignore[method-assign]
    if what == "fixed":
        fix_completions(setattr)
    train(job, run_id, tracking_uri)


def shard_on_cpu() -> None:
    """Let Accelerate take FSDP for the processes of a CPU, too."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    from othink_pipeline.cells import job as cell_job

    begin = AcceleratorState.__init__

    def begin_sharded(state: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        begin(state, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            state.distributed_type, state.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = begin_sharded
    cell_job.find_device_fault = lambda *_: None  # type: ignore[assignment]


def fail() -> None:
    raise ValueError("the disk is on fire")


if __name__ == "__main__":  # a run that is to be killed
    processes.work = work
    enter(Path.cwd())
    call()
