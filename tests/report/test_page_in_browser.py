"""The page as a reader sees it: Debian's Chromium, from a file, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.support.browser import CHROMIUM
from tests.support.page import HOSTILE, page_of, page_predictions, with_samples

if TYPE_CHECKING:
    from playwright.sync_api import Page

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
PICTURES = "[...document.images].map(picture => picture.naturalWidth * picture.offsetWidth)"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on the PATH")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, list[str]]]:
    """The page, and all that it asks for, complains of and fails in."""
    from playwright.sync_api import sync_playwright

    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(page_of(with_samples(page_predictions())))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        context = browser.new_context(viewport={"width": 1440, "height": 900}, offline=True)
        page = context.new_page()
        heard: list[str] = []
        page.on("request", lambda request: heard.append(request.url))
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.goto(file.as_uri())
        page.wait_for_selector("#list article")
        yield page, heard
        browser.close()


@pytest.fixture
def page(opened: tuple[Page, list[str]]) -> Page:
    page, _ = opened
    page.set_viewport_size({"width": 1440, "height": 900})
    page.emulate_media(color_scheme="light", media="screen")
    page.locator("[name=clear]").click()
    page.evaluate("scrollTo(0, 0)")
    return page


def shown(page: Page) -> tuple[str, list[str]]:
    """The line that counts, and the items below it."""
    ids = page.locator("#list a").all_text_contents()
    return page.locator("#count").inner_text(), ids


def test_verdict_and_matrix_are_seen_at_once(page: Page) -> None:
    for place in ("#verdict", "#matrix"):
        box = page.locator(place).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 900, place


def test_nothing_is_asked_for_but_the_file_itself(opened: tuple[Page, list[str]]) -> None:
    page, heard = opened
    assert [line for line in heard if not line.startswith("data:image/webp")] == [
        page.url.split("#")[0]
    ]
    assert page.title() == "Transfer matrix report: counting, geometry"  # no model has changed it


def test_one_right_and_the_other_wrong_counts_as_the_table_does(page: Page) -> None:
    table = page_predictions()
    of_model = {
        name: rows.set_index("example_id")["correct"]
        for name, rows in table.groupby(["train_task", "method"])
    }
    ours, theirs = of_model["counting", "grpo_d"], of_model["none", "base"]
    expected = ours.index[ours & ~theirs[ours.index]]
    page.locator("[name=right]").select_option(label="GRPO-D on counting")
    page.locator("[name=wrong]").select_option(label="base model")
    count, ids = shown(page)
    assert sorted(ids) == sorted(expected)
    assert count == f"{len(expected)} items, {5 * len(expected)} answers"
    page.locator("[name=method]").select_option("GRPO-D")
    page.locator("[name=trained]").select_option("counting")
    assert shown(page)[0] == f"{len(expected)} items, {2 * len(expected)} answers"  # A's and B's
    assert not page.locator("[name=seed]").is_visible()  # there is one


def test_filters_count_and_stand_in_the_address(page: Page) -> None:
    table = page_predictions()
    page.locator("[name=verdict]").select_option("u")
    page.locator("[name=tested]").select_option("counting")
    wanted = table[table["unparseable"] & (table["eval_task"] == "counting")]
    items = wanted["example_id"].nunique()
    assert shown(page)[0] == f"{items} item, {len(wanted)} answers"
    view = page.url
    page.locator("[name=clear]").click()
    assert shown(page)[0] == "12 items, 60 answers"
    page.locator("[name=search]").fill("STEP 7")
    assert shown(page)[1] == ["counting-7"]
    page.evaluate("address => { location.hash = new URL(address).hash }", view)
    page.wait_for_function("document.querySelectorAll('#list article').length === 1")
    assert shown(page)[0] == f"{items} item, {len(wanted)} answers"


def test_each_item_has_a_link(page: Page) -> None:
    page.locator("#samples a").first.click()
    page.wait_for_function("document.querySelectorAll('#list article').length === 1")
    assert shown(page)[1] == [page.locator("#samples a").first.inner_text()]
    assert page.locator("#list li").count() == 5


def test_what_was_sampled_unfolds_below_its_answer(page: Page) -> None:
    folded = page.locator("#list li details").first
    assert folded.locator("pre").first.is_hidden()
    folded.locator("summary").click()
    assert folded.locator("summary").inner_text() == "3 samples, 1 right"
    assert folded.locator("pre").all_text_contents() == ["first", HOSTILE, "third"]
    assert folded.locator(".badge").all_inner_texts() == ["✗ wrong", "✓ right", "✗ wrong"]


def test_it_works_in_the_frame_that_mlflow_shows_it_in(page: Page) -> None:
    """A frame that may run scripts and nothing else, filled from a blob."""
    outer = page.context.new_page()
    outer.set_content("<iframe sandbox='allow-scripts' width=1400 height=800></iframe>")
    outer.evaluate(
        """text => { document.querySelector('iframe').src =
            URL.createObjectURL(new Blob([text], {type: 'text/html'})) }""",
        page_of(page_predictions()),
    )
    frame = outer.frame_locator("iframe")
    frame.locator("[name=tested]").select_option("geometry")
    assert frame.locator("#count").inner_text() == "4 items, 20 answers"
    frame.locator("#samples a").first.click()
    frame.locator("#list article").nth(0).wait_for()
    assert frame.locator("#count").inner_text() == "1 item, 5 answers"
    outer.close()


def test_a_browser_that_cannot_unpack_says_so(page: Page) -> None:
    old = page.context.new_page()
    old.add_init_script("delete window.DecompressionStream")
    old.goto(page.url.split("#")[0])
    assert "too old" in old.locator("#count").inner_text()
    old.close()


def test_all_pictures_are_seen_and_nothing_runs_over_at_any_width(page: Page) -> None:
    sizes = page.evaluate(PICTURES)
    assert len(sizes) > 12
    assert min(sizes) > 0
    for width in (1440, 390):
        page.set_viewport_size({"width": width, "height": 844})
        assert page.evaluate(OVERFLOW) == 0, width


def test_both_themes_are_read_easily(page: Page) -> None:
    """Contrast of 4.5 (WCAG AA) for text, badges and shaded entries."""
    script = """() => [...document.querySelectorAll('body, small, .badge, .shaded td, a')].map(
        node => {
            const pixels = document.createElement('canvas').getContext('2d');
            const light = color => {
                pixels.fillStyle = color;
                pixels.fillRect(0, 0, 1, 1);
                const [r, g, b] = [...pixels.getImageData(0, 0, 1, 1).data].map(
                    value => value / 255).map(
                    value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            let behind = node;
            const clear = place => getComputedStyle(place).backgroundColor === 'rgba(0, 0, 0, 0)';
            while (clear(behind)) behind = behind.parentElement;
            const two = [light(getComputedStyle(node).color),
                         light(getComputedStyle(behind).backgroundColor)].sort((a, b) => b - a);
            return (two[0] + 0.05) / (two[1] + 0.05);
        })"""
    grounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert min(page.evaluate(script)) >= 4.5, scheme
    assert len(grounds) == 2
