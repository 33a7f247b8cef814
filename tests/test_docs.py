"""What the documents say of the project: parameters, links, commands, the README's example."""

import json
import re
from pathlib import Path

import pytest
import yaml

from othink_pipeline.reference import parameters_page
from othink_pipeline.scoring.strict import score

ROOT = Path(__file__).parents[1]
ROOMS = [
    file.parent
    for file in sorted((ROOT / "src/othink_pipeline").glob("*/__init__.py"))
    if file.parent.name != "pipelines"
]
TRACKING_PAGE = ROOT / "docs/tracking_server.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(ROOT)
    return parameters_page(Path("conf/base"))


def test_the_reference_is_that_of_the_code(page: str) -> None:
    kept = (ROOT / "docs/reference/parameters.md").read_text()
    assert kept == page, "a block or conf/base has changed: run `make docs`"


def test_every_parameter_has_a_description(page: str) -> None:
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [row for row in rows if row.endswith("|  |")] == []
    assert "| `completions_per_prompt` | integer ≥ 2 | `8` | G: " in page
    assert "| `sample_temperature` | number > 0 | `1.0` | " in page
    assert "### `rl.kl`, `schedule: explore_exploit`" in page


def test_a_server_of_ones_own_is_told_of_no_more_runs_than_the_projects() -> None:
    """The page's block takes the place of that of conf/base as a whole."""
    found = re.search(r"```yaml\n(server:.*?)```", TRACKING_PAGE.read_text(), re.DOTALL)
    assert found
    ours = yaml.safe_load((ROOT / "conf/base/mlflow.yml").read_text())["tracking"]
    theirs = yaml.safe_load(found[1])["tracking"]
    assert theirs["disable_tracking"] == ours["disable_tracking"]
    assert theirs.keys() == ours.keys()


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_every_room_names_its_modules(room: Path) -> None:
    modules = {place.stem for place in room.iterdir() if not place.stem.startswith("_")}
    listed = re.findall(r"^- (.*?):", (room / "__init__.py").read_text(), re.MULTILINE)
    assert sorted(re.findall(r"``(\w+)``", " ".join(listed))) == sorted(modules)


def slugs(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_leads_somewhere(file: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = file.parent / path if path else file
        assert place.exists(), target
        assert not anchor or anchor in slugs(place.read_text()), target


def test_every_make_target_and_environment_is_there() -> None:
    text = "\n".join(file.read_text() for file in PAGES)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)) <= targets
    examples = {"clock", "mine", "my_data", "my_model", "paper_7b"}
    environments = {folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir()}
    assert set(re.findall(r"--env=([a-z_0-9]+)", text)) <= environments | examples


def test_the_scored_line_of_the_readme_is_right() -> None:
    line = re.search(r"^echo '(.*)' >", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert line
    record = json.loads(line[1])
    assert score(record["model_output"], record["ground_truth"]).correct
