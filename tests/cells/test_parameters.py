"""Each YAML of each environment is right, and nothing wrong in it goes unnoticed."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from othink_pipeline.cells.methods import resolve_method, resolve_methods
from othink_pipeline.cells.parameters import MAX_SEEDS, Cluster, Parameters
from othink_pipeline.config_loader import GridConfigLoader
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.training.kl import Constant, ExploreExploit, KLController
from othink_pipeline.training.parameters import RL, SFT
from tests.conftest import shipped

CONF = Path(__file__).parents[2] / "conf"
ENVIRONMENTS = sorted(
    folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name != "local"
)
SPELT = ("base", "easy_vqa", "kl_ablation", "paper")
"""Environments that between them say every kind of key that any says."""
ABLATIONS = {
    "kl_ablation": "kl",
    "kl_constants": "kl",
    "kl_constants_bases": "kl",
    "kl_timing": "kl",
    "cold_start": "kl",
    "kl_reference": "kl",
    "cold_start_drift": "kl",
    "drift": "kl",
    "long": "kl",
    "paper_kl_constants": "kl",
    "reward_ablation": "rewards",
    "format_weights": "rewards",
    "paper_format_weights": "rewards",
}
"""Environments whose methods differ in one key alone."""
ONE_METHOD = {"easy_vqa", "easy_vqa_rl"}
"""Environments that compare none of RL's methods."""
FREE_NAMES = (
    ("methods",),
    ("data_preparation", "sources"),
    ("data_preparation", "train_examples"),
    ("known_methods", "labels"),
    ("published", "accuracy"),
)
"""Blocks whose keys are names, free to choose."""
MAY_BE_NULL = {"min_pixels", "max_pixels", "micro_batch_size"}
TASKS = ("counting", "geometry")


@cache
def load(environment: str) -> dict[str, Any]:
    """The parameters as `kedro run --env` sees them: base below, whole blocks replaced."""
    before = GridConfigLoader.current
    loader = GridConfigLoader(str(CONF), env=environment, base_env="base", default_run_env="base")
    GridConfigLoader.current = before
    return dict(sorted(loader["parameters"].items()))  # Kedro's own order changes from run to run


def parameters(environment: str = "base") -> dict[str, Any]:
    """A copy to spoil."""
    return deepcopy(load(environment))


def keys_of(block: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in block.items():
        yield (*path, key)
        if isinstance(value, Mapping):
            yield from keys_of(value, (*path, key))


def value_at(block: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        block = block[key]
    return block


def changed(path: str, value: object, environment: str = "base") -> dict[str, Any]:
    """The parameters with another value at ``a.b.c``."""
    raw = parameters(environment)
    *blocks, key = path.split(".")
    value_at(raw, tuple(blocks))[key] = value
    return raw


def fault(raw: Mapping[str, Any]) -> str:
    with pytest.raises(ConfigurationError) as error:
        Parameters.read(raw)
    return error.value.message


def told(raw: Mapping[str, Any]) -> list[str]:
    """All faults, a line each; none where nothing is wrong."""
    try:
        Parameters.read(raw)
    except ConfigurationError as error:
        return [line.strip() for line in error.message.splitlines()]
    return []


def faults_that(path: str, value: object) -> list[str]:
    """The message, line by line, when ``path`` holds ``value``."""
    return fault(changed(path, value)).splitlines()


def layers_of(raw: Mapping[str, Any], method: str) -> list[Mapping[str, Any]]:
    block = raw["methods"][method]
    of_tasks = block.get("trained_on", {}).values()
    return [raw["training"], raw[block["algorithm"]], block, *of_tasks]


def is_free(path: tuple[str, ...]) -> bool:
    """Whether the last key is a name, or one that need not be there."""
    if path[0] == "methods" and "trained_on" in path[-2:]:
        return True
    return path[:-1] in FREE_NAMES or path[:2] == ("published", "accuracy")


def own_blocks(environment: str) -> set[str]:
    """What an environment says itself: the rest is tested where it stands."""
    files = (CONF / environment).glob("parameters*.yml")
    return {key for file in files for key in yaml.safe_load(file.read_text())}


def is_single(environment: str, path: tuple[str, ...]) -> bool:
    """Whether no method has the value from another layer too: then it is needed, and in use."""
    raw = load(environment)
    if path[0] not in ("training", "sft", "rl", "methods") or len(path) < 2:
        return True
    key = path[2] if path[0] == "methods" and len(path) > 2 else path[1]
    if "trained_on" in path:
        return len(path) > 5  # a key of the method may be missing there
    users = [path[1]] if path[0] == "methods" else raw["methods"]
    return not any(sum(key in layer for layer in layers_of(raw, user)) > 1 for user in users)


def own_keys(environment: str) -> list[tuple[str, ...]]:
    """Those that are tested with this environment."""
    own = own_blocks(environment)
    return [path for path in keys_of(load(environment)) if path[0] in own]


def fixed_keys(environment: str) -> list[tuple[str, ...]]:
    return [path for path in own_keys(environment) if not is_free(path)]


def numbers(environment: str) -> list[tuple[str, ...]]:
    return [
        path
        for path in own_keys(environment)
        if type(value_at(load(environment), path)) in (int, float)
        and path != ("experiment", "seeds")
        and (path[0] == "methods" or is_single(environment, path))
    ]


def test_the_environments_are_found() -> None:
    assert {"base", "smoke"} <= set(ENVIRONMENTS)
    assert len(fixed_keys("base")) > 100
    assert len(numbers("base")) > 50


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_environment_validates(environment: str) -> None:
    raw = parameters(environment)
    read = Parameters.read(raw)
    assert raw == load(environment), "reading changed its input"
    for (_, method), resolved in resolve_methods(
        raw, read.experiment.tasks, read.experiment.methods
    ).items():
        assert isinstance(resolved, {"sft": SFT, "rl": RL}[read.methods[method]["algorithm"]])


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_an_environment_names_no_machine(environment: str) -> None:
    """Paths are relative: the same files serve on every machine."""
    for path in keys_of(load(environment)):
        value = value_at(load(environment), path)
        assert not (isinstance(value, str) and value.startswith(("/", "~", "C:"))), path


@pytest.mark.parametrize("environment", SPELT)
def test_a_misspelt_key_is_named(environment: str) -> None:
    """With the block it stands in."""
    missed = []
    for path in fixed_keys(environment):
        raw = parameters(environment)
        block = value_at(raw, path[:-1])
        misspelt = path[-1] + "x"
        block[misspelt] = block.pop(path[-1])
        home = ".".join(path[:-1])
        if not any(line.startswith(home) and misspelt in line for line in told(raw)):
            missed.append((path, told(raw)))
    assert missed == []


@pytest.mark.parametrize("environment", SPELT)
def test_a_missing_key_is_named(environment: str) -> None:
    """With all blocks above it."""
    missed = []
    for path in fixed_keys(environment):
        if not is_single(environment, path) or "answers" in path:
            continue  # a task without a kind of answer has exact ones
        raw = parameters(environment)
        del value_at(raw, path[:-1])[path[-1]]
        places = [".".join(path)]
        if path[0] in ("sft", "rl"):  # it may stand in the methods' own blocks instead
            places += [f"methods.{method}.{path[-1]}" for method in raw["methods"]]
        # The key that says of which kind a block is counts as null.
        named = tuple(f"{place}{end}" for place in places for end in (": missing", " = None: not"))
        if not any(line.startswith(named) for line in told(raw)):
            missed.append((path, told(raw)))
    assert missed == []


@pytest.mark.parametrize("environment", SPELT)
def test_a_number_is_a_number(environment: str) -> None:
    missed = []
    for path in numbers(environment):
        whole, number = ".".join(path), value_at(load(environment), path)
        nothing = [] if path[-1] in MAY_BE_NULL else [None]
        for wrong in (True, str(number), "three", *nothing, [number], float("nan"), float("inf")):
            lines = told(changed(whole, wrong, environment))
            if not any(line.startswith(f"{whole} = {wrong!r}: ") for line in lines):
                missed.append((path, wrong, lines))
    assert missed == []


@pytest.mark.parametrize(
    "path",
    ["rebuild.path", "data_preparation.prompt", "sft.lr_schedule", "methods.sft.target"],
)
def test_a_text_is_a_text(path: str) -> None:
    for wrong in (3, True, None, ["a"]):
        assert f"{path} = {wrong!r}: " in fault(changed(path, wrong))


@pytest.mark.parametrize("wrong", [1, 0, "yes", "true", None])
def test_a_switch_is_true_or_false(wrong: object) -> None:
    assert f"rebuild.bf16 = {wrong!r}: " in fault(changed("rebuild.bf16", wrong))


@pytest.mark.parametrize("name", ["base", "data", "mlflow", "none", "report"])
def test_a_method_takes_no_name_of_the_project(name: str) -> None:
    raw = parameters()
    raw["methods"][name] = raw["methods"]["grpo"]
    assert f"methods.{name}: the project uses this name itself" in fault(raw)
    assert f"{name!r}" in fault(changed("experiment.tasks", [name]))


def test_no_more_validation_examples_than_there_are() -> None:
    raw = changed("training.validation_examples", 201)
    raw["data_preparation"]["splits"]["validation"] = 201
    Parameters.read(raw)
    raw["data_preparation"]["splits"]["validation"] = 200
    message = fault(raw)
    assert "validation_examples = 201" in message
    assert "data_preparation.splits.validation makes 200" in message


def test_a_block_says_which_keys_it_has() -> None:
    message = fault(changed("methods.grpo.kl", 0.04))
    assert "methods.grpo.kl = 0.04: must be a block with the keys " in message
    assert "schedule, weight" in message
    assert "end, schedule, start" in message


@pytest.mark.parametrize("block", ["experiment", "training", "rl", "methods", "methods.grpo"])
@pytest.mark.parametrize("wrong", [None, 3, "text", [1]])
def test_a_block_is_a_block(block: str, wrong: object) -> None:
    assert f"{block} = {wrong!r}: " in fault(changed(block, wrong))


@pytest.mark.parametrize(
    ("path", "wrong", "right"),
    [
        ("training.updates", 0, 1),
        ("training.prompts_per_update", -1, 1),
        ("training.checkpoint_every_updates", 0, 1),
        ("training.validation_examples", 0, 1),
        ("data_preparation.seed", -1, 0),
        ("data_preparation.max_rejected", -1, 0),
        ("data_preparation.splits.test", 0, 1),
        ("evaluation.batch_size", 0, 1),
        ("evaluation.max_completion_tokens", 0, 1),
        ("rebuild.vocab_size", 299, 300),
        ("rebuild.hidden_size", 100, 96),
        ("rebuild.vision_size", 0, 32),
        ("rebuild.worked_rate", 1.01, 1),
        ("rebuild.last_phase_worked_rate", -0.1, 0),
        ("rebuild.last_phase_updates", -1, 0),
        ("methods.sft.learning_rate", 0, 1),
        ("rl.learning_rate", 1.5, 1.0),
        ("rl.warmup_ratio", 1, 0.99),
        ("rl.weight_decay", -0.1, 0),
        ("rl.max_grad_norm", 0, 0.1),
        ("rl.completions_per_prompt", 1, 2),
        ("rl.temperature", 0, 0.1),
        ("rl.rewards.accuracy", -1, 0.5),
        ("methods.grpo.trained_on.geometry.kl.weight", -0.1, 0),
        ("data_preparation.train_examples", {"counting": 0}, {"counting": 100}),
        ("experiment.seeds", [-1], [0]),
        ("health.reward_timeout_s", 0, 0.5),
        ("health.patience_updates", 0, 1),
        ("health.endless_share", 0, 1),
        ("health.format_learnt", 1.1, 1),
        ("health.format_lost", -0.1, 0),
    ],
)
def test_bounds(path: str, wrong: Any, right: Any) -> None:
    key = path.rpartition(".")[2]
    shown = f"{key} = {wrong!r}"
    if isinstance(wrong, list):
        shown = f"{key}.0 = {wrong[0]!r}"
    elif isinstance(wrong, dict):
        [(name, value)] = wrong.items()
        shown = f"{key}.{name} = {value!r}"
    lines = faults_that(path, wrong)
    assert len(lines) == 2, lines
    assert f"{shown}: Input should be " in lines[1]
    Parameters.read(changed(path, right))


def test_a_fault_in_a_methods_parameters_names_the_block_that_holds_it() -> None:
    assert faults_that("rl.temperature", -1)[1].startswith("  rl.temperature = -1: ")
    assert faults_that("sft.warmup_ratio", 2)[1].startswith("  sft.warmup_ratio = 2: ")
    message = fault(changed("methods.grpo.temperature", -1))
    assert "methods.grpo.temperature = -1: " in message
    message = fault(changed("methods.sft.kl", {"schedule": "constant", "weight": 1.0}))
    assert "methods.sft.kl: unknown key" in message


def test_a_near_miss_gets_a_hint() -> None:
    raw = parameters()
    raw["training"]["updatse"] = raw["training"].pop("updates")
    message = fault(raw)
    assert "training.updatse: unknown key. Did you mean 'updates'? Allowed here: " in message
    assert "training.updates: missing; add it" in message
    raw = parameters()
    raw["methods"]["grpo_d"]["kl"]["lwo"] = raw["methods"]["grpo_d"]["kl"].pop("low")
    message = fault(raw)
    assert "methods.grpo_d.kl.lwo: unknown key. Did you mean 'low'?" in message
    assert "Allowed here: explore_share, high, low, schedule" in message


def test_faults_of_all_kinds_are_told_at_once() -> None:
    raw = changed("experiment.methods", ["sft", "ppo", "dpo"])
    raw["experiment"]["tasks"] = ["counting", "chess"]
    raw["report"]["comparisons"] = [["sft", "ppo"]]
    raw["model"]["dtype"] = "bfloat16"
    raw["training"]["validation_examples"] = 201
    raw["methods"]["grpo_d"]["kl"]["low"] = 0.2
    raw["methods"]["grpo"]["trained_on"]["geometry"]["kll"] = 1
    _, *lines = fault(raw).splitlines()
    for part in (
        "experiment.methods holds 'ppo'",
        "experiment.methods holds 'dpo'",
        "experiment.tasks holds 'chess'",
        "report.comparisons holds 'ppo'",
        "model.dtype = 'bfloat16'",
        "methods.sft: validation_examples = 201",
        "low <= high is asked, got low = 0.2, high = 0.1",
        "methods.grpo.trained_on.geometry.kll: unknown key",
    ):
        assert sum(part in line for line in lines) == 1, part


def test_an_unknown_task_is_told_with_those_there_are() -> None:
    message = fault(changed("experiment.tasks", ["counting", "chess"]))
    assert "experiment.tasks holds 'chess', which is no task" in message
    assert "Allowed: counting, digits, geometry" in message


def test_an_unknown_method_is_told_with_those_there_are() -> None:
    message = fault(changed("experiment.methods", ["sft", "ppo"]))
    assert "experiment.methods holds 'ppo'" in message
    assert "grpo, grpo_d, grpo_format, grpo_mean, sft, sft_cot" in message


@pytest.mark.parametrize("algorithm", ["ppo", None, 3, ["rl"], {"rl": 1}])
def test_an_unknown_algorithm_is_told_with_those_there_are(algorithm: object) -> None:
    message = fault(changed("methods.grpo.algorithm", algorithm))
    assert f"methods.grpo.algorithm = {algorithm!r}: not allowed. Allowed: sft, rl" in message


@pytest.mark.parametrize("schedule", ["sine", None, 3])
def test_an_unknown_schedule_is_told_with_those_there_are(schedule: object) -> None:
    message = fault(changed("methods.grpo_d.kl.schedule", schedule))
    assert f"methods.grpo_d.kl.schedule = {schedule!r}: not allowed" in message
    every = "constant, explore_exploit, linear, cosine, exponential, step, adaptive, accuracy"
    assert f"Allowed: {every}. " in message


def test_even_a_method_that_is_not_in_the_grid_is_checked() -> None:
    assert "grpo_format" not in load("base")["experiment"]["methods"]
    assert "methods.grpo_format.rewards.accuracy = 'no'" in fault(
        changed("methods.grpo_format.rewards.accuracy", "no")
    )


def test_rewards_that_are_all_zero_teach_nothing() -> None:
    message = fault(changed("rl.rewards", {"accuracy": 0.0, "format": 0.0, "answer": "any"}))
    assert "all rewards have weight 0" in message


@pytest.mark.parametrize("policy", ["skip", "Stop", None, True])
def test_an_unknown_policy_is_told_with_those_there_are(policy: object) -> None:
    message = fault(changed("health.kl_overflow", policy))
    assert f"health.kl_overflow = {policy!r}: " in message
    assert "'stop', 'skip_batch' or 'go_on'" in message


def test_a_format_is_lost_below_where_it_was_learnt() -> None:
    message = fault(changed("health.format_lost", 0.81))
    assert "health" in message and "format_lost = 0.81, format_learnt = 0.8" in message
    Parameters.read(changed("health.format_lost", 0.8))


def test_what_would_ruin_weights_or_scores_in_silence_stops_the_run() -> None:
    ruinous = ["loss_not_finite", "gradient_not_finite", "kl_overflow"]
    ruinous += ["reward_failed", "reward_timeout"]
    for environment in ENVIRONMENTS:
        policies = load(environment)["health"]
        for name in ruinous:
            assert policies[name] == "stop", environment
        assert policies["no_advantage"] == "go_on"  # grpo_format has none, and is to have none


@pytest.mark.parametrize("prompt", ["", "no place", "{question} and {question}", "{Question}"])
def test_a_prompt_holds_the_question_once(prompt: str) -> None:
    assert "data_preparation.prompt" in fault(changed("data_preparation.prompt", prompt))


@pytest.mark.parametrize("name", ["Grpo", "grpo-d", "grpo d", "1st", "", "a.b", "ä"])
def test_a_methods_name_serves_as_file_and_dataset_name(name: str) -> None:
    raw = parameters()
    raw["methods"][name] = raw["methods"]["grpo"]
    assert repr(name) in fault(raw)


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [(1, (0,)), (3, (0, 1, 2)), ([0], (0,)), ([7, 3], (7, 3)), ((5,), (5,))],
)
def test_seeds_are_a_list_or_a_count(seeds: Any, expected: tuple[int, ...]) -> None:
    assert Parameters.read(changed("experiment.seeds", seeds)).experiment.seeds == expected


@pytest.mark.parametrize("seeds", [0, -1, MAX_SEEDS + 1, 10**12, True, 1.0, "3", None, {"a": 1}])
def test_a_bad_count_of_seeds_says_what_is_allowed(seeds: object) -> None:
    lines = faults_that("experiment.seeds", seeds)
    assert lines[1:] == [
        f"  experiment.seeds = {seeds!r}: must be a list of seeds, or a count of them, 1 to 1000"
    ]


@pytest.mark.parametrize(
    ("path", "wrong", "message"),
    [
        ("experiment.seeds", [0, 1, 0], "holds a value twice"),
        ("experiment.seeds", [2**31], "holds 2147483648; the largest seed is 2147483647"),
        ("experiment.tasks", ["counting", "counting"], "holds a value twice"),
        ("experiment.methods", ["sft", "sft"], "holds a value twice"),
        ("experiment.seeds", [], "must hold at least one value"),
        ("experiment.tasks", [], "must hold at least one value"),
        ("experiment.methods", [], "must hold at least one value"),
        ("experiment.tasks", "counting", "Input should be a list"),
    ],
)
def test_the_lists_of_the_grid(path: str, wrong: object, message: str) -> None:
    assert faults_that(path, wrong)[1:] == [f"  {path} = {wrong!r}: {message}"]


@pytest.mark.parametrize("environment", sorted({*ENVIRONMENTS} - {*ABLATIONS} - ONE_METHOD))
def test_grpo_and_grpo_d_differ_in_nothing_but_the_kl_weight(environment: str) -> None:
    raw = parameters(environment)
    pairs = [
        (method, method.replace("grpo", "grpo_d", 1))
        for method in raw["methods"]
        if method.replace("grpo", "grpo_d", 1) in raw["methods"] and "grpo" in method
    ]
    assert pairs
    for constant, dynamic in pairs:
        for task in TASKS:
            a, b = (
                resolve_method(raw, method, task).model_dump() for method in (constant, dynamic)
            )
            assert {key for key in a if a[key] != b[key]} == {"kl"}
            assert a.keys() == b.keys()


@pytest.mark.parametrize(("environment", "key"), ABLATIONS.items())
def test_the_methods_of_an_ablation_differ_in_what_it_is_about(environment: str, key: str) -> None:
    raw = parameters(environment)
    for task in TASKS:
        first, *others = (
            resolve_method(raw, method, task).model_dump() for method in raw["methods"]
        )
        assert others
        for other in others:
            assert {name for name in first if first[name] != other[name]} == {key}


@pytest.mark.parametrize("world", ["", "paper_"])
def test_the_papers_ablations_differ_from_the_main_grid_in_their_value_alone(world: str) -> None:
    main = load("paper" if world else "base")
    constants, formats = load(f"{world}kl_constants"), load(f"{world}format_weights")
    others = {"experiment", "methods", "report"}
    for task in TASKS:
        grpo = resolve_method(main, "grpo", task)
        swept = [resolve_method(constants, name, task) for name in constants["methods"]]
        assert [rl.kl.weight for rl in swept] == [0, 0.01, 0.02, 0.03, 0.04, 0.05]
        assert {rl.model_copy(update={"kl": grpo.kl}) for rl in swept} == {grpo}
        grpo_d = resolve_method(main, "grpo_d", task)
        swept = [resolve_method(formats, name, task) for name in formats["methods"]]
        assert [rl.rewards.format for rl in swept] == [0, 0.25, 0.5, 0.75, 1]
        assert {rl.rewards.accuracy for rl in swept} == {1.0}
        assert {rl.model_copy(update={"rewards": grpo_d.rewards}) for rl in swept} == {grpo_d}
        assert swept[-1] == grpo_d
    for raw in (constants, formats):
        assert {key for key in raw if raw[key] != main[key]} <= others | {"folders", "rebuild"}


@pytest.mark.parametrize(
    ("environment", "over_time"),
    [
        ("kl_ablation", ("explore_exploit", "linear", "cosine", "exponential", "step")),
        ("drift", ("dip_fast",)),
        ("long", ("explore_exploit",)),
    ],
)
def test_dynamic_weights_stand_beside_constants_of_their_mean_and_their_end(
    environment: str, over_time: tuple[str, ...]
) -> None:
    """Else a shape would be compared with a strength."""
    raw = parameters(environment)
    schedules = {name: resolve_method(raw, name, "counting").kl for name in raw["methods"]}
    constants = {name: kl.weight for name, kl in schedules.items() if isinstance(kl, Constant)}
    baselines: dict[str, list[float]] = {}
    for method, baseline in raw["report"]["comparisons"]:
        if method not in constants and baseline in constants:
            baselines.setdefault(method, []).append(constants[baseline])
    for method in over_time:
        updates = raw["training"]["updates"]
        controller = KLController(schedules[method], updates)
        weights = [controller.next_weight(update, 0.0) for update in range(updates)]
        mean, *end = baselines[method]
        assert mean == pytest.approx(sum(weights) / updates, rel=0.03)
        assert set(end) <= {weights[-1], 1e-6}


def test_the_main_grids_control_has_grpo_ds_mean_weight() -> None:
    for task in TASKS:
        dynamic, mean = (
            resolve_method(load("base"), name, task) for name in ("grpo_d", "grpo_mean")
        )
        controller = KLController(dynamic.kl, dynamic.updates)
        weights = [controller.next_weight(update, 0.0) for update in range(dynamic.updates)]
        assert mean.kl.weight == pytest.approx(sum(weights) / dynamic.updates, rel=0.01)
        assert dynamic.model_copy(update={"kl": mean.kl}) == mean


def test_a_comparison_of_what_is_no_method_is_refused() -> None:
    message = fault(changed("report.comparisons", [["grpo_d", "gpro"]]))
    assert "report.comparisons holds 'gpro', which is no method" in message
    assert "grpo_format" in message
    for wrong in ([["grpo"]], [["grpo", "sft", "sft"]], ["grpo", "sft"], "grpo"):
        assert "report.comparisons" in fault(changed("report.comparisons", wrong))


def test_base_models_are_one_path_or_several() -> None:
    assert Parameters.read(changed("base_model.path", "one")).base_model.path == ("one",)
    both = Parameters.read(changed("base_model.path", ["one", "two"])).base_model
    assert both.path == ("one", "two")
    for wrong in (3, True, [], ["one", 2], {"one": 1}):
        assert "base_model.path" in fault(changed("base_model.path", wrong))


LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "modules": "all-linear", "merge": False}
COLOCATE = {"mode": "colocate", "gpu_memory": 0.3}
SERVER = {"mode": "server", "host": "there", "port": 8000}


def without(block: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in block.items() if name != key}


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("training.optimizer", "adam", "training.optimizer = 'adam': "),
        ("training.freeze_vision", "no", "training.freeze_vision = 'no': "),
        ("training.lora", True, "must be a block with the keys alpha, dropout, merge, modules"),
        ("training.lora", {**LORA, "rnak": 4}, "training.lora.rnak: unknown key. Did you mean 'ra"),
        ("training.lora", without(LORA, "merge"), "training.lora.merge: missing; add it"),
        ("training.lora", {**LORA, "rank": 0}, "training.lora.rank = 0: "),
        ("training.lora", {**LORA, "alpha": 0.0}, "training.lora.alpha = 0.0: "),
        ("training.lora", {**LORA, "dropout": 1.0}, "training.lora.dropout = 1.0: "),
        ("training.lora", {**LORA, "modules": "q_proj"}, "or a list of names of layers: [q_proj"),
        (
            "training.lora",
            {**LORA, "modules": []},
            "training.lora.modules = []: must be all-linear",
        ),
        (
            "training.lora",
            {**LORA, "modules": ["q_proj", 3]},
            "training.lora.modules = ['q_proj', 3",
        ),
        ("model.dtype", "float16", "model.dtype = 'float16': "),
        ("model.dtype", "bfloat16", "Set compute.bf16: true, or model.dtype: float32."),
        ("model.attention", "flash", "model.attention = 'flash': "),
        ("model.min_pixels", 0, "model.min_pixels = 0: "),
        ("model.max_pixels", -1, "model.max_pixels = -1: "),
        ("base_model.path", None, "base_model = {'path': None, 'hub': None}: needs either path or"),
        ("base_model.hub", {"id": "a/b", "revision": "c"}, "needs either path or hub, and null"),
        ("base_model.hub", {"id": "a/b"}, "base_model.hub.revision: missing; add it"),
        ("base_model.hub", {"id": "ab", "revision": "c"}, "base_model.hub.id = 'ab': "),
        ("rl.num_iterations", 5, "rl.num_iterations = 5: must divide updates (48)"),
        ("rl.kl_estimator", "k4", "rl.kl_estimator = 'k4': Input should be 'k1', 'k2' or 'k3'"),
        ("rl.kl_estimator", "k1", "rl.kl_estimator = 'k1': asks for unbiased_kl: true. By itself"),
        ("rl.ref_model_mixup_alpha", 0.0, "rl.ref_model_mixup_alpha = 0.0: "),
        ("rl.sync_ref_model", True, "rl.ref_model_sync_steps = 512: must be at most updates - num"),
        ("rl.loss_type", "drgrpo", "rl.loss_type = 'drgrpo': Input should be 'grpo', 'dr_grpo'"),
        ("compute.num_processes", 0, "compute.num_processes = 0: "),
        ("compute.micro_batch_size", 0, "compute.micro_batch_size = 0: "),
        ("compute.gradient_checkpointing", None, "compute.gradient_checkpointing = None: "),
        ("compute.launcher", 3, "compute.launcher = 3: "),
        ("compute.vllm", "colocate", "with the keys gpu_memory, mode; or host, mode, port"),
        (
            "compute.vllm",
            {"mode": "local"},
            "compute.vllm.mode = 'local': not allowed. Allowed: co",
        ),
        ("compute.vllm", {**COLOCATE, "gpu_memory": 1.0}, "compute.vllm.gpu_memory = 1.0: "),
        ("compute.vllm", {**COLOCATE, "gpu_memroy": 1}, "Did you mean 'gpu_memory'? Allowed here"),
        ("compute.vllm", {**SERVER, "port": 65536}, "compute.vllm.port = 65536: "),
        ("compute.vllm", without(SERVER, "host"), "compute.vllm.host: missing; add it"),
    ],
)
def test_what_cannot_be_trained_so_is_refused(path: str, value: object, told: str) -> None:
    assert told in fault(changed(path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.lora", LORA),
        ("training.lora", {**LORA, "modules": ["q_proj", "v_proj"], "alpha": 8}),
        ("model.max_pixels", 401408),
        ("compute.vllm", COLOCATE),
        ("compute.vllm", SERVER),
        ("compute.micro_batch_size", 8),
        ("compute.micro_batch_size", 1000),
        ("compute.num_processes", 2),
    ],
)
def test_what_can_be_trained_so_is_not_refused(path: str, value: object) -> None:
    Parameters.read(changed(path, value))


def test_an_estimator_a_reference_and_adapters_that_go_together() -> None:
    """k1 wants its gradient unbiased, k2's own is, and no ratio of sequences makes it so; adapters
    have no reference that could move."""
    raw = changed("rl.unbiased_kl", True)
    raw["methods"]["grpo"]["kl_estimator"] = "k1"
    Parameters.read(raw)
    raw["methods"]["grpo"]["kl_estimator"] = "k2"
    assert "methods.grpo.kl_estimator = 'k2': asks for unbiased_kl: false." in fault(raw)
    raw["methods"]["grpo"] |= {"kl_estimator": "k1", "importance_sampling_level": "sequence"}
    told = "rl.unbiased_kl = True: does not go with importance_sampling_level = 'seq"
    assert told in fault(raw)
    raw = changed("rl.sync_ref_model", True)
    raw["rl"] |= {"num_iterations": 8, "ref_model_sync_steps": 40}
    Parameters.read(raw)
    raw["rl"]["ref_model_sync_steps"] = 41  # the last completions are sampled after 40 updates
    told = "rl.ref_model_sync_steps = 41: must be at most updates - num_iterations (40), or"
    assert told in fault(raw)
    raw["rl"]["ref_model_sync_steps"] = 40
    raw["training"]["lora"] = LORA
    assert "rl.sync_ref_model = True: does not go with lora" in fault(raw)


def test_pixels_have_bounds_in_their_order() -> None:
    raw = changed("model.min_pixels", 200)
    raw["model"]["max_pixels"] = 100
    assert "min_pixels = 200, max_pixels = 100" in fault(raw)


def test_weights_in_bfloat16_go_with_arithmetic_in_it() -> None:
    raw = changed("model.dtype", "bfloat16")
    raw["compute"]["bf16"] = True
    Parameters.read(raw)


@pytest.mark.parametrize(
    ("key", "value", "method"),
    [("micro_batch_size", 3, "sft"), ("num_processes", 5, "sft"), ("micro_batch_size", 32, None)],
)
def test_rows_of_an_update_go_evenly_into_passes(key: str, value: int, method: str | None) -> None:
    raw = changed(f"compute.{key}", value)
    if method is None:  # 16 prompts are one pass of at most 32; so are not 128 completions of 3
        Parameters.read(raw)
        raw["rl"]["completions_per_prompt"] = 3
        method = "grpo"
    message = fault(raw)
    assert f"\n  methods.{method}: " in message
    assert f"compute.{key} = {value}" in message
    assert "prompts_per_update" in message


def from_data_set(steps: str | None) -> dict[str, Any]:
    """A task that is read from files."""
    columns = {"image": "image", "question": "problem", "answer": "solution", "steps": steps}
    source = {"kind": "jsonl", "file": "data/a.jsonl", "images": "data"}
    split = {"source": source, "columns": columns, "prompt": None}
    return {"train": split, "test": split}


def test_a_task_may_be_a_data_set() -> None:
    raw = changed("experiment.tasks", ["counting", "charts"])
    assert "experiment.tasks holds 'charts', which is no task" in fault(raw)
    raw["data_preparation"]["sources"] = {"charts": from_data_set(None)}
    Parameters.read(raw)
    raw["data_preparation"]["sources"]["charts"]["trian"] = {}
    assert "sources.charts.trian: unknown key. Did you mean 'train'? Allowed here" in fault(raw)


def test_worked_steps_are_asked_for_where_there_are_any() -> None:
    raw = changed("data_preparation.sources", {"charts": from_data_set(None)})
    raw["experiment"] |= {"tasks": ["charts"], "methods": ["grpo"]}
    Parameters.read(raw)  # sft_cot, which wants them, is not in the grid
    raw["experiment"]["methods"] = ["grpo", "sft_cot"]
    message = fault(raw)
    assert "methods.sft_cot.target = 'steps': the data set of task 'charts' has no" in message
    assert "data_preparation.sources.charts.train.columns.steps" in message
    raw["data_preparation"]["sources"] = {"charts": from_data_set("worked")}
    Parameters.read(raw)
    raw["data_preparation"]["sources"] = {"counting": from_data_set(None)}
    raw["experiment"]["tasks"] = ["geometry"]
    Parameters.read(raw)


def test_the_kl_weights_are_what_the_methods_are_called_for() -> None:
    """The paper's, in both worlds: by the task that is trained on."""
    for environment in ("base", "paper"):
        weights = {
            (task, method): resolve_method(load(environment), method, task).kl
            for task in TASKS
            for method in ("grpo", "grpo_d")
        }
        dip = {"schedule": "explore_exploit", "explore_share": 0.3}
        assert weights["counting", "grpo"] == Constant(schedule="constant", weight=0.04)
        assert weights["geometry", "grpo"] == Constant(schedule="constant", weight=0.01)
        assert weights["counting", "grpo_d"] == ExploreExploit(**dip, low=0.04, high=0.1)
        assert weights["geometry", "grpo_d"] == ExploreExploit(**dip, low=0.0, high=0.02)
        assert not load(environment)["rl"]["unbiased_kl"]


def test_a_method_may_be_another_on_a_task_that_it_is_trained_on() -> None:
    raw = parameters()
    raw["methods"]["sft"]["trained_on"] = {"geometry": {"learning_rate": 0.5, "updates": 7}}
    other, same = (resolve_method(raw, "sft", task) for task in ("geometry", "counting"))
    assert (other.learning_rate, other.updates) == (0.5, 7)
    assert (same.learning_rate, same.updates) == (1e-5, 48)
    assert resolve_method(raw, "grpo", "clock").kl.weight == 0.04  # type: ignore[union-attr]
    Parameters.read(raw)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"chess": {}}, "methods.grpo.trained_on holds 'chess', which is no task. Allowed: "),
        ({"geometry": {"kll": 1}}, "methods.grpo.trained_on.geometry.kll: unknown key. Did you"),
        ({"geometry": {"updates": 0}}, "methods.grpo.trained_on.geometry.updates = 0: "),
        ({"geometry": {"algorithm": "sft"}}, "methods.grpo.trained_on.geometry.algorithm: a "),
        ({"geometry": 3}, "methods.grpo.trained_on = {'geometry': 3}: must be a block of tasks"),
        ("geometry", "methods.grpo.trained_on = 'geometry': must be a block of tasks"),
        (None, "methods.grpo.trained_on = None: must be a block of tasks"),
    ],
)
def test_what_a_method_says_of_a_task_is_checked(entry: object, told: str) -> None:
    assert told in fault(changed("methods.grpo.trained_on", entry))


def test_few_examples_are_those_of_a_task() -> None:
    message = fault(changed("data_preparation.train_examples", {"chess": 100}))
    assert "data_preparation.train_examples holds 'chess', which is no task. Allowed: " in message
    read = Parameters.read(changed("data_preparation.train_examples", {"counting": 100}))
    sizes = read.data_preparation.sizes_of
    assert sizes("counting", ("train", "test")) == {"train": 100, "test": 1000}
    assert sizes("geometry", ("train", "validation")) == {"train": 1000, "validation": 200}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_method_gets_the_same_budget(environment: str) -> None:
    raw = parameters(environment)
    budgets = {
        (method.updates, method.prompts_per_update)
        for task in TASKS
        for method in (resolve_method(raw, name, task) for name in raw["methods"])
    }
    assert len(budgets) == 1


def test_a_method_overrides_its_algorithm_which_overrides_the_budget() -> None:
    raw = parameters()
    raw["rl"]["checkpoint_every_updates"] = 7
    assert resolve_method(raw, "grpo", "counting").checkpoint_every_updates == 7
    assert resolve_method(raw, "sft", "counting").checkpoint_every_updates != 7
    raw["methods"]["grpo"] |= {"checkpoint_every_updates": 9, "learning_rate": 0.125}
    assert resolve_method(raw, "grpo", "counting").checkpoint_every_updates == 9
    assert resolve_method(raw, "grpo", "counting").learning_rate == 0.125
    assert resolve_method(raw, "grpo_d", "counting").checkpoint_every_updates == 7


def test_parameters_never_change() -> None:
    read = Parameters.read(load("base"))
    with pytest.raises(ValueError, match="frozen"):
        read.training.updates = 3  # type: ignore[misc]


def test_the_blind_evaluation_differs_in_the_pictures_alone() -> None:
    seen, blind = load("base")["evaluation"], load("blind")["evaluation"]
    assert {key for key in {*seen, *blind} if seen.get(key) != blind.get(key)} == {"shuffle_images"}


def test_conf_paper_holds_the_numbers_of_its_sources() -> None:
    """R1-V's scripts and test files; what departs from them is marked in the YAML."""
    raw = load("paper")
    grpo, sft = (resolve_method(raw, name, "geometry") for name in ("grpo", "sft"))
    assert isinstance(grpo, RL)
    assert (grpo.learning_rate, grpo.temperature, grpo.completions_per_prompt) == (1e-6, 1.0, 8)
    assert (grpo.max_completion_tokens, grpo.prompts_per_update, grpo.updates) == (512, 16, 100)
    assert (grpo.rewards.accuracy, grpo.rewards.format) == (1.0, 1.0)
    assert raw["data_preparation"]["train_examples"] == {"counting": 100}
    assert (sft.learning_rate, sft.lr_schedule, sft.warmup_ratio) == (2e-5, "cosine", 0.1)
    assert raw["model"]["max_pixels"] == 401408
    assert raw["evaluation"]["max_completion_tokens"] == 1024
    data = raw["data_preparation"]
    tail = "utput the thinking process in <think> </think> and final answer (number) in "
    tail += "<answer> </answer> tags."
    assert data["prompt"] == "{question}  O" + tail
    prompts = {task: source["test"]["prompt"] for task, source in data["sources"].items()}
    assert prompts == {"counting": "{question} First o" + tail, "geometry": "{question} O" + tail}


def test_the_methods_that_the_report_knows_are_there() -> None:
    """A name that is not in a run is left out, so that a misspelt one would be missed."""
    known = shipped("known_methods")
    named = {*known["labels"], *known["positive_controls"], known["format_control"]}
    assert named <= shipped("methods").keys()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("cluster.address", "ray://head:10001", "cluster.address = 'ray://head:10001': "),
        ("cluster.train.gpus", 1.5, "must be a whole number, or a part of 1"),
        (
            "cluster.train.gpus",
            2,
            "gpus = 2 (machines: 1) and compute.num_processes = 1",
        ),
        ("cluster.train.machines", 2, "cluster.train.machines = 2 and compute.num_processes = 1"),
        ("cluster.evaluate.gpus", 2, "cluster.evaluate.gpus = 2: one process tests, on one GPU"),
    ],
)
def test_what_ray_cannot_set_aside_is_refused(path: str, value: object, message: str) -> None:
    assert message in fault(changed(path, value))


def test_cells_may_share_a_gpu_and_have_one_a_process() -> None:
    Parameters.read(changed("cluster.train.gpus", 0.25))
    raw = changed("cluster.train.gpus", 2)
    raw["compute"]["num_processes"] = 4
    raw["cluster"]["train"]["machines"] = 2
    Parameters.read(raw)
    raw["compute"]["num_processes"] = 2
    raw["cluster"]["train"] |= {"machines": 1, "gpus": 0.5}
    assert "cluster.train.gpus = 0.5 (machines: 1) and compute.num_processes = 2" in fault(raw)


@pytest.mark.parametrize(
    ("train", "workers", "at_once"),
    [
        ({"cpus": 1}, None, 12),
        ({"cpus": 8}, None, 1),
        ({"gpus": 0.1}, None, 10),
        ({"gpus": 0.5, "custom": {"fast": 1.0}}, None, 0),
        ({"cpus": 2, "machines": 2}, None, 3),
        ({"cpus": 2}, 4, 4),
        ({"cpus": 4}, 4, 3),
    ],
)
def test_cells_are_trained_at_once_as_the_machines_hold_them(
    train: dict[str, Any], workers: int | None, at_once: int
) -> None:
    block = shipped("cluster")
    cluster = Cluster(**{**block, "workers": workers, "train": {**block["train"], **train}})
    assert cluster.trained_at_once({"CPU": 12.0, "GPU": 1.0, "memory": 1e9}) == at_once
