"""Models and data sets of the hub: fetched once, found again, refused with what to do."""

import errno
import io
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Image
from huggingface_hub import constants
from PIL import Image as Pillow
from safetensors.numpy import save

from othink_pipeline.core import hub as hub_module
from othink_pipeline.core.blocks import ConfigurationError
from othink_pipeline.core.files import digest_folder
from othink_pipeline.core.hub import fetch_model, find_model, load_hub_dataset, measure_model
from othink_pipeline.data.parameters import SplitSource
from othink_pipeline.data.pictures import prepare
from othink_pipeline.data.sources import read_source
from tests.support.fake_hub import COMMIT, TOKEN, FakeHub

WEIGHTS = save({"weight": np.arange(3000, dtype=np.float32)})
MODEL = {
    "config.json": b'{"model_type": "qwen2_vl"}',
    "model.safetensors": WEIGHTS,
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b",
    "tokenizer.model": b"pieces",
}
OTHER = {
    "README.md": b"# Model",
    "pytorch_model.bin": b"pickle",
    "model.pt": b"pickle",
    "modeling_own.py": b"raise SystemExit",
    "consolidated.safetensors": WEIGHTS,
    "onnx/config.json": b"{}",
}
LATER = "d" * 40
Usage = namedtuple("Usage", "total used free")


def names(folder: str) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in Path(folder).rglob("*"))


def table(rows: int, first: int = 0) -> bytes:
    content = io.BytesIO()
    numbers = range(first, first + rows)
    columns = {"problem": [f"How many, {n}?" for n in numbers], "solution": [*map(str, numbers)]}
    pq.write_table(pa.table(columns), content)
    return content.getvalue()


DATA = {
    "data/train-00000-of-00002.parquet": table(3),
    "data/train-00001-of-00002.parquet": table(2, first=3),
    "data/test-00000-of-00001.parquet": table(4, first=50),
    "README.md": b"---\nlicense: mit\n---\n",
}


# --- Models


def test_a_model_is_fetched_once_and_without_code_or_pickles(
    hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("own/mini", MODEL | OTHER)
    assert find_model("own/mini", "main") is None
    size = sum(map(len, MODEL.values()))
    assert measure_model("own/mini", "main") == size
    assert not hub.downloads() or hub.downloads() == ["config.json"]
    with caplog.at_level(logging.INFO, logger="othink_pipeline.core.hub"):
        folder, commit = fetch_model("own/mini", "main")
    left = size - len(MODEL["config.json"])
    assert caplog.messages == [
        f"model own/mini: downloading {left / 1e3:.1f} kB to {constants.HF_HUB_CACHE} "
        "(set HF_HOME for another place)"
    ]
    assert commit == COMMIT
    assert names(folder) == sorted(MODEL)
    assert all(Path(folder, name).read_bytes() == data for name, data in MODEL.items())
    assert hub.downloads() == sorted(MODEL)
    assert measure_model("own/mini", "main") == 0
    assert fetch_model("own/mini", "main") == (folder, commit)
    assert hub.downloads() == sorted(MODEL)
    hub.requests.clear()
    assert fetch_model("own/mini", COMMIT) == (folder, commit)
    assert find_model("own/mini", COMMIT) == find_model("own/mini", "main") == (folder, commit)
    assert hub.requests == [], "a commit never changes: nobody is asked"


def test_what_is_not_there_as_a_whole_is_not_found(hub: FakeHub) -> None:
    hub.add("own/mini", MODEL)
    folder = Path(fetch_model("own/mini", "main")[0])
    hub.requests.clear()
    for name in ("model.safetensors", "merges.txt"):
        content = (folder / name).readlink()
        (folder / name).unlink()
        assert find_model("own/mini", "main") is None
        (folder / name).symlink_to(content)
    assert find_model("own/mini", "v1") is None
    assert find_model("own/mini", LATER) is None
    assert find_model("own/other", COMMIT) is None
    assert find_model("own--/other", COMMIT) is None
    assert hub.requests == []


def test_weights_without_what_tells_their_number_are_not_found(hub: FakeHub) -> None:
    """A cache that another program filled: of its files it holds what that program read."""
    hub.add("own/mini", MODEL)
    folder = Path(fetch_model("own/mini", "main")[0])
    shutil.rmtree(folder.parents[1] / "trees")
    assert find_model("own/mini", COMMIT) is not None
    (folder / "model.safetensors").unlink()
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    assert find_model("own/mini", COMMIT) is None


def test_a_branch_moves_on_and_stays_where_the_hub_does_not_answer(
    hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    repository = hub.add("own/mini", MODEL)
    assert fetch_model("own/mini", "main")[1] == COMMIT
    repository.revisions |= {"main": LATER}
    hub.status = 503
    assert fetch_model("own/mini", "main")[1] == COMMIT
    assert f"revision main is taken as it was fetched before: {COMMIT}" in caplog.text
    hub.status = 0
    repository.files |= {"merges.txt": b"c d"}
    folder, commit = fetch_model("own/mini", "main")
    assert commit == LATER
    assert Path(folder, "merges.txt").read_bytes() == b"c d"
    assert find_model("own/mini", "main") == (folder, LATER)
    del hub.repositories["own/mini"]  # an answer, if no welcome one
    with pytest.raises(ConfigurationError, match="has none with this id"):
        fetch_model("own/mini", "main")
    assert fetch_model("own/mini", LATER) == (folder, LATER)


def test_a_download_that_breaks_off_goes_on(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a run at the byte where it broke off, in the next one with the files that lack."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.add("own/mini", MODEL)
    hub.cut["model.safetensors"] = 5000
    hub.broken = {"merges.txt"}
    with pytest.raises(ConfigurationError, match=r"HTTP status 500\. Run again later"):
        fetch_model("own/mini", "main")
    assert find_model("own/mini", "main") is None
    hub.requests.clear()
    hub.broken.clear()
    folder, _ = fetch_model("own/mini", "main")
    assert hub.ranges == ["bytes=5000-"]
    assert Path(folder, "model.safetensors").read_bytes() == WEIGHTS
    assert hub.downloads() == ["merges.txt"]


def refuse(hub: FakeHub) -> None:
    hub.add("own/gated", MODEL, gated=True)
    hub.add("datasets/own/gated", DATA, gated=True)
    hub.add("own/mini", MODEL)
    hub.add("datasets/own/data", DATA)


CALLS: dict[str, Callable[[str, str], Any]] = {
    "model": fetch_model,
    "data set": lambda id, revision: load_hub_dataset(id, revision, "train"),
    "plan": measure_model,
}


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize(
    ("id", "revision", "said"),
    [
        ("own/none", "main", ["has none with this id, or it is private", "hf auth login"]),
        ("own/gated", "main", ["gated, and", "Accept its terms on {page}", "account"]),
        ("own/mini", "v9", ["revision = 'v9': there is none", "{page}/commits/main"]),
        ("own/mini", LATER, [f"revision = '{LATER}': there is none"]),
    ],
)
def test_what_the_hub_refuses_is_told_with_a_remedy(
    id: str,
    revision: str,
    said: list[str],
    token: str | None,
    kind: str,
    hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    refuse(hub)
    if kind == "data set":
        id = id.replace("mini", "data")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigurationError) as error:
        CALLS[kind](id, revision)
    told = error.value.message
    page = f"{hub.url}/{'datasets/' if kind == 'data set' else ''}{id}"
    assert told.startswith(f"{'data set' if kind == 'data set' else 'model'} {id}: ")
    assert all(part.format(page=page) in told for part in said)
    if id == "own/gated":
        assert ("no token is set: log in" in told) is (token is None)
        assert ("the token in use may not read it" in told) is (token is not None)
    assert TOKEN not in told + caplog.text


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "HTTP status 401. The token is not accepted: log in (hf auth login) or set HF_TOKEN"),
        (503, "HTTP status 503. Run again later: files that are there"),
    ],
)
def test_a_hub_that_answers_nothing_else(status: int, said: str, hub: FakeHub) -> None:
    hub.status = status
    for call in CALLS.values():
        with pytest.raises(ConfigurationError) as error:
            call("own/mini", "main")
        assert said in error.value.message


def test_a_hub_that_cannot_be_reached(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://user:{TOKEN}@127.0.0.1:9"  # nothing listens there
    monkeypatch.setattr(constants, "ENDPOINT", address)
    for call in CALLS.values():
        with pytest.raises(ConfigurationError, match=r"failed \(ConnectError: .*HF_ENDPOINT") as e:
            call("own/mini", "main")
        assert "hf download own/mini --revision=main" in e.value.message
        assert "http://***@127.0.0.1:9" in e.value.message
        assert TOKEN not in e.value.message


@pytest.mark.parametrize("kind", CALLS)
def test_offline_what_is_missing_is_told(
    kind: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(hub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigurationError, match="HF_HUB_OFFLINE") as error:
        CALLS[kind]("own/mini", COMMIT)
    told = error.value.message
    assert f"revision {COMMIT} is not in the local cache as a whole" in told
    assert f"hf download own/mini --revision={COMMIT}" in told
    assert ("--repo-type=dataset" in told) is (kind == "data set")
    assert constants.HF_HOME in told
    assert hub.requests == []


def command(told: str) -> list[str]:
    (line,) = [line for line in told.splitlines() if "hf download" in line]
    return shlex.split(line)


def outside(hub: FakeHub, home: Path) -> Mapping[str, str]:
    """The environment of a user on another machine."""
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "DO_NOT_TRACK": "true"}


def test_the_command_that_is_named_fetches_what_is_missing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("own/mini", MODEL | OTHER)
    hub.add("datasets/own/data", DATA)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for call, id in ((fetch_model, "own/mini"), (CALLS["data set"], "own/data")):
        with pytest.raises(ConfigurationError) as error:
            call(id, "main")
        _, *arguments = command(error.value.message)
        subprocess.run(
            [Path(sys.executable).with_name("hf"), *arguments],
            env=outside(hub, tmp_path / "there"),
            check=True,
            capture_output=True,
        )
    shutil.copytree(tmp_path / "there", constants.HF_HOME, symlinks=True)
    folder, commit = fetch_model("own/mini", "main")
    assert (names(folder), commit) == (sorted(MODEL), COMMIT)
    assert load_hub_dataset("own/data", "main", "test")[0]["solution"][:] == [
        "50",
        "51",
        "52",
        "53",
    ]


def test_the_environment_says_where_the_hub_and_the_cache_are(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("own/mini", MODEL)
    code = (
        "from othink_pipeline.core.hub import fetch_model; print(*fetch_model('own/mini', 'main'))"
    )
    home = tmp_path / "elsewhere"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=outside(hub, home),
        check=True,
        capture_output=True,
        text=True,
    )
    folder, commit = done.stdout.split()
    assert (Path(folder).is_relative_to(home), commit) == (True, COMMIT)
    assert "Fetching" not in done.stderr, "no bars in a log file"


def test_a_disk_without_room_is_told_before_and_after(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(hub)
    left = sum(map(len, MODEL.values())) - len(MODEL["config.json"])
    free = {"bytes": left - 1}
    usage = shutil.disk_usage
    monkeypatch.setattr(hub_module.shutil, "disk_usage", lambda _: Usage(9, 9, free["bytes"]))
    with pytest.raises(ConfigurationError, match=r"needs [\d.]+ kB on the disk of .*set HF_HOME"):
        fetch_model("own/mini", "main")
    assert hub.downloads() == ["config.json"]
    free["bytes"] = sum(map(len, DATA.values())) * 2 - 1  # once more to be mapped into memory
    with pytest.raises(ConfigurationError, match="data set own/data: needs"):
        load_hub_dataset("own/data", "main", "train")

    def http_get(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_module.shutil, "disk_usage", usage)
    with monkeypatch.context() as full:
        full.setattr("huggingface_hub.file_download.http_get", http_get)
        with pytest.raises(ConfigurationError, match=r"no room left on the disk of .* Free some"):
            fetch_model("own/mini", "main")
    assert fetch_model("own/mini", "main")[1] == COMMIT


def test_a_cache_that_cannot_be_written_is_named(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("own/mini", MODEL)
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigurationError, match=r"file.*Set HF_HOME to a folder"):
        fetch_model("own/mini", "main")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model.safetensors": None, "pytorch_model.bin": b"1"}, "no weights as safetensors at"),
        ({"config.json": None}, "no config.json at revision main"),
        (
            {"config.json": b'{"auto_map": {"AutoModel": "own.Model"}, "model_type": "own"}'},
            "model_type = 'own' runs code of its own",
        ),
    ],
)
def test_a_model_that_will_not_load_is_refused_before_it_is_downloaded(
    changes: dict[str, bytes | None], said: str, hub: FakeHub
) -> None:
    files = {name: data for name, data in (MODEL | changes).items() if data is not None}
    hub.add("own/mini", files)
    for call in (fetch_model, measure_model):
        with pytest.raises(ConfigurationError, match=said) as error:
            call("own/mini", "main")
        assert "base_model" in error.value.message
    assert set(hub.downloads()) <= {"config.json"}


def test_code_beside_a_model_that_needs_none_is_left_there(hub: FakeHub) -> None:
    """Many repositories still carry what their model needed before transformers had it."""
    config = {"auto_map": {"AutoModel": "modeling_own.Model"}, "model_type": "qwen2_vl"}
    hub.add("own/mini", MODEL | OTHER | {"config.json": json.dumps(config).encode()})
    assert names(fetch_model("own/mini", "main")[0]) == sorted(MODEL)


def test_only_the_files_of_the_model_count(hub: FakeHub, tmp_path: Path) -> None:
    """Else what other programs read of the repository would train every cell anew."""
    hub.add("own/mini", MODEL)
    folder = Path(fetch_model("own/mini", "main")[0])
    plain = tmp_path / "plain"
    shutil.copytree(folder, plain)
    for name, data in OTHER.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    files = hub_module.model_files(folder)
    assert [file.name for file in files] == sorted(MODEL)
    assert digest_folder(folder, files) == digest_folder(plain) != digest_folder(folder)


# --- Data sets


def test_a_split_is_mapped_into_memory(hub: FakeHub) -> None:
    hub.add("datasets/own/data", DATA | {"own.py": b"raise SystemExit", "more.pkl": b"pickle"})
    train, folder = load_hub_dataset("own/data", "main", "train")
    assert train["solution"][:] == [*"01234"]
    assert train["problem"][3] == "How many, 3?"
    assert folder.name == COMMIT
    assert train.cache_files, "mapped from a file"
    assert hub.downloads() == sorted(name.rpartition("/")[2] for name in DATA)
    assert load_hub_dataset("own/data", COMMIT, "test")[0]["solution"][0] == "50"


def test_pictures_are_decoded_as_ever(hub: FakeHub, tmp_path: Path) -> None:
    pictures = [Pillow.new("RGB", (4, 4), (shade, 0, 0)) for shade in (10, 200)]
    rows = Dataset.from_dict({"image": pictures, "solution": ["1", "2"]}).cast_column(
        "image", Image()
    )
    rows.to_parquet(tmp_path / "rows.parquet")
    hub.add("datasets/own/seen", {"train.parquet": (tmp_path / "rows.parquet").read_bytes()})
    train, _ = load_hub_dataset("own/seen", "main", "train")
    assert [image.getpixel((1, 1)) for image in train["image"]] == [(10, 0, 0), (200, 0, 0)]


def test_pictures_that_are_files_of_the_data_set_are_found(hub: FakeHub, tmp_path: Path) -> None:
    content = io.BytesIO()
    Pillow.new("RGB", (4, 4), (10, 0, 0)).save(content, "PNG")
    listed = b'{"file_name": "0.png", "problem": "How many?", "solution": "1"}'
    hub.add("datasets/own/files", {"0.png": content.getvalue(), "metadata.jsonl": listed})
    source = {"kind": "hub", "id": "own/files", "revision": "main", "split": "train"}
    columns = {"image": "image", "question": "problem", "answer": "solution", "steps": None}
    part = SplitSource.model_validate({"source": source, "columns": columns, "prompt": None})
    (row,) = read_source(part, "here").read()
    assert row.fault == ""
    with Pillow.open(io.BytesIO(prepare(row.images))) as picture:
        assert picture.getpixel((1, 1)) == (10, 0, 0)


def test_a_split_that_is_not_there(hub: FakeHub) -> None:
    hub.add("datasets/own/data", DATA)
    with pytest.raises(ConfigurationError, match=r"split = 'val': there is none. Allowed: "):
        load_hub_dataset("own/data", "main", "val")
    with pytest.raises(ConfigurationError, match="train, test"):
        load_hub_dataset("own/data", "main", "val")


def test_part_of_a_data_set_never_passes_for_the_whole(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, with a cache that another program filled with some of the files."""
    hub.add("datasets/own/data", DATA)
    load_hub_dataset("own/data", "main", "train")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(load_hub_dataset("own/data", "main", "train")[0]) == 5
    (home,) = Path(constants.HF_HUB_CACHE).glob("datasets--own--data")
    shutil.rmtree(home / "trees")
    from huggingface_hub import _tree_cache

    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    with pytest.raises(ConfigurationError, match="not in the local cache as a whole"):
        load_hub_dataset("own/data", "main", "train")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        # What once was a loading script; the infos came with it.
        (
            {"own.py": b"raise SystemExit", "dataset_infos.json": b"{}", "README.md": b""},
            "without running code of the repository.*revision: refs/convert/parquet",
        ),
        ({"train.parquet": b"no table"}, "does not load: .*refs/convert/parquet"),
        (
            {
                "README.md": b"---\nconfigs:\n- config_name: one\n  data_files: one/*.parquet\n"
                b"- config_name: two\n  data_files: two/*.parquet\n---\n",
                "one/train.parquet": table(2),
                "two/train.parquet": table(3),
            },
            r"(?s)does not load: .*\['one', 'two'\].*several subsets name one: set subset",
        ),
    ],
)
def test_a_data_set_that_cannot_be_read_as_it_is(
    files: dict[str, bytes], said: str, hub: FakeHub
) -> None:
    hub.add("datasets/own/data", files)
    with pytest.raises(ConfigurationError, match=said):
        load_hub_dataset("own/data", "main", "train")
    assert "own.py" not in hub.downloads()
    if "two/train.parquet" in files:
        assert len(load_hub_dataset("own/data", "main", "train", "two")[0]) == 3
