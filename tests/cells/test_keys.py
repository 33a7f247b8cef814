"""The content key of a training, and what counts as a finished one."""

import json
import logging
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_args

import pytest

from othink_pipeline.cells import keys as cells
from othink_pipeline.cells.grid import Cell
from othink_pipeline.cells.keys import (
    Settings,
    cell_folder,
    check_code,
    check_examples,
    check_model,
    dataset_ref,
    find_finished,
    resume_state,
    training_key,
)
from othink_pipeline.cells.manifests import Training
from othink_pipeline.cells.parameters import Evaluation, Folders
from othink_pipeline.core import code
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.code import reached
from othink_pipeline.core.files import MANIFEST, digest_folder, write_json
from othink_pipeline.core.manifests import OtherVersionError
from othink_pipeline.data.manifests import Examples
from othink_pipeline.models.parameters import Compute, ModelSettings
from othink_pipeline.scoring.kinds import Text
from othink_pipeline.training.kl import KLSchedule
from othink_pipeline.training.parameters import RL, SFT, Health
from tests.conftest import TASKS, shipped, shipped_health
from tests.support.manifests import examples_of, shipped_method, training_of, with_split

CELL = Cell("counting", "grpo", 0)
METHOD: dict[str, Any] = {
    **shipped("training"),
    "lora": {"rank": 2, "alpha": 4.0, "dropout": 0.0, "modules": "all-linear", "merge": False},
    "updates": 4,
    "prompts_per_update": 2,
    "checkpoint_every_updates": 3,
    "validation_examples": 5,
    "learning_rate": 0.5,
    "lr_schedule": "constant",
    "warmup_ratio": 0.25,
    "max_grad_norm": 1.0,
    "weight_decay": 0.0,
}
SFT_BLOCK = {**METHOD, "algorithm": "sft", "target": "answer"}
RL_BLOCK = {
    **shipped("rl", epsilon=0.25, epsilon_high=0.25, ref_model_sync_steps=2),
    **METHOD,
    "algorithm": "rl",
    "rewards": {"accuracy": 1.0, "format": 1.0, "answer": "tagged"},
    "kl": {"schedule": "linear", "start": 0.25, "end": 0.5},
}
OTHERWISE: dict[str, Any] = {
    "constant": "cosine",
    "answer": "steps",
    "tagged": "any",
    "grpo": "dapo",
    "group": "none",
    "token": "sequence",
    "k3": "k2",
    "adamw": "paged_adamw_8bit",
    "all-linear": ("q_proj",),
}
KL_BLOCKS: dict[str, dict[str, Any]] = {
    "constant": {"weight": 0.25},
    "explore_exploit": {"low": 0.25, "high": 0.5, "explore_share": 0.5},
    "linear": {"start": 0.25, "end": 0.5},
    "cosine": {"start": 0.25, "end": 0.5},
    "exponential": {"start": 0.25, "end": 0.5},
    "step": {"weights": (0.25, 0.5)},
    "adaptive": {"start": 0.25, "target": 0.02, "gain": 2.0, "low": 0.01, "high": 5.0},
    "accuracy": {"weight": 0.25},
}
EVALUATION: dict[str, Any] = {
    "batch_size": 4,
    "max_completion_tokens": 8,
    "samples": 0,
    "sample_temperature": 1.0,
    "shuffle_images": False,
    "seed": 0,
}
FOLDERS = Folders(examples="data/a", checkpoints="data/b", predictions="data/c")
MODEL = shipped("model")
COMPUTE = shipped("compute", resume_every_updates=2)


def key_of(
    cell: Cell = CELL,
    block: dict[str, Any] = RL_BLOCK,
    base_digest: str = "base",
    examples: list[Examples] | None = None,
    evaluation: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    compute: dict[str, Any] | None = None,
) -> str:
    parameters = (RL if block["algorithm"] == "rl" else SFT).model_validate(block)
    return training_key(
        cell,
        parameters,
        base_digest,
        [examples_of(task) for task in TASKS] if examples is None else examples,
        Settings(
            Evaluation(**{**EVALUATION, **(evaluation or {})}),
            FOLDERS,
            ModelSettings(**{**MODEL, **(model or {})}),
            Compute(**{**COMPUTE, **(compute or {})}),
            shipped_health(),
        ),
    )


def changed(value: Any) -> Any:
    """Another value of the same kind, which a parameter may have as well."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return OTHERWISE.get(value, f"another {value}")
    return value + 1 if isinstance(value, int) else value / 2 + 0.1


def edited(content: dict[str, Any], *path: str) -> dict[str, Any]:
    """A copy in which one leaf is another."""
    content = deepcopy(content)
    place = content
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = changed(place[path[-1]])
    return content


@pytest.mark.parametrize("block", [SFT_BLOCK, RL_BLOCK], ids=["sft", "rl"])
def test_every_parameter_of_the_method_changes_the_key(block: dict[str, Any]) -> None:
    model = RL if block["algorithm"] == "rl" else SFT
    assert block.keys() == model.model_fields.keys(), "a new parameter needs a value here"
    apart = {"algorithm", "kl", "rewards", "lora", "sync_ref_model"}
    leaves = [(name,) for name in block if name not in apart]
    leaves += [(part, name) for part in ("rewards", "lora") for name in block.get(part, ())]
    keys = [key_of(block=edited(block, *leaf)) for leaf in leaves]
    whole = {**block, "lora": None}
    keys += [key_of(block=whole)]
    if "sync_ref_model" in block:  # does not go with lora
        keys += [key_of(block=edited(whole, "sync_ref_model"))]
    assert len({key_of(block=block), *keys}) == 1 + len(keys)


@pytest.mark.parametrize("schedule", KL_BLOCKS)
def test_every_part_of_the_kl_weight_changes_the_key(schedule: str) -> None:
    block = KL_BLOCKS[schedule]
    variants = [block]
    for name, value in block.items():
        other = value[::-1] if isinstance(value, tuple) else value * 1.0625
        variants.append({**block, name: other})
    kls = [{"schedule": schedule, **variant} for variant in variants]
    parameters = RL.model_validate({**RL_BLOCK, "kl": kls[0]})
    assert parameters.kl.model_dump().keys() == kls[0].keys(), "a new key needs a value here"
    keys = {key_of(block={**RL_BLOCK, "kl": kl}) for kl in kls}
    keys |= {key_of(block={**RL_BLOCK, "kl": {"schedule": "constant", "weight": 0.75}})}
    assert len(keys) == len(kls) + 1


def test_every_kind_of_kl_weight_and_the_algorithm_change_the_key() -> None:
    schedules = {kind.model_fields["schedule"].annotation for kind in get_args(KLSchedule)}
    assert {name for kind in schedules for name in get_args(kind)} == set(KL_BLOCKS)
    keys = {
        key_of(block={**RL_BLOCK, "kl": {"schedule": name, **block}})
        for name, block in KL_BLOCKS.items()
    }
    assert len(keys | {key_of(block=SFT_BLOCK)}) == len(KL_BLOCKS) + 1


def test_all_that_a_training_starts_from_changes_the_key() -> None:
    counting, geometry = (examples_of(task) for task in TASKS)
    others = {
        "seed": key_of(cell=CELL._replace(seed=1)),
        "base model": key_of(base_digest="another"),
        "train": key_of(
            examples=[with_split(counting, "train", digest="another"), geometry],
        ),
        "validation": key_of(
            examples=[with_split(counting, "validation", digest="another"), geometry],
        ),
        "validation of another task": key_of(
            examples=[counting, with_split(geometry, "validation", digest="another")],
        ),
        "prompt": key_of(examples=[with_split(counting, "train", prompt="another"), geometry]),
        "validation prompt": key_of(
            examples=[with_split(counting, "validation", prompt="another"), geometry],
        ),
        "prompt of another task": key_of(
            examples=[counting, with_split(geometry, "validation", prompt="another")],
        ),
        "answers": key_of(
            examples=[counting.model_copy(update={"answers": Text(kind="text")}), geometry],
        ),
        "one task less": key_of(examples=[counting]),
        "task": key_of(cell=CELL._replace(task="geometry")),
        "tokens": key_of(evaluation={"max_completion_tokens": 9}),
        **{
            name: key_of(compute={name: value})
            for name, value in {
                "share_prompts": False,
                "bf16": True,
                "num_processes": 2,
                "micro_batch_size": 1,
                "gradient_checkpointing": True,
                "vllm": {"mode": "colocate", "gpu_memory": 0.25},
            }.items()
        },
        **{
            name: key_of(model={name: value})
            for name, value in {
                "dtype": "bfloat16",
                "attention": "eager",
                "min_pixels": 100,
                "max_pixels": 100,
            }.items()
        },
    }
    assert MODEL.keys() <= others.keys(), "a new key needs a value here"
    assert len({key_of(), *others.values()}) == 1 + len(others)


def test_names_places_and_what_comes_after_training_do_not_change_the_key() -> None:
    counting, geometry = (examples_of(task) for task in TASKS)
    elsewhere = examples_of("counting", folder="/elsewhere")
    same = {
        "method's name": key_of(cell=CELL._replace(method="another_name")),
        "order of tasks": key_of(examples=[geometry, counting]),
        "folder": key_of(examples=[elsewhere, geometry]),
        "test": key_of(examples=[with_split(counting, "test", digest="another"), geometry]),
        "train of another task": key_of(
            examples=[counting, with_split(geometry, "train", digest="another")],
        ),
        **{
            name: key_of(evaluation={name: changed(value)})
            for name, value in EVALUATION.items()
            if name != "max_completion_tokens"
        },
        **{
            name: key_of(compute={name: changed(COMPUTE[name])})
            for name in ("resume_every_updates", "fresh")
        },
    }
    assert {name for name, key in same.items() if key != key_of()} == set()
    there = {"mode": "server", "host": "there", "port": 1}
    assert key_of(compute={"vllm": there}) == key_of(compute={"vllm": {**there, "port": 2}})
    of_rl = {"share_prompts": False, "vllm": there}
    assert key_of(block=SFT_BLOCK, compute=of_rl) == key_of(block=SFT_BLOCK)


def test_the_key_covers_the_code_that_the_algorithm_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def digest(*modules: str) -> str:
        asked.append(modules)
        return "edited"

    before = key_of(), key_of(block=SFT_BLOCK)
    monkeypatch.setattr(cells, "code_digest", digest)
    assert key_of() != before[0]
    assert key_of(block=SFT_BLOCK) != before[1]
    rl, sft = (reached(*modules) for modules in asked)
    shared = {
        *(f"training.{name}" for name in ("loop", "rows", "resume", "guard")),
        *("models.load", "evaluation.predictions", "scoring.strict"),
    }
    assert {f"othink_pipeline.{name}" for name in shared} <= set(rl) & set(sft)
    assert {"othink_pipeline.training.kl", "othink_pipeline.training.shared_prompts"} <= set(rl)
    assert not {"othink_pipeline.training.shared_prompts", "othink_pipeline.training.rl"} & set(sft)


def test_the_key_covers_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of()
    monkeypatch.setattr(cells, "library_versions", lambda _: {"torch": "0.1"})
    assert key_of() != before


VLLM = {"vllm": {"mode": "server", "host": "localhost", "port": 8000}}
EIGHT_BIT = {"block": {**SFT_BLOCK, "optimizer": "adamw_8bit"}}
FLASH = {"model": {"attention": "flash_attention_2"}}


@pytest.mark.parametrize(
    ("library", "asking", "not_asking"),
    [
        ("vllm", {"compute": VLLM}, {"compute": VLLM, "block": SFT_BLOCK}),
        ("bitsandbytes", EIGHT_BIT, {}),
        ("flash_attn", FLASH, {}),
        ("deepspeed", {"compute": {"launcher": "zero2"}}, {"compute": {"launcher": "fsdp"}}),
    ],
)
def test_a_library_that_nothing_asks_for_is_in_no_key(
    library: str, asking: Any, not_asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key_with(version: str, settings: dict[str, Any]) -> str:
        monkeypatch.setattr(code, "version", lambda name: version if name == library else "1")
        if launcher := settings.get("compute", {}).get("launcher"):
            file = Path(__file__).parents[2] / f"conf/base/accelerate/{launcher}.yaml"
            settings = {"compute": {"launcher": str(file)}}
        return key_of(**settings)

    assert key_with("1", asking) != key_with("2", asking)
    assert key_with("1", not_asking) == key_with("2", not_asking)


def test_a_cells_folder_names_task_method_seed_and_key(tmp_path: Path) -> None:
    folders = Folders(examples="data/a", checkpoints=str(tmp_path), predictions="data/c")
    place = cell_folder(folders, Cell("counting", "grpo_d", 7), "0123456789abcdef")
    assert place == tmp_path / "counting" / "grpo_d" / "s7" / "0123456789abcdef"


# --- What is finished


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The folder of a finished training, in which nothing went wrong."""
    checkpoint = tmp_path / "update-000004"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").write_bytes(b"weights")
    (checkpoint / "config.json").write_text("{}")
    finished_training(checkpoint).write(tmp_path / MANIFEST)
    return tmp_path


def finished_training(checkpoint: Path, **changes: Any) -> Training:
    return training_of(
        CELL, checkpoint=checkpoint.name, digest=digest_folder(checkpoint), **changes
    )


def health_of(**policies: Any) -> Health:
    return Health(**{**shipped_health().model_dump(), **policies})


def test_what_is_finished_and_whole_is_found(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = finished / "update-000004"
    manifest = finished_training(checkpoint)
    assert find_finished(finished, shipped_health()) == manifest
    assert find_finished(finished, health_of(loss_not_finite="skip_batch")) == manifest
    assert not caplog.records


def test_a_training_is_found_where_it_was_moved_to(finished: Path, tmp_path: Path) -> None:
    moved = finished.rename(tmp_path.with_name(f"{tmp_path.name}_moved"))
    assert find_finished(moved, shipped_health()) is not None


def test_nothing_is_found_where_nothing_was_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_finished(tmp_path / "nowhere", shipped_health()) is None
    (tmp_path / "update-000002").mkdir()
    assert find_finished(tmp_path, shipped_health()) is None
    assert not caplog.records, "a training that has yet to begin is nothing to warn of"


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_checkpoint_that_changed_is_told_and_not_taken(
    finished: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = finished / "update-000004"
    if damage == "changed":
        (checkpoint / "model.safetensors").write_bytes(b"weightz")
    else:
        checkpoint.rename(finished / "elsewhere")
    assert find_finished(finished, shipped_health()) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(checkpoint) in record.getMessage()


def test_a_manifest_that_is_none_is_told_and_not_taken(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (finished / MANIFEST).write_text("[]")
    assert find_finished(finished, shipped_health()) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(finished / MANIFEST) in record.getMessage()


def test_a_training_of_another_version_is_refused_and_not_made_again(finished: Path) -> None:
    content = json.loads((finished / MANIFEST).read_text())
    write_json(finished / MANIFEST, {**content, "version": 1})
    with pytest.raises(OtherVersionError, match=r"compute\.fresh=true") as error:
        find_finished(finished, shipped_health())
    assert f"{finished / MANIFEST}: a manifest of version 1" in error.value.message


def test_a_finished_training_outlives_a_new_policy_and_is_not_made_again_for_a_lost_key(
    finished: Path,
) -> None:
    content = json.loads((finished / MANIFEST).read_text())
    del content["health"]["kl_overflow"]  # as if it had come later
    write_json(finished / MANIFEST, content)
    assert find_finished(finished, shipped_health())
    del content["updates"]
    write_json(finished / MANIFEST, content)
    with pytest.raises(ConfigurationError, match=r"updates: Field required.*--namespaces="):
        find_finished(finished, shipped_health())


def test_a_fault_binds_a_training_to_the_policy_for_it(
    finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = finished_training(finished / "update-000004", faults={"loss_not_finite": 1})
    training.write(finished / MANIFEST)
    assert find_finished(finished, shipped_health())
    assert find_finished(finished, health_of(kl_overflow="go_on"))
    assert not caplog.records
    assert find_finished(finished, health_of(loss_not_finite="skip_batch")) is None
    assert "health.loss_not_finite" in caplog.text
    assert str(finished) in caplog.text


@pytest.mark.parametrize(
    ("method", "faults", "other", "found"),
    [
        ("grpo", {}, {"reward_timeout_s": 120, "format_lost": 0.3}, True),  # looser
        ("grpo", {}, {"no_advantage": "stop"}, True),  # nothing to stop for
        ("grpo", {}, {"patience_updates": 19}, False),
        ("grpo", {}, {"endless_share": 0.8}, False),
        ("grpo", {}, {"format_lost": 0.5}, False),
        ("sft", {}, {"patience_updates": 19}, True),  # it has no such faults
        ("sft", {"loss_not_finite": 2}, {"patience_updates": 19}, False),
        ("grpo", {"endless_completions": 3}, {"endless_share": 0.95}, False),
        ("grpo", {"endless_completions": 3}, {"format_learnt": 0.9}, True),
    ],
)
def test_stricter_thresholds_and_those_of_a_fault_make_another_training(
    finished: Path, method: str, faults: dict[str, int], other: dict[str, Any], found: bool
) -> None:
    parameters = shipped_method(Cell("counting", method, 0))
    training = finished_training(
        finished / "update-000004", faults=faults, method=method, parameters=parameters
    )
    training.write(finished / MANIFEST)
    assert bool(find_finished(finished, health_of(**other))) == found


def test_a_quick_look_does_not_read_the_checkpoint(finished: Path) -> None:
    checkpoint = finished / "update-000004"
    (checkpoint / "config.json").write_text("[]")
    assert find_finished(finished, shipped_health(), whole=False)
    assert not find_finished(finished, shipped_health())
    checkpoint.rename(finished / "elsewhere")
    assert not find_finished(finished, shipped_health(), whole=False)


def test_the_state_to_go_on_from_is_the_newest(tmp_path: Path) -> None:
    assert resume_state(tmp_path) == 0
    for name in ("checkpoint-9", "checkpoint-10", ".checkpoint-12.new", "runs"):
        (tmp_path / "resume" / name).mkdir(parents=True)
    assert resume_state(tmp_path) == 10


@pytest.mark.parametrize("damage", [None, "changed", "missing"])
def test_a_model_is_the_one_that_its_manifest_speaks_of(finished: Path, damage: str | None) -> None:
    checkpoint = finished / "update-000004"
    digest = digest_folder(checkpoint)
    if damage is None:
        check_model(str(checkpoint), digest, "Make it again.")
        return
    if damage == "changed":
        (checkpoint / "config.json").write_text("[]")
    else:
        checkpoint.rename(finished / "elsewhere")
    with pytest.raises(ConfigurationError, match="Make it again") as error:
        check_model(str(checkpoint), digest, "Make it again.")
    assert str(checkpoint) in error.value.message


def test_a_split_is_named_by_task_and_split() -> None:
    ref = dataset_ref(with_split(examples_of("counting"), "test", examples=7), "test")
    assert tuple(getattr(ref, name) for name in ("name", "digest", "source", "examples")) == (
        "counting_test",
        "counting test",
        "data/counting/test.arrow",
        7,
    )


def test_examples_that_were_made_anew_are_not_those_of_the_catalog(tmp_path: Path) -> None:
    examples = examples_of("counting", folder=str(tmp_path))
    file = tmp_path / "counting" / MANIFEST
    with pytest.raises(ConfigurationError, match="kedro run --pipelines=data_preparation"):
        check_examples(examples)
    file.parent.mkdir()
    examples.write(file)
    check_examples(examples)
    with_split(examples, "validation", digest="another").write(file)
    with pytest.raises(ConfigurationError, match="not the examples") as error:
        check_examples(examples)
    assert str(tmp_path) in error.value.message


def test_code_that_was_edited_after_its_digest_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "some_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text("a = 1\n")
    code_digest = lru_cache(partial(cells.code_digest.__wrapped__, package=package))
    monkeypatch.setattr(cells, "code_digest", code_digest)
    check_code("some_package.module")
    (package / "module.py").write_text("a = 1  # the same\n")
    check_code("some_package.module")
    (package / "module.py").write_text("a = 2\n")
    with pytest.raises(ConfigurationError, match="was edited after this run began"):
        check_code("some_package.module")
