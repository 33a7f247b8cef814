"""Nothing that the project reads can make it run code, use up the memory or leave its folder."""

import ast
import builtins
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin

import othink_pipeline
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.data.examples import draw_examples, find_fault, read_pixels
from othink_pipeline.models.load import load_model
from othink_pipeline.preflight.environment import check_runner, move_credentials
from othink_pipeline.scoring.kinds import EXACT
from othink_pipeline.scoring.r1v import judge
from tests.conftest import MiniModel
from tests.support.examples import png_of_size

SOURCES = sorted(Path(othink_pipeline.__file__).parent.rglob("*.py"))
Arguments = dict[str | None, ast.expr]


def find_dangerous_calls(code: str) -> set[str]:
    """``line: what`` of every call that can run what it reads."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = {name.name for name in node.names}
            if isinstance(node, ast.ImportFrom):
                modules = {node.module or ""} if modules != {"UnpicklingError"} else set()
            if modules & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}:
                found.add(f"{node.lineno}: import of a pickle reader")
            if modules & {"tarfile", "zipfile"}:
                found.add(f"{node.lineno}: import of an archive reader")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        given: Arguments = {word.arg: word.value for word in node.keywords}
        if (
            name in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec")
            or name in ("os.system", "os.popen", "subprocess.getoutput")
            or last in ("read_pickle", "unpack_archive", "extractall")
            or (last in ("load", "load_all", "unsafe_load", "full_load") and "yaml" in name)
            or (last == "load" and "torch" in name and not _says(given, "weights_only", True))
            or not _harmless(given)
        ):
            found.add(f"{node.lineno}: {name}")
    # Keywords that travel in a dictionary.
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Dict):
            keys = {
                key.value: value
                for key, value in zip(node.keys, node.values, strict=True)
                if isinstance(key, ast.Constant)
            }
            if not _harmless(keys):
                found.add(f"{node.lineno}: dictionary of keywords")
    return found


def _says(given: Any, key: str, value: bool) -> bool:
    return isinstance(given.get(key), ast.Constant) and given[key].value is value


def _harmless(given: Any) -> bool:
    return all(
        key not in given or _says(given, key, safe)
        for key, safe in {
            "shell": False,
            "allow_pickle": False,
            "trust_remote_code": False,
            "weights_only": True,
        }.items()
    )


def test_the_code_calls_nothing_that_runs_what_it_reads() -> None:
    dangerous = {}
    for file in SOURCES:
        found = find_dangerous_calls(file.read_text())
        if file.parent.name == "cluster":  # Ray pickles all that crosses processes of one run
            found = {each for each in found if not each.endswith("import of a pickle reader")}
        if found:
            dangerous[file] = found
    assert dangerous == {}


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "exec(text)",
        "import pickle",
        "from pickle import load",
        "from pickle import UnpicklingError, load",
        "from zipfile import ZipFile",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=safe)",
        "np.load(file, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "subprocess.run(command, shell=True)",
        "os.system(command)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "AutoModel.from_pretrained(path, trust_remote_code=trust)",
        "AutoModel.from_pretrained(path, **{'trust_remote_code': True})",
        "pd.read_pickle(file)",
        "shutil.unpack_archive(file)",
    ],
)
def test_the_search_finds_it(line: str) -> None:
    assert find_dangerous_calls(f"def f():\n    {line}\n")


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(file, weights_only=True)",
        "np.load(file)",
        "json.load(file)",
        "yaml.safe_load(text)",
        "subprocess.run(command)",
        "AutoModel.from_pretrained(path, trust_remote_code=False)",
        "model.eval()",
        "re.compile(text)",
        "from pickle import UnpicklingError",
    ],
)
def test_the_search_lets_the_harmless_be(line: str) -> None:
    assert not find_dangerous_calls(f"def f():\n    {line}\n")


class Trap:
    """A pickle that runs code, which leaves a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (str(self.sprung), "w")


class Folder:
    """A copy of a good model, with code beside it that leaves a file when it runs."""

    def __init__(self, path: Path, model: Path) -> None:
        shutil.copytree(model, path)
        self.path, self.sprung = path, path.with_name("sprung")
        code = f"open({str(self.sprung)!r}, 'w')\n"
        code += "from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration as Model\n"
        code += "from transformers import Qwen2VLProcessor\n"
        code += "class Config(Qwen2VLConfig): pass\nclass Processor(Qwen2VLProcessor): pass\n"
        (path / "trap.py").write_text(code)
        (path / "custom_generate").mkdir()
        (path / "custom_generate" / "generate.py").write_text(f"{code}def generate(): pass\n")

    def set(self, name: str, **values: Any) -> None:
        file = self.path / name
        settings = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(settings | values))


@pytest.fixture
def folder(mini_model: MiniModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    monkeypatch.setattr(builtins, "input", lambda question: "y")  # somebody who always agrees
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "hf"))
    return Folder(tmp_path / "trapped", mini_model.path)


AUTO_MAP = {
    "AutoConfig": "trap.Config",
    "AutoModelForImageTextToText": "trap.Model",
    "AutoProcessor": "trap.Processor",
    "AutoImageProcessor": "trap.Processor",
    "AutoTokenizer": ["trap.Processor", "trap.Processor"],
}


@pytest.mark.parametrize(
    ("file", "changes", "refused"),
    [
        ("config.json", {}, False),
        # A class that transformers knows itself takes the place of the folder's.
        ("config.json", {"auto_map": AUTO_MAP}, False),
        ("config.json", {"auto_map": AUTO_MAP, "model_type": "unknown"}, True),
        (
            "processor_config.json",
            {"auto_map": AUTO_MAP, "processor_class": "UnknownProcessor"},
            True,
        ),
        (
            "tokenizer_config.json",
            {"auto_map": AUTO_MAP, "tokenizer_class": "UnknownTokenizer"},
            False,
        ),
    ],
)
def test_no_code_of_a_model_folder_runs(
    file: str, changes: dict[str, Any], refused: bool, folder: Folder
) -> None:
    folder.set(file, **changes)
    if refused:
        with pytest.raises(ConfigurationError, match="code of its own, which is never run"):
            load_model(str(folder.path))
    else:
        model, processor = load_model(str(folder.path))
        for loaded in (model, processor, processor.tokenizer):
            assert type(loaded).__module__.startswith("transformers.")
        model.generate(input_ids=torch.tensor([[7, 8]]), max_new_tokens=1)
    assert not folder.sprung.exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "model.pt"])
def test_no_weights_but_safetensors_are_read(
    name: str, folder: Folder, mini_model: MiniModel
) -> None:
    base_path = None
    if name == "adapter_model.bin":
        base_path = str(mini_model.path)
        folder.set(
            "adapter_config.json",
            peft_type="LORA",
            target_modules=["q_proj"],
            r=2,
            base_model_name_or_path=base_path,
        )
    else:
        (folder.path / "model.safetensors").unlink()
    torch.save({"weight": Trap(folder.sprung)}, folder.path / name)
    with pytest.raises(ConfigurationError, match="safetensors"):
        load_model(str(folder.path), base_path=base_path)
    assert not folder.sprung.exists()


def test_the_traps_work(folder: Folder) -> None:
    """Else the tests above show nothing."""
    from transformers import AutoConfig

    folder.set("config.json", auto_map=AUTO_MAP, model_type="unknown")
    AutoConfig.from_pretrained(folder.path)  # asks, and is told yes
    assert folder.sprung.exists()
    folder.sprung.unlink()
    torch.save({"weight": Trap(folder.sprung)}, folder.path / "model.pt")
    torch.load(folder.path / "model.pt", weights_only=False)
    assert folder.sprung.exists()


@pytest.fixture
def undecoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def load(*_: Any) -> None:
        raise AssertionError("the picture was decoded")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    yield


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return next(draw_examples("counting", {"train": 1}, seed=0))


@pytest.mark.usefixtures("undecoded")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (60_000, 60_000, "the image does not decode: Image size (3600000000 pixels) exceeds limit"),
        (12_000, 12_000, "the image is 12000 x 12000: more than 25,000,000 pixels"),
        (5001, 5000, "the image is 5001 x 5000: more than 25,000,000 pixels"),
        (402, 2, "the image is 402 x 2: more than 200 times as long as wide"),
        (2, 402, "the image is 2 x 402: more than 200 times as long as wide"),
        (2**31 - 1, 1, "the image does not decode: "),
    ],
)
def test_a_picture_too_large_is_refused_by_its_header(
    width: int, height: int, reason: str, example: dict[str, Any]
) -> None:
    fault = find_fault({**example, "image": png_of_size(width, height)}, EXACT)
    assert fault is not None
    assert fault.startswith(reason)


def test_a_picture_that_holds_more_than_it_claims_stays_small(example: dict[str, Any]) -> None:
    picture = png_of_size(64, 64)
    assert len(read_pixels({**example, "image": picture}, None, EXACT)) == 64 * 64 * 3


@pytest.mark.parametrize("kind", ["EPS", "PDF", "PPM", "ICO"])
def test_nothing_but_png_jpeg_and_webp_is_opened(kind: str, example: dict[str, Any]) -> None:
    """Pillow's readers of other formats start programs (EPS) or are less often looked at."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, kind)
    fault = find_fault({**example, "image": file.getvalue()}, EXACT)
    assert fault is not None
    assert fault.startswith("the image does not decode: ")


@pytest.mark.parametrize("which", ["geometry", "reward"])
@pytest.mark.parametrize(
    "form",
    ["{}", "1+{}", "2*({})", "${}$", "\\boxed{{{}}}", "\\sqrt{{{}}}", "final answer is 1*{}."],
)
def test_no_code_in_a_completion_runs(form: str, which: Any, tmp_path: Path) -> None:
    """math-verify hands to Python's eval what looks like an expression to it."""
    sprung = tmp_path / "sprung"
    code = f"__import__('os').mkdir({os.fspath(sprung)!r})"
    for text in (code, f"[c for c in ().__class__.__base__.__subclasses__()] and {code}"):
        judge(form.format(text), "1", which)
        judge("1", form.format(text), which)
        assert not sprung.exists()


@pytest.mark.parametrize(
    ("uri", "address", "user", "password"),
    [
        ("https://me:a%40b@host:8080/path", "https://host:8080/path", "me", "a@b"),
        ("http://me@host", "http://host", "me", ""),
    ],
)
def test_a_servers_password_leaves_its_address(
    uri: str, address: str, user: str, password: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "before")  # to be put back
    assert move_credentials(uri) == address
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == user
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == password


@pytest.mark.parametrize("uri", ["sqlite:///mlflow.db", "http://host:5000", "mlruns"])
def test_an_address_without_a_password_stays(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    assert move_credentials(uri) == uri
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


def test_several_processes_that_were_launched_together_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each would wait for the cell that another one holds."""
    check_runner("SequentialRunner")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="WORLD_SIZE = 2"):
        check_runner("SequentialRunner")
