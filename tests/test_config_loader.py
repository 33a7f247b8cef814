"""The grid comes from the configuration of the session; the pipelines follow it."""

import inspect
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project
from kedro.io import CatalogConfigResolver
from kedro.pipeline import Pipeline
from kedro_viz.data_access.repositories import ModularPipelinesRepository
from kedro_viz.utils import _hash_input_output
from pydantic import BaseModel

from othink_pipeline.cells.grid import Grid
from othink_pipeline.config_loader import GridConfigLoader, read_grid
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.hooks import RECORDING
from othink_pipeline.pipelines.wiring import bind
from tests.support import commands

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = sorted(
    folder.name
    for folder in (ROOT / "conf").iterdir()
    if folder.is_dir() and folder.name != "local"
)
PIPELINES = {
    *("__default__", "base_model", "cross_task", "data_preparation", "evaluation"),
    *("preflight", "register", "report", "rl", "same_task_eval", "sft"),
}
IN_MEMORY = {"parameters", "preflight.places", "preflight.fit", "preflight.costs"}
"""Kedro's own, and what a table of checks is printed from: nothing of it is kept."""
TWO_SEEDS: dict[str, Any] = {"experiment": {"methods": ["sft", "grpo_d"], "seeds": [3, 5]}}

Configure = Callable[..., GridConfigLoader]


@pytest.fixture(scope="module")
def bootstrapped() -> None:
    """Once: Kedro looks through all modules that are there each time."""
    bootstrap_project(ROOT)


@pytest.fixture
def configure(bootstrapped: None) -> Iterator[Configure]:
    """Open a configuration the way a session does; the one before comes back afterwards."""
    before = GridConfigLoader.current

    def load(
        env: str = "base", runtime_params: dict[str, Any] | None = None, conf: Path = ROOT / "conf"
    ) -> GridConfigLoader:
        return GridConfigLoader(
            str(conf), env, runtime_params, base_env="base", default_run_env="base"
        )

    yield load
    GridConfigLoader.current = before
    pipelines.configure("othink_pipeline.pipeline_registry")


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A copy of the configuration, to spoil."""
    return Path(
        shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("local"))
    )


def node_names(pipeline: Pipeline) -> set[str]:
    return {node.name for node in pipeline.nodes}


def test_the_grid_is_that_of_the_parameters(configure: Configure) -> None:
    configure("smoke")
    assert read_grid() == Grid(
        ("counting", "geometry"), {"sft": "sft", "grpo": "rl", "grpo_d": "rl"}, (0,)
    )


def test_a_seed_and_a_method_are_configuration_only(configure: Configure) -> None:
    half = {"algorithm": "rl", "kl": {"schedule": "constant", "weight": 0.02}}
    configure(
        "base",
        {
            "experiment": {"methods": ["sft", "grpo_half"], "seeds": 2},
            "methods": {"grpo_half": half},
        },
    )
    assert read_grid() == Grid(("counting", "geometry"), {"sft": "sft", "grpo_half": "rl"}, (0, 1))
    names = node_names(pipelines["rl"])
    assert "counting.grpo_half.s1.train_rl" in names
    assert not any(".sft." in name for name in names)


def test_params_change_one_key_and_keep_the_block(configure: Configure) -> None:
    """In every environment: of a block that it replaces and of one that it takes from base."""
    plain = configure("smoke")["parameters"]
    params = {"training": {"updates": 5}, "rl": {"temperature": 0.5}}
    changed = configure("smoke", params)["parameters"]
    assert changed["training"] == {**plain["training"], "updates": 5}
    assert changed["rl"] == {**plain["rl"], "temperature": 0.5}
    assert {key for key in plain if plain[key] != changed[key]} == {"training", "rl"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"rl: [\n", "parameters_rl.yml"),
        (b"\trl: 1\n", "parameters_rl.yml"),
        (b"rl: {}\nrl: {}\n", "parameters_rl.yml: no YAML in UTF-8 with each key once"),
        (b"rl: {}\nrl: {}\n", "duplicate key rl"),
        (b"rl: {}\ntraining: {updates: 3}\n", "training.updates"),
        (b"rl:\n  temperature: ${nowhere}\n", "nowhere"),
        (b"rl: *nowhere\n", "undefined alias"),
        (b"- rl\n", "do not load"),
        (b"rl\n", "rl"),
        (b"\xff\xfe\x00", "parameters_rl.yml: no YAML in UTF-8"),
        (b"", "rl: missing"),
    ],
)
def test_a_file_that_does_not_load_is_told_in_one_message(
    configure: Configure, conf: Path, text: bytes, message: str
) -> None:
    (conf / "base" / "parameters_rl.yml").write_bytes(text)
    configure("base", conf=conf)
    with pytest.raises(ConfigurationError) as error:
        read_grid()
    assert message in error.value.message


@pytest.mark.parametrize(
    ("file", "text", "key"),
    [
        ("globals.yml", "data: ${oc.env:HOME}", "globals"),
        ("globals.yml", "data: ${globals:dta}", "globals"),
        ("globals.yml", "- data", "globals"),
        ("globals.yml", "data: data/x\nbuilds_on: 3", "globals"),
        ("mlflow.yml", "server: ${globals:nope}", "mlflow"),
    ],
)
def test_so_is_a_fault_in_what_is_no_parameter(
    configure: Configure, conf: Path, file: str, text: str, key: str
) -> None:
    (conf / "smoke" / file).write_text(text)
    with pytest.raises(ConfigurationError, match=f"the {key} do not load"):
        configure("smoke", conf=conf)
        loader = GridConfigLoader.current
        assert loader is not None
        loader.config_patterns["mlflow"] = ["mlflow*"]
        _ = loader[key]


def test_an_unknown_environment_is_told_in_one_message(configure: Configure) -> None:
    configure("smoek")
    with pytest.raises(ConfigurationError, match="smoek"):
        read_grid()


def test_another_session_in_the_same_process_has_its_own_pipelines(configure: Configure) -> None:
    configure("base", TWO_SEEDS)
    first = node_names(pipelines["__default__"])
    assert "counting.grpo_d.s5.train_rl" in first
    configure("smoke")
    second = node_names(pipelines["__default__"])
    assert "counting.grpo_d.s5.train_rl" not in second
    assert "counting.grpo.s0.train_rl" in second
    assert not any(".s3." in name or ".s5." in name for name in second)


def test_all_pipelines_are_registered(configure: Configure) -> None:
    configure("base")
    assert set(pipelines) == PIPELINES
    assert pipelines["__default__"] is pipelines["cross_task"]
    assert node_names(pipelines["sft"]) | node_names(pipelines["rl"]) < node_names(
        pipelines["cross_task"]
    )


def test_the_pipelines_of_every_environment_build(configure: Configure) -> None:
    """Kedro itself sees that no two nodes have one name."""
    for env in ENVIRONMENTS:
        configure(env)
        assert pipelines["__default__"].nodes, env


def test_every_cell_is_trained_once_and_tested_on_every_task(configure: Configure) -> None:
    configure("base", TWO_SEEDS)
    names = node_names(pipelines["cross_task"])
    cells = read_grid().cells
    assert len(cells) == 8
    train = {"sft": "train_sft", "grpo_d": "train_rl"}
    assert {name for name in names if "train_" in name.rpartition(".")[2]} == {
        f"{cell.name}.{train[cell.method]}" for cell in cells
    }
    models = [*(cell.name for cell in cells), "base.b0"]
    assert {name for name in names if "evaluate_on_" in name} == {
        f"{model}.evaluate_on_{task}" for model, task in product(models, ("counting", "geometry"))
    }


def test_the_diagonal_is_tested_on_its_own_task_alone(configure: Configure) -> None:
    configure("base")
    names = {name for name in node_names(pipelines["same_task_eval"]) if "evaluate_on_" in name}
    assert names == {f"{cell.name}.evaluate_on_{cell.task}" for cell in read_grid().cells}


def test_every_training_gets_the_same_inputs_but_for_its_method(configure: Configure) -> None:
    configure("base", TWO_SEEDS)
    nodes = {node.name: node for node in pipelines["cross_task"].nodes}
    for cell in read_grid().cells:
        algorithm = "sft" if cell.method == "sft" else "rl"
        node = nodes[f"{cell.name}.train_{algorithm}"]
        assert node.inputs == [
            "base.b0.checkpoint",
            "params:training",
            f"params:{algorithm}",
            f"params:methods.{cell.method}",
            "params:evaluation",
            "params:folders",
            "params:model",
            "params:compute",
            "params:health",
            "counting.examples",
            "geometry.examples",
        ]
        assert node.outputs == [f"{cell.name}.checkpoint", f"{cell.name}.history"]
        assert (node.namespace, node.tags) == (cell.name, {algorithm})
        assert node.identity == {"cell": cell}
        assert node.preview().content.splitlines() == [
            *("base.b0.checkpoint →", "counting.examples →", "geometry.examples →"),
            *(f"→ {cell.name}.checkpoint", f"→ {cell.name}.history"),
        ]


def test_params_take_no_key_away(configure: Configure) -> None:
    kl = {"schedule": "constant", "weight": 0.1}
    loader = configure("base", {"methods": {"grpo_d": {"kl": kl}}})
    left = ("low", "high", "explore_share")
    assert loader["parameters"]["methods"]["grpo_d"]["kl"].keys() == {*kl, *left}
    with pytest.raises(ConfigurationError) as error:
        read_grid()
    for key in ("low", "explore_share"):
        assert (
            f".kl.{key}: unknown key. Allowed here: schedule, weight. Where it is "
            "left over from another kind of kl: --params takes no key away; write the block anew "
            "in the parameters.yml of an environment"
        ) in error.value.message


def test_an_environment_may_build_on_others(configure: Configure, conf: Path) -> None:
    """Block by block the last one counts, and every place is that of the environment itself.

    What two of them build on lies below both.
    """
    for name, block, below in (
        ("low", "sft: {a: 1}\nrl: {b: 1}\nreport: {c: 1}\n", ""),
        ("middle", "rl: {b: 2}\nreport: {c: 2}\n", "builds_on: [low]\n"),
        ("side", "cluster: {e: 4}\n", "builds_on: [low]\n"),
        ("top", "report: {d: 3}\n", "builds_on: [middle, side]\n"),
    ):
        (conf / name).mkdir()
        (conf / name / "parameters.yml").write_text(block)
        (conf / name / "globals.yml").write_text(f"{below}data: data/{name}\n")
    raw = configure("top", conf=conf)["parameters"]
    blocks = [raw[name] for name in ("sft", "rl", "report", "cluster")]
    assert blocks == [{"a": 1}, {"b": 2}, {"d": 3}, {"e": 4}]
    assert raw["training"] == configure("base", conf=conf)["parameters"]["training"]
    assert raw["folders"]["checkpoints"] == "data/top/06_models"
    loader = configure("top", conf=conf)
    assert loader["catalog"]["report"]["dataset"]["filepath"].startswith("data/top/")


@pytest.mark.parametrize("name", ["smok", "top", "../conf/smoke"])
def test_an_environment_builds_on_folders_that_are_there_and_not_on_itself(
    configure: Configure, conf: Path, name: str
) -> None:
    (conf / "top").mkdir()
    (conf / "top" / "globals.yml").write_text(f"builds_on: [{name}]\ndata: data/top\n")
    with pytest.raises(ConfigurationError) as error:
        configure("top", conf=conf)
    assert f"conf/top/globals.yml: builds_on holds {name!r}" in error.value.message


def test_an_environment_leaves_nothing_of_a_block_that_it_writes_anew(
    configure: Configure, conf: Path
) -> None:
    (conf / "mine").mkdir()
    (conf / "mine" / "parameters.yml").write_text(
        "experiment: {tasks: [counting], methods: [grpo_d], seeds: 1}\n"
        "methods: {grpo_d: {algorithm: rl, kl: {schedule: constant, weight: 0.1}}}\n"
        "report: {comparisons: [], equivalence_margin: 3.0}\n"
    )
    raw = configure("mine", conf=conf)["parameters"]
    assert raw["methods"] == {
        "grpo_d": {"algorithm": "rl", "kl": {"schedule": "constant", "weight": 0.1}}
    }
    assert read_grid().algorithms == {"grpo_d": "rl"}
    changed = configure("mine", {"methods": {"grpo_d": {"kl": {"weight": 0.3}}}}, conf=conf)
    kl = changed["parameters"]["methods"]["grpo_d"]["kl"]
    assert kl == {"schedule": "constant", "weight": 0.3}


def test_one_method_of_one_task_runs_alone(configure: Configure) -> None:
    """`kedro run --namespaces=counting.grpo_d`; not grpo, though it begins the same way."""
    configure("base", {"experiment": {"methods": ["sft", "grpo", "grpo_d"], "seeds": 2}})
    cells = ("counting.grpo_d.s0", "counting.grpo_d.s1")
    nodes = ("train_rl", "evaluate_on_counting", "evaluate_on_geometry")
    alone = pipelines["__default__"].filter(node_namespaces=["counting.grpo_d"])
    assert node_names(alone) == {
        *(f"{cell}.{node}" for cell, node in product(cells, nodes)),
        *("counting.grpo_d.collect_tests", "counting.grpo_d.collect_training"),
    }
    datasets = {name for name in alone.inputs() if not name.startswith("params:")}
    assert datasets == {"base.b0.checkpoint", "counting.examples", "geometry.examples"}
    one = pipelines["__default__"].filter(node_namespaces=["counting.grpo.s1"])
    assert node_names(one) == {f"counting.grpo.s1.{node}" for node in nodes}


def test_evaluation_never_feeds_training(configure: Configure) -> None:
    """Nor does a checkpoint feed another cell's training."""
    configure("base")
    whole = pipelines["cross_task"]
    for cell in read_grid().cells:
        upstream = whole.to_outputs(f"{cell.name}.checkpoint")
        assert {name.rpartition(".")[2] for name in node_names(upstream)} == {
            *("prepare_examples", "check_base_model"),
            "train_sft" if cell.method == "sft" else "train_rl",
        }


@pytest.mark.parametrize("name", sorted(PIPELINES - {"evaluation", "register", "report"}))
def test_pipelines_start_from_parameters_alone(configure: Configure, name: str) -> None:
    configure("base")
    inputs = pipelines[name].inputs()
    assert all(name == "parameters" or name.startswith("params:") for name in inputs)


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_parameters_exist_and_are_typed(configure: Configure, name: str) -> None:
    """A type hint that does not resolve would switch off Kedro's validation in silence."""
    parameters = configure("base")["parameters"]
    for node in pipelines[name].nodes:
        hints = get_type_hints(node.func)
        for position, dataset in enumerate(node.inputs):
            if dataset.startswith("params:"):
                value: Any = parameters
                for key in dataset.removeprefix("params:").split("."):
                    value = value[key]
                hint = list(hints.values())[position]
                if isinstance(hint, type) and issubclass(hint, BaseModel):
                    hint.model_validate(value)
                else:
                    assert hint == dict[str, Any], (node.name, dataset, hint)


def test_nodes_can_be_sent_to_other_processes(configure: Configure) -> None:
    configure("base")
    for node in pipelines["cross_task"].nodes:
        assert inspect.isfunction(node.func)  # of anything else Kedro-Viz shows no code
        again = pickle.loads(pickle.dumps(node))
        assert (again.name, again.func) == (node.name, node.func)
        tagged = node.tag("another")  # Kedro's copy
        for same in (again, tagged):
            assert getattr(same, "identity", None) == getattr(node, "identity", None)


def test_every_dataset_has_a_file_of_its_own(configure: Configure) -> None:
    """Kedro would keep in memory, in silence, what the catalog does not know."""
    loader = configure("base", TWO_SEEDS)
    resolver = CatalogConfigResolver(loader["catalog"])
    datasets = set.union(*(set(pipelines[name].datasets()) for name in PIPELINES))
    paths: dict[str, str] = {}
    for dataset in datasets - IN_MEMORY:
        if not dataset.startswith("params:"):
            config = resolver.resolve_pattern(dataset)
            path = config.get("dataset", config)["filepath"]
            assert path not in paths, f"{dataset} and {paths[path]} share {path}"
            paths[path] = dataset
    files = {dataset: path for path, dataset in paths.items()}
    cell = "counting.grpo_d.s5"
    assert files["base.b0.counting.predictions"] == "data/07_model_output/base/b0/counting.json"
    assert files[f"{cell}.checkpoint"] == "data/06_models/counting/grpo_d/s5.json"
    assert files[f"{cell}.history"] == "data/06_models/counting/grpo_d/s5_history.csv"
    assert files[f"{cell}.geometry.predictions"] == (
        "data/07_model_output/counting/grpo_d/s5/geometry.json"
    )
    assert files["base.tests"] == "data/07_model_output/base/tests.json"
    assert files["counting.grpo_d.tests"] == "data/07_model_output/counting/grpo_d/tests.json"
    assert all(path.startswith("data/0") for path in paths)


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_an_environment_writes_into_a_folder_of_its_own(configure: Configure, env: str) -> None:
    """Only what the project ships is shared: it is read, never written."""
    loader = configure(env)
    folder = "data" if env == "base" else f"data/{env}"
    trained = loader["globals"].get("trained", folder)
    for name, config in loader["catalog"].items():
        path = config.get("dataset", config)["filepath"]
        allowed = rf"{trained}/0[36]_\w+/|{folder}/0[78]_\w+/"
        assert re.match(allowed, path), (name, path)
    parameters = loader["parameters"]
    folders = parameters["folders"]
    assert folders == {
        "examples": f"{trained}/03_primary",
        "checkpoints": f"{trained}/06_models",
        "predictions": f"{folder}/07_model_output",
    }
    assert parameters["rebuild"]["path"].startswith(f"{folder}/06_models/")
    paths = parameters["base_model"]["path"] or []  # else a model of the hub
    for path in [paths] if isinstance(paths, str) else paths:
        # Read, and made by what conf/seeds and conf/cold_start say.
        lent = ("data/seeds/06_models/base_", "data/cold_start/06_models/start_")
        assert path.startswith(("data/01_raw/", f"{folder}/06_models/", *lent))
    if trained != folder:  # then its pipelines must not write there
        outputs = set().union(*(pipeline.all_outputs() for pipeline in pipelines.values()))
        for dataset in outputs:
            config = CatalogConfigResolver(loader["catalog"]).resolve_pattern(dataset)
            path = config.get("dataset", config)["filepath"]
            assert path.startswith(f"{folder}/"), dataset


def test_evaluation_trains_nothing_and_reads_what_is_there(configure: Configure) -> None:
    configure("base")
    evaluation = pipelines["evaluation"]
    assert {node.name.rpartition(".")[2] for node in evaluation.nodes} == {
        *("evaluate_on_counting", "evaluate_on_geometry", "collect_tests", "collect_training"),
        *("merge_tests", "concatenate_history", "concatenate_training"),
        *("build_transfer_matrix", "draw_figures", "write_report", "write_page"),
        "record_results",
    }
    assert RECORDING in {node.name for node in evaluation.nodes}
    cells = [cell.name for cell in read_grid().cells]
    assert {name for name in evaluation.inputs() if not name.startswith("params:")} == {
        *(f"{name}.checkpoint" for name in [*cells, "base.b0"]),
        *(f"{name}.history" for name in cells),
        *("counting.examples", "geometry.examples"),
    }


def test_kedro_viz_shows_results_at_once_and_folds_up_what_they_are_made_of(
    configure: Configure,
) -> None:
    configure("seeds")
    whole = pipelines["cross_task"]
    shown = ModularPipelinesRepository()
    shown.populate_tree(whole)
    names = {_hash_input_output(name): name for name in whole.datasets()}
    found = {names.get(child.id, child.id) for child in shown.tree["__root__"].children}
    assert {name for name in found if not name.startswith(("params:", "base.b"))} == {
        *("data", "base", "counting", "geometry", "report", "mlflow"),
        *("counting.examples", "geometry.examples", "base.tests"),
        *(
            f"{t}.{kind}"
            for t in ("counting", "geometry")
            for kind in ("tests", "history", "training")
        ),
        *("verdict", "transfer_matrix", "heat_map", "samples", "training_curves"),
        *("report_page", "differences", "predictions"),
    }


def test_a_report_is_made_again_without_a_model(configure: Configure) -> None:
    configure("base")
    report = pipelines["report"]
    assert {"report", "report_page", "heat_map"} <= report.all_outputs()
    read = {name.rpartition(".")[2] for name in report.inputs() if not name.startswith("params:")}
    assert read == {"tests", "history", "training", "examples"}


def test_where_nothing_is_trained_there_is_no_pipeline_that_trains(configure: Configure) -> None:
    configure("blind")
    assert set(pipelines) == {"evaluation", "report", "__default__"}
    assert node_names(pipelines["__default__"]) == node_names(pipelines["evaluation"])


def test_seeds_take_turns_with_the_base_models(configure: Configure) -> None:
    paths = ["data/01_raw/one", "data/01_raw/two", "data/01_raw/three"]
    configure("base", {**TWO_SEEDS, "base_model": {"path": paths}})  # seeds 3 and 5
    nodes = {node.name: node for node in pipelines["cross_task"].nodes}
    for seed, number in {3: 0, 5: 2}.items():
        assert nodes[f"counting.grpo_d.s{seed}.train_rl"].inputs[0] == f"base.b{number}.checkpoint"
        evaluate = nodes[f"counting.grpo_d.s{seed}.evaluate_on_geometry"]
        assert evaluate.identity["tested"].base_model == number
        assert nodes[f"base.b{number}.check_base_model"].identity == {"number": number}
        base = nodes[f"base.b{number}.evaluate_on_counting"].identity["tested"]
        assert base == ("none", "base", None, number)
    assert not any(name.startswith("base.b1.") for name in nodes)  # no seed starts from it
    assert nodes["base.collect_tests"].inputs[:2] == ["base.b0.checkpoint", "base.b2.checkpoint"]


def identify(first: int, *rest: str, name: str) -> str:
    """Join everything."""
    return f"{name}: {first} {' '.join(rest)}"


def test_bind_fixes_what_a_node_is_and_keeps_what_it_says() -> None:
    bound = bind(identify, name="cell")
    assert bound(1, "a", "b") == "cell: 1 a b"
    assert (bound.__name__, bound.__doc__) == ("identify", "Join everything.")
    assert get_type_hints(bound)["first"] is int
    assert pickle.loads(pickle.dumps(bound))(2) == "cell: 2 "


# Not MLflow: kedro-mlflow imports it for every command of Kedro.
HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "sklearn",
)


def test_listing_the_pipelines_imports_nothing_heavy() -> None:
    """Of the base environment and, in the same process, of another one."""
    code = f"""
import sys
from pathlib import Path
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project
bootstrap_project(Path.cwd())
print(sorted(pipelines))
from othink_pipeline.config_loader import GridConfigLoader
assert GridConfigLoader.current.env == "base", "KEDRO_ENV is not heeded"
cells = sum("train_" in node.name for node in pipelines["cross_task"].nodes)
GridConfigLoader("conf", "smoke", base_env="base", default_run_env="local")
print(sorted(pipelines), len(pipelines["cross_task"].nodes))
import othink_pipeline.settings  # with the hooks, which `kedro run` needs before it says a word
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "KEDRO_ENV": "base"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    base, smoke, heavy = done.stdout.splitlines()[-3:]
    assert base == str(sorted(PIPELINES))
    assert smoke.startswith(base)
    assert heavy == "[]"


def test_listing_the_pipelines_of_a_bad_environment_says_what_is_wrong(
    tmp_path: Path, conf: Path
) -> None:
    """The command itself: one message, no traceback."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "src").mkdir()  # the code itself comes from the installed package
    (conf / "bad").mkdir()
    (conf / "bad" / "parameters.yml").write_text("evaluation: {batch_sise: 5}\n")
    env = {**os.environ, "KEDRO_ENV": "bad"}
    done = commands.run("kedro", "registry", "list", cwd=tmp_path, env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    assert done.stdout[done.stdout.index("Error: ") :].splitlines() == [
        "Error: bad parameters",
        "  evaluation.batch_size: missing; add it",
        "  evaluation.max_completion_tokens: missing; add it",
        "  evaluation.samples: missing; add it",
        "  evaluation.sample_temperature: missing; add it",
        "  evaluation.shuffle_images: missing; add it",
        "  evaluation.seed: missing; add it",
        "  evaluation.batch_sise: unknown key. Did you mean 'batch_size'? Allowed here: "
        "batch_size, max_completion_tokens, sample_temperature, samples, seed, shuffle_images",
    ]
