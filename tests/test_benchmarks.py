"""The benchmarks measure what they say, on sizes that take a moment."""

import importlib
import json
import math
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project
from kedro.io import CatalogConfigResolver
from pandas import DataFrame

from benchmarks import __main__ as command
from benchmarks import completion_length, gpu_step, harness, orchestration, plain_grid
from benchmarks.inputs import PROMPT
from othink_pipeline.cells.manifest_dataset import KINDS
from othink_pipeline.cells.methods import resolve_method
from othink_pipeline.config_loader import GridConfigLoader
from othink_pipeline.training.kl import Constant, KLController
from tests.support import peers


@pytest.mark.parametrize("name", command.NAMES)
def test_every_benchmark_is_there(name: str) -> None:
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_an_unknown_benchmark_is_named() -> None:
    with pytest.raises(SystemExit, match=r"no benchmark grpo_stop\. There are: grpo_step, "):
        command.main(["grpo_stop"])


def test_the_plain_script_has_the_settings_of_the_default() -> None:
    conf = {
        key: value
        for file in (harness.ROOT / "conf/base").glob("parameters_*.yml")
        for key, value in yaml.safe_load(file.read_text()).items()
    }
    methods, training, rl = conf["methods"], conf["training"], conf["rl"]
    assert list(plain_grid.TASKS) == conf["experiment"]["tasks"]
    assert list(plain_grid.METHODS) == conf["experiment"]["methods"]
    assert conf["experiment"]["seeds"] == [plain_grid.SEED]
    assert training["prompts_per_update"] == plain_grid.PROMPTS
    assert training["validation_examples"] == plain_grid.VALIDATION_ITEMS
    assert training["updates"] / training["checkpoint_every_updates"] == plain_grid.CHECKPOINTS
    assert rl["completions_per_prompt"] == plain_grid.COPIES
    for block in (rl, conf["evaluation"]):
        assert block["max_completion_tokens"] == plain_grid.TOKENS
    assert float(methods["sft"]["learning_rate"]) == plain_grid.SFT_RATE
    assert float(rl["learning_rate"]) == plain_grid.RL_RATE
    assert not rl["unbiased_kl"]
    for task in plain_grid.TASKS:
        grpo, grpo_d = (resolve_method(conf, name, task).kl for name in ("grpo", "grpo_d"))
        assert grpo == Constant(schedule="constant", weight=plain_grid.KL_WEIGHT[task])
        low, high = plain_grid.KL_BOUNDS[task]
        share = plain_grid.EXPLORE_SHARE
        assert grpo_d.model_dump(exclude={"schedule"}) == {
            "low": low,
            "high": high,
            "explore_share": share,
        }
        trainer = SimpleNamespace(beta=None)
        callback = plain_grid.SetKLWeight(trainer, low, high)
        controller = KLController(grpo_d, 48)
        for update in range(48):
            callback.on_step_begin(None, SimpleNamespace(global_step=update, max_steps=48), None)
            assert trainer.beta == pytest.approx(controller.next_weight(update, 0.0), rel=1e-9)
    assert conf["data_preparation"]["prompt"] == PROMPT


def test_cells_that_do_nothing_are_still_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run can plan them, and the catalog can keep what they make."""
    monkeypatch.setattr(GridConfigLoader, "current", GridConfigLoader.current)
    bootstrap_project(harness.ROOT)
    loader = GridConfigLoader(
        str(harness.ROOT / "conf"), "base", base_env="base", default_run_env="base"
    )
    whole = pipelines["cross_task"]
    empty = orchestration.without_work(whole)
    assert {node.name for node in empty.nodes} == {node.name for node in whole.nodes}
    cells = [node.identity["cell"] for node in empty.nodes if node.tags & {"sft", "rl"}]
    assert cells == [node.identity["cell"] for node in whole.nodes if node.tags & {"sft", "rl"}]
    resolver = CatalogConfigResolver(loader["catalog"])
    kinds = {"text.TextDataset": str}
    for node in empty.nodes:
        made = node.run(dict.fromkeys(node.inputs))
        for name, value in made.items():
            config = resolver.resolve_pattern(name)
            kind = config.get("dataset", config)["type"]
            if kind.endswith("ManifestDataset"):
                assert isinstance(value, KINDS[config["kind"]][0]), name
            elif kind.startswith("pandas.") or kind in kinds:
                assert isinstance(value, kinds.get(kind, DataFrame)), name


def test_peers_take_turns_in_processes_of_their_own() -> None:
    both = [harness.Peer(peers.add_up, 10, 3), harness.Peer(peers.add_up, 20, 3)]
    harness.take_turns(both, 3)
    for peer, result in zip(both, (13, 23), strict=True):
        assert len(peer.seconds) == 3
        assert all(0 <= seconds < 10 for seconds in peer.seconds)
        found, memory = peer.finish()
        assert found == result
        assert memory > 0


def test_a_peer_that_dies_is_no_result() -> None:
    with pytest.raises(RuntimeError, match="a peer died: exit code 1"):
        harness.Peer(peers.fail)


def test_functions_run_in_turns_after_one_to_warm_up() -> None:
    order: list[str] = []
    seconds = harness.interleave(2, a=lambda: order.append("a"), b=lambda: order.append("b"))
    assert order == ["a", "b"] * 3
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 2, "b": 2}


def test_a_record_becomes_a_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (harness, command):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "ROOT", tmp_path)
    rows: list[dict[str, Any]] = [{"peer": "ours", "s": 0.12345, "n": 1000}]
    harness.record("grid", "The grid", rows, "As it is.")
    shown = "| peer | s | n |\n|---|---|---|\n| ours | 0.123 | 1,000 |"
    assert shown in capsys.readouterr().out
    section = command._section("grid")
    assert section.startswith(f"\n## The grid\n\nAs it is.\n\n{shown}\n")
    measured = json.loads((tmp_path / "grid.json").read_text())["measured"]
    assert all(value in section for value in measured.values())


def test_a_machine_without_git_and_kedro_has_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> str:
        if name == "kedro":
            raise PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(harness, "version", installed)
    monkeypatch.setenv("PATH", "")
    on = harness.measured_on()
    assert on["versions"] == "torch 1.0, transformers 1.0, trl 1.0, mlflow 1.0"
    assert on["commit"] == "unknown"


def test_a_row_that_is_measured_again_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    for copies, seconds in ((2, 1.0), (8, 2.0), (2, 3.0)):
        row = {"G": copies, "completion tokens": 32, "others": 32, "s": seconds}
        rows = harness.merge("x", row, ("G", "completion tokens", "others"))
        harness.store("x", "X", rows, "")
    assert [(row["G"], row["s"]) for row in rows] == [(8, 2.0), (2, 3.0)]
    assert all(row["measured"].count(", ") == 1 for row in rows)


def test_what_is_missing_of_the_lengths_is_told() -> None:
    rows = [
        {"G": copies, "completion tokens": tokens, "others": others}
        for copies in (2, 8, 16)
        for tokens, others in completion_length.SIZES
        if (copies, tokens, others) not in ((8, 512, 512), (8, 1024, 40))
    ]
    assert completion_length.not_measured(rows[:0]).startswith(" Not measured: G = 2; G = 4; G = 8")
    told = completion_length.not_measured(rows)
    assert told == " Not measured: G = 4; G = 8 (512, 1,024 beside 40)."


def test_one_benchmark_that_fails_keeps_no_other_from_running(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran: list[str] = []

    def run(words: list[str], **_: Any) -> SimpleNamespace:
        ran.append(words[-1])
        return SimpleNamespace(returncode=int(words[-1] == "benchmarks.grid"))

    monkeypatch.setattr(command, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(command, "write_page", lambda: ran.append("page"))
    with pytest.raises(SystemExit, match=r"failed: grid\."):
        command.main(["grid", "evaluation"])
    assert ran == ["benchmarks.grid", "benchmarks.evaluation", "page"]
    command.main(["--page"])
    assert ran[3:] == ["page"]


def test_what_was_not_measured_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    assert "Not run: `" in command._section("gpu_step")


def test_the_gpu_benchmark_computes_the_same_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_step, "ROUNDS_OF_TOKENS", 3)
    monkeypatch.setattr(gpu_step, "COPIES", 3)
    rows = list(gpu_step.measure("tiny", "cpu", prompts=2, lengths=(3, 5), attention="eager"))
    assert [row["part"] for row in rows] == [*gpu_step.PARTS, *gpu_step.PARTS]
    for row in rows:
        assert row["attention"] == "eager"
        assert row["largest difference"] < 1e-4
        assert row["stock at batch size 1"] < 1e-4
        assert row["times faster"] == pytest.approx(row["stock s"] / row["ours s"])
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))


def test_what_does_not_fit_the_memory_is_no_end() -> None:
    """Nor what does not after it has once; the other peer goes on."""
    calls: list[str] = []

    def run(name: str) -> None:
        calls.append(name)
        if name == "stock" and calls.count("stock") == 2:
            raise torch.OutOfMemoryError

    both = {name: {"reference": partial(run, name)} for name in ("stock", "ours")}
    found = gpu_step.take_turns(both, "reference", 3, "cpu")
    assert calls == ["stock", "ours", "stock", "ours", "ours", "ours"]
    assert all(map(math.isnan, found["stock"]))
    assert found["ours"][0] > 0
    nothing = {"part": "reference", "s": math.nan}
    assert harness.table([nothing]).endswith("| reference | – |")


def test_both_ways_of_sampling_end_alike() -> None:
    """Without ends all have the most tokens; with them the tokens are the same until one falls."""
    model = gpu_step.build("tiny", "cpu").eval()
    rows = [gpu_step.draw_prompt(model, seed) for seed in (0, 1, 1)]

    def completions(ends: tuple[int, ...]) -> dict[str, list[list[int]]]:
        found = {}
        for name, generate in gpu_step.generators(model, rows, ends).items():
            torch.manual_seed(0)
            found[name] = generate(6)
        return found

    even = completions(())
    assert even["ours"] == even["stock"]
    assert {len(ids) for ids in even["ours"]} == {6}
    ended = completions((even["ours"][0][2],))
    assert ended["ours"][0] == even["ours"][0][:3] == ended["stock"][0][:3]


def test_the_picture_has_as_many_tokens_as_the_processor_makes_of_it() -> None:
    """480 x 320 at patches of 14 and 2 x 2 of them a token: 34 x 22 patches, 17 x 11 tokens."""
    prompt = gpu_step.draw_prompt(gpu_step.build("tiny", "cpu"), seed=0)
    assert prompt.image_fields["image_grid_thw"].tolist() == [[1, 22, 34]]
    assert int(prompt.token_fields["mm_token_type_ids"].sum()) == 17 * 11
