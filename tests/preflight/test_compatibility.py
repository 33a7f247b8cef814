"""Model, examples, parameters and machine: what does not fit is found without a training."""

import io
import json
import shutil
from collections import namedtuple
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from othink_pipeline.cells.parameters import Cluster
from othink_pipeline.data.examples import find_fault
from othink_pipeline.data.parameters import DataPreparation
from othink_pipeline.models.load import load_model
from othink_pipeline.models.prompts import encode, render_prompt
from othink_pipeline.preflight import compatibility, device, lengths
from othink_pipeline.preflight.lengths import TaskExamples
from othink_pipeline.preflight.needs import Device
from othink_pipeline.preflight.rows import Row
from othink_pipeline.scoring.kinds import EXACT
from othink_pipeline.training.parameters import SFT
from othink_pipeline.training.rows import sft_rows
from tests.conftest import PROMPT, TASKS, MiniModel, shipped
from tests.preflight.test_memory import compute, method, settings
from tests.support.methods import small_evaluation

EVALUATION = small_evaluation(max_completion_tokens=24)
Tasks = Mapping[str, Mapping[str, Dataset]]
Check = Callable[..., list[Row]]

check_examples = partial(compatibility.check_examples, answers=EXACT)


@pytest.fixture(scope="module")
def tasks(splits: Mapping[str, Mapping[str, Any]]) -> Tasks:
    return {task: {name: splits[task][name] for name in ("train", "test")} for task in TASKS}


@pytest.fixture
def folder(mini_model: MiniModel, tmp_path: Path) -> Path:
    """A copy of the mini model, to spoil."""
    return Path(shutil.copytree(mini_model.path, tmp_path / "model"))


def asked(tasks: Tasks, prompt: str = PROMPT) -> dict[str, TaskExamples]:
    return {
        task: TaskExamples(splits, dict.fromkeys(splits, prompt)) for task, splits in tasks.items()
    }


@pytest.fixture
def check(folder: Path, tasks: Tasks) -> Check:
    def run(methods: Mapping[str, Any] | None = None, prompt: str = PROMPT) -> list[Row]:
        blocks = settings(), compute()
        return compatibility.check_model(
            str(folder), asked(tasks, prompt), methods or {}, EVALUATION, *blocks
        )[0]

    return run


def edit(file: Path, *keys: str, value: Any) -> None:
    """Change an entry of a JSON file, deep in it."""
    content = block = json.loads(file.read_text())
    for key in keys[:-1]:
        block = block[key]
    assert keys[-1] in block
    block[keys[-1]] = value
    file.write_text(json.dumps(content))


def faults(rows: list[Row]) -> str:
    return "\n".join(f"{r.check}: {r.detail} {r.remedy}" for r in rows if r.outcome == "FAILED")


def row_of(rows: list[Row], part: str) -> Row:
    (found,) = [row for row in rows if part in row.check]
    return found


def test_a_sound_model_passes_every_check(check: Check, mini_model: MiniModel) -> None:
    rows = check({"grpo": method("grpo"), "sft": method("sft")})
    assert [row.outcome for row in rows] == ["ok"] * len(rows)
    for task in TASKS:
        assert "16 of them the image" in row_of(rows, task).detail
    assert f"{mini_model.facts['parameters']:,} parameters" in " ".join(row.detail for row in rows)


@pytest.mark.parametrize(
    ("key", "value"),
    [("merge_size", 1), ("patch_size", 4), ("patch_size", 16), ("temporal_patch_size", 1)],
)
def test_a_processor_of_another_model_is_found(
    check: Check, folder: Path, key: str, value: int
) -> None:
    edit(folder / "processor_config.json", "image_processor", key, value=value)
    message = faults(check())
    assert message.count("do not belong together") == len(TASKS)
    for part in (str(folder), "processor_config.json", key):
        assert part in message
    if key == "merge_size":
        assert "tokens: 64, features: 16" in message


def test_a_model_that_forgets_tokens_is_found(check: Check, folder: Path) -> None:
    layers = ["sliding_attention"] * 2
    changes = {"use_sliding_window": True, "sliding_window": 8, "layer_types": layers}
    for key, value in changes.items():
        edit(folder / "config.json", "text_config", key, value=value)
    message = faults(check())
    assert message.count("no completion can be sampled") == len(TASKS)
    assert "use_sliding_window" in message


def test_a_template_without_the_picture_is_found(check: Check, folder: Path) -> None:
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|image_pad|>", ""))
    message = faults(check())
    assert message.count("do not belong together") == len(TASKS)
    assert "chat_template" in message


def test_a_template_that_begins_to_think_itself_is_found(check: Check, folder: Path) -> None:
    """As that of Qwen3-VL-Thinking: what it has written would be missing in every completion."""
    assert "template itself" not in faults(check(prompt="{question} Think in <think> </think>."))
    template = folder / "chat_template.jinja"
    sound = template.read_text()
    for opening in ("<think>", "<think></think>"):
        template.write_text(f"{sound}{{% if add_generation_prompt %}}{opening}{{% endif %}}")
        assert "the chat template itself begins the answer with <think>" in faults(check())


def test_weights_that_are_not_numbers_are_found(check: Check, folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (name,) = [name for name in weights if name.endswith("embed_tokens.weight")]
    weights[name][6] = float("nan")  # of a token that no prompt holds: one output alone is wrong
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert "outputs are not finite" in faults(check())


@pytest.mark.parametrize("token", ["eos_token", "pad_token"])
def test_a_special_token_that_is_missing_is_named(check: Check, folder: Path, token: str) -> None:
    edit(folder / "tokenizer_config.json", token, value=None)
    assert f"the tokenizer has no {token}" in faults(check())


def test_tokens_without_an_embedding_are_found(check: Check, folder: Path) -> None:
    _, processor = load_model(str(folder))
    tokens = len(processor.tokenizer)
    processor.tokenizer.add_tokens(["<new>"])
    processor.save_pretrained(folder)
    message = faults(check())
    assert f"the tokenizer has {tokens + 1:,} tokens, the model embeds {tokens:,}" in message


def test_another_image_token_is_found(check: Check, folder: Path) -> None:
    edit(folder / "config.json", "image_token_id", value=6)
    assert "image token '<|image_pad|>' is 5, config.json says 6" in faults(check())


def test_weights_cut_short_or_only_pickled_are_found_before_they_are_read(
    check: Check, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        compatibility, "load_model", lambda *_: pytest.fail("the weights were read")
    )
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert f"{weights}: no whole safetensors file" in faults(check())
    weights.rename(folder / "pytorch_model.bin")
    told = faults(check())
    assert f"{weights}: not there; pytorch_model.bin is no substitute" in told
    assert "safe_serialization=True" in told


def test_weights_that_do_not_load_are_one_fault(check: Check, folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    assert faults(check()).count("does not load") == 1


def exact_lengths(path: Path, tasks: Tasks, sft: SFT) -> tuple[int, int]:
    """The longest prompt, and what TRL makes of the longest prompt with its target."""
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    _, processor = load_model(str(path))
    examples = [split for splits in tasks.values() for split in splits.values()]
    prompts = [
        encode(processor, [render_prompt(processor, PROMPT, row["question"])], [[row["image"]]])[0]
        for split in examples
        for row in split
    ]
    collate = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)
    rows = [
        {**row, "images": [row["image"]]}
        for splits in tasks.values()
        for row in sft_rows(splits["train"], PROMPT, sft, EXACT)
    ]
    made = [collate([row])["input_ids"].shape[1] for row in rows]
    return max(len(prompt.ids) for prompt in prompts), max(made)


def test_the_context_is_compared_with_the_longest_prompt_to_the_token(
    check: Check, folder: Path, tasks: Tasks
) -> None:
    sft = method("sft_cot")
    assert isinstance(sft, SFT)
    prompt, target = exact_lengths(folder, tasks, sft)
    methods = {"grpo": method("grpo", max_completion_tokens=30), "sft_cot": sft}
    context = max(prompt + 30, target)
    edit(folder / "config.json", "text_config", "max_position_embeddings", value=context)
    assert faults(check(methods)) == ""
    edit(folder / "config.json", "text_config", "max_position_embeddings", value=prompt + 29)
    rows = check(methods)
    failed = row_of(rows, f"context of {folder} for grpo")
    assert f"{prompt + 30} tokens needed, the model has {prompt + 29}" in failed.detail
    assert "Lower max_completion_tokens of rl or methods.grpo" in failed.remedy
    assert row_of(rows, f"context of {folder} for evaluation").outcome == "ok"
    edit(folder / "config.json", "text_config", "max_position_embeddings", value=target - 1)
    failed = row_of(check(methods), f"context of {folder} for sft_cot")
    assert f"{target} tokens needed, the model has {target - 1}" in failed.detail
    edit(folder / "config.json", "text_config", "max_position_embeddings", value=prompt + 23)
    assert "Lower evaluation.max_completion_tokens" in faults(check())


def test_memory_that_training_alone_takes_must_be_there(
    check: Check, mini_model: MiniModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = 4 * mini_model.facts["parameters"]
    toy = {"bytes": 0}
    monkeypatch.setattr(
        compatibility, "find_device", lambda: Device("GPU toy", toy["bytes"], gpu=True)
    )
    for name, copies in {"sft": 4, "grpo": 5}.items():  # RL has a reference model as well
        toy["bytes"] = copies * stored
        assert faults(check({name: method(name)})) == ""
        toy["bytes"] -= 1
        with monkeypatch.context() as patch:
            patch.setattr(
                compatibility, "load_model", lambda *_: pytest.fail("loaded what cannot fit")
            )
            message = faults(check({name: method(name)}))
        assert "GPU toy has" in message
        assert "training.lora" in message


def test_what_is_not_installed_stops_before_the_model_is_read(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        compatibility, "load_model", lambda *_: pytest.fail("the weights were read")
    )
    monkeypatch.setattr("othink_pipeline.preflight.optional_libraries.find_spec", lambda _: None)
    message = faults(check({"sft": method("sft", optimizer="adamw_8bit")}))
    assert "training.optimizer = 'adamw_8bit' (methods.sft): bitsandbytes is not" in message


@pytest.mark.parametrize(("gpus", "told"), [(0, True), (0.5, False), (1, False)])
def test_a_task_of_ray_sees_no_more_gpus_than_are_set_aside_for_it(
    gpus: float, told: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    (folder / "model.safetensors").unlink()  # so that all ends with the next check
    blocks = settings(), compute()
    train = Cluster(**shipped("cluster")).train.model_copy(update={"gpus": gpus})
    (row,), _ = compatibility.check_model(str(folder), {}, {}, EVALUATION, *blocks, train)
    assert (row.detail.startswith("8 GPUs can be seen")) is told


def test_the_longest_examples_come_with_the_checks_that_passed(
    folder: Path, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = settings(), compute()
    methods = {"sft_cot": method("sft_cot"), "grpo": method("grpo")}

    def check() -> Any:
        return compatibility.check_model(str(folder), asked(tasks), methods, EVALUATION, *blocks)

    _, lengths = check()
    sft = methods["sft_cot"]
    assert isinstance(sft, SFT)
    prompt, target = exact_lengths(folder, tasks, sft)
    assert (lengths.prompt.tokens, lengths.sft["sft_cot"].tokens) == (prompt, target)
    assert lengths.sft.keys() == {"sft_cot"}
    assert lengths.prompt.prompt == PROMPT
    for longest in (lengths.prompt, lengths.sft["sft_cot"]):
        example = longest.example
        (found,) = [
            row
            for split in tasks[example["task"]].values()
            for row in split.remove_columns("image")
            if row["id"] == example["id"]
        ]
        assert found == {name: value for name, value in example.items() if name != "image"}
    edit(folder / "processor_config.json", "image_processor", "merge_size", value=1)
    assert check()[1] is None


def test_the_largest_pictures_of_a_sample_are_measured(
    folder: Path, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data sets that are read hold pictures of many sizes."""
    from PIL import Image

    _, processor = load_model(str(folder))
    processor.image_processor.size = {"shortest_edge": 64 * 64, "longest_edge": 256 * 256}
    test = tasks["counting"]["test"]
    rows = [dict(example) for example in test]
    rows[5]["image"] = Image.new("RGB", (128, 64))  # 8 x 16 patches, 2 x 2 of them a token
    small, mixed = (
        [TaskExamples({"test": each}, {"test": PROMPT})]
        for each in (test, Dataset.from_list(rows, test.features))
    )
    plain = lengths.measure_lengths(processor, small, {})
    found = lengths.measure_lengths(processor, mixed, {})
    assert (plain.image, found.image) == (16, 32)
    assert found.prompt.tokens - plain.prompt.tokens == 16
    picture = found.prompt.example["image"]["bytes"]
    assert Image.open(io.BytesIO(picture)).size == (128, 64)
    monkeypatch.setattr(lengths, "LOOKED_AT", 2)  # a sample that does not hold it
    assert lengths.measure_lengths(processor, mixed, {}).image == 16


def test_the_peak_of_a_gpu_is_what_was_allocated_since_it_was_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: asked.append(name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    device.reset_peak()
    assert asked == ["empty_cache", "reset_peak_memory_stats"]
    assert device.peak_bytes() == 7


def test_a_gpu_without_bfloat16_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device.has_bfloat16()  # a CPU emulates it
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert not device.has_bfloat16()


@pytest.mark.parametrize(
    ("able", "emulates"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),  # not known
    ],
)
def test_a_cpu_that_emulates_bfloat16_is_known(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, Any], emulates: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert device.emulates_bfloat16() is emulates


def test_the_memory_of_a_container_is_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    usage = namedtuple("usage", "total")
    monkeypatch.setattr(device.psutil, "virtual_memory", lambda: usage(1000))
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(device, "CGROUP_LIMITS", (tmp_path / "none", limit))
    for text, memory in {"max\n": 1000, "300\n": 300, "9223372036854771712\n": 1000}.items():
        limit.write_text(text)
        assert device.find_device().memory == memory
    assert device.find_device().name.startswith("CPU")
    assert not device.find_device().gpu


def test_a_gpu_is_named_with_its_own_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    toy = SimpleNamespace(name="Toy", total_memory=7)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: toy)
    assert device.find_device() == Device("GPU Toy", 7, gpu=True)


# --- The examples


def spoiled(examples: Dataset, row: int, **fields: Any) -> Dataset:
    rows = [dict(example) for example in examples]
    rows[row] |= fields
    return Dataset.from_list(rows, examples.features)


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        (0, {"image": None}, "field 'image' is NoneType"),
        (0, {"image": {"bytes": b"no picture", "path": None}}, "the image does not decode"),
        (5, {"answer": "about 7"}, "the answer 'about 7' would never be right"),
        (7, {"question": "  "}, "the question is empty"),
    ],
)
def test_a_faulty_example_is_named(
    tasks: Tasks, row: int, fields: dict[str, Any], message: str
) -> None:
    from datasets import Image

    test = tasks["counting"]["test"].cast_column("image", Image(decode=False))
    bad = spoiled(test, row, **fields).cast_column("image", Image())
    rows = check_examples("counting", {"train": tasks["counting"]["train"], "test": bad})
    assert [r.outcome for r in rows] == ["ok", "FAILED"]
    assert f"example counting-test-{row:06d}: " in faults(rows)
    assert message in faults(rows)
    assert "tasks/counting.py" in faults(rows)


def test_a_missing_column_and_an_empty_split_are_named(tasks: Tasks) -> None:
    train = tasks["counting"]["train"]
    assert "columns missing: steps" in faults(
        check_examples("counting", {"train": train.remove_columns("steps")})
    )
    assert "no examples" in faults(check_examples("counting", {"train": train.select([])}))


def test_a_task_that_is_not_prepared_is_drawn() -> None:
    preparation = DataPreparation(**shipped("data_preparation"))
    splits = compatibility.draw_splits("geometry", preparation)
    assert {split: len(rows) for split, rows in splits.items()} == compatibility.DRAWN
    assert {row.outcome for row in check_examples("geometry", splits)} == {"ok"}
    assert splits["train"][0]["image"].size == (64, 64)
    assert find_fault({**splits["train"][0], "image": b""}, EXACT) is not None


def test_no_task_is_trained_on_what_another_one_is_tested_on(tasks: Tasks) -> None:
    assert compatibility.check_overlap(asked(tasks)) == []
    own = {"counting": {**tasks["counting"], "train": tasks["counting"]["test"]}}
    assert compatibility.check_overlap(asked(own)) == []  # of a task that is not prepared yet
    leaking = {**tasks["geometry"], "train": tasks["counting"]["test"]}
    both = {"counting": tasks["counting"], "geometry": leaking}
    (row,) = compatibility.check_overlap(asked(both))
    assert (row.check, row.outcome) == ("counting test", "FAILED")
    assert "8 pictures of its test split are used to train geometry" in row.detail
