"""The page says what the tables say, shows what its rules choose, and trusts no text."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from othink_pipeline.data.pictures import decode
from othink_pipeline.report.comparison import Difference
from othink_pipeline.report.page.archive import pack_predictions, split_thinking
from othink_pipeline.report.page.charts import curve_panels, forest
from othink_pipeline.report.page.items import make_items
from othink_pipeline.report.page.samples import Sample, choose_samples
from tests.support.handmade import KNOWN, METHODS, cell, grid, matrix_of, two_tasks
from tests.support.page import (
    COMPARISONS,
    HISTORY,
    HOSTILE,
    page_items,
    page_of,
    page_predictions,
    picture,
    with_samples,
)


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(page_predictions())


def unpack(packed: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def archive_of(page: str) -> Any:
    return unpack(page.split('type="application/octet-stream">')[1].split("<")[0])


def test_every_number_of_the_matrix_stands_in_the_page(page: str) -> None:
    matrix = matrix_of(page_predictions())
    table = page.split('<table id="scores">')[1].split("</table>")[0]
    rows = [re.findall("<td>(.*?)</td>", row) for row in table.split("<tr>")[2:]]
    assert re.findall('<th scope="col">(.*?)</th>', table) == list(matrix.columns)
    assert len(rows) == len(matrix)
    for shown, row in zip(rows, matrix.astype(object).to_numpy(), strict=True):
        for text, value in zip(shown, row, strict=True):
            if isinstance(value, float):
                assert float(text) == pytest.approx(value, abs=5e-5)
            else:
                assert text == ("—" if pd.isna(value) else str(value))
    heat_map = page.split('id="matrix"')[1].split("</table>")[0]
    shown = re.findall(r"<b>(.*?)</b><small>\[(.*?), (.*?)\]</small>", heat_map)
    assert [tuple(map(float, entry)) for entry in shown] == [
        tuple(round(100 * value, 1) for value in row)
        for row in matrix[["accuracy", "ci_low", "ci_high"]].to_numpy()
    ]
    assert heat_map.count('class="own"') == 4


def test_what_failed_counts_as_nothing(page: str) -> None:
    failed = pd.DataFrame(
        [["counting", "grpo", 1, 0, "counting", "OSError: no space"]],
        columns=["train_task", "method", "seed", "base_model", "eval_task", "reason"],
    )
    about = '<p class="about">5 models, 1 seed, 2 tasks, 12 test items, 60 answers</p>'
    assert about in page
    assert about in page_of(page_predictions(), failed)


def test_forms_are_a_table_for_each_task(page: str) -> None:
    """GRPO-D on counting: 2 of its first 3 items right, 3 of the other 5."""
    forms = page.split('id="forms"')[1].split("</section>")[0]
    assert "total (5)" in forms
    assert "price (3)" in forms
    row = forms.split("GRPO-D on counting")[1].split("</tr>")[0]
    assert re.findall("<b>(.*?)</b>", row) == ["60.0", "66.7"]


def test_all_that_is_linked_to_is_there(page: str) -> None:
    without_forms = page_of(two_tasks())
    assert 'href="#forms"' in page
    assert 'href="#forms"' not in without_forms
    for text in (page, without_forms):
        sections = set(re.findall('href="#([a-z]+)"', text.split("</nav>")[0]))
        assert sections <= set(re.findall('<section id="([a-z]+)"', text))


def test_texts_are_data_and_never_markup(page: str) -> None:
    assert "<img src=" not in page.replace('<img src="data:', "")
    assert "<script>document" not in page
    assert page.count("</script>") == 2  # the archive's and the page's own
    base = next(answer for answer in archive_of(page)["answers"] if answer["model"] == 0)
    thinking, rest = base["texts"][0]
    assert f"<think>{thinking}</think>{rest}" == HOSTILE
    assert re.search(r"What is asked in counting-\d\? &lt;b&gt;&amp;</p>", page)


def test_the_page_asks_the_network_for_nothing(page: str) -> None:
    assert "default-src 'none'" in page
    markup = page.rpartition("<script>")[0]
    references = re.findall(r"""(?:src|href|action|srcset)\s*=\s*["']?([^"'\s>]+)""", markup)
    assert len(references) > 12
    assert [place for place in references if not place.startswith(("data:image/", "#"))] == []
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|WebSocket|EventSource", page)


def test_the_archive_holds_every_prediction_with_its_verdict(page: str) -> None:
    predictions, data = page_predictions(), archive_of(page)
    names = [model["name"] for model in data["models"]]
    assert names == [
        "base model",
        *("SFT on counting", "GRPO-D on counting", "SFT on geometry", "GRPO-D on geometry"),
    ]
    right: dict[str, set[str]] = {name: set() for name in names}
    for block in data["answers"]:
        for place, verdict in enumerate(block["verdicts"]):
            item = data["items"][block["first"] + place]
            if verdict == "r":
                right[names[block["model"]]].add(item["example_id"])
    assert sum(map(len, right.values())) == predictions["correct"].sum()
    ids = {
        name: set(rows.loc[rows["correct"], "example_id"])
        for name, rows in predictions.groupby(["train_task", "method"])
    }
    assert right["GRPO-D on counting"] - right["base model"] == (
        ids["counting", "grpo_d"] - ids["none", "base"]
    )
    unreadable = predictions["unparseable"].sum()
    assert sum(block["verdicts"].count("u") for block in data["answers"]) == unreadable > 0


def test_answers_that_are_missing_are_no_answers() -> None:
    predictions = page_predictions()
    lost = (predictions["method"] == "sft") & (predictions["example_id"] == "counting-3")
    data = unpack(pack_predictions(predictions[~lost], page_items(predictions), KNOWN))
    assert "".join(block["verdicts"] for block in data["answers"]).count("-") == 2


def test_samples_stand_beside_the_answer_where_there_are_some() -> None:
    predictions = page_predictions()
    assert all(not block["samples"] for block in archive_of(page_of(predictions))["answers"])
    lost = (predictions["method"] == "sft") & (predictions["example_id"] == "counting-3")
    sampled = with_samples(predictions)[~lost]
    data = unpack(pack_predictions(sampled, page_items(predictions), KNOWN))
    samples = [each for block in data["answers"] for each in block["samples"]]
    there = [["w", "first"], ["r", HOSTILE], ["w", "third"]]
    assert [each for each in samples if each != there] == [[], []]  # of SFT on either task
    assert len(samples) == len(predictions)


def test_seeds_are_told_apart() -> None:
    cells = [cell("counting", "sft", seed, "counting", [0, 1]) for seed in (3, 5)]
    predictions = grid(cell("none", "base", None, "counting", [0, 0]), *cells)
    data = unpack(pack_predictions(predictions, page_items(predictions), KNOWN))
    assert [(model["name"], model["seed"]) for model in data["models"]] == [
        ("base model", None),
        ("SFT on counting, seed 3", 3),
        ("SFT on counting, seed 5", 5),
    ]


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        ("<think> 1+1=2 </think><answer> 2 </answer>", ("1+1=2", "<answer> 2 </answer>")),
        ("<think></think>\n<answer>2</answer>", ("", "<answer>2</answer>")),
        ("2 <think>a</think>", ("", "2 <think>a</think>")),
        ("<think>never ends", ("", "<think>never ends")),
    ],
)
def test_thinking_is_set_apart(completion: str, parts: tuple[str, str]) -> None:
    assert split_thinking(completion) == parts


def sampled() -> dict[str, Sample]:
    # Items         0  1  2  3  4
    predictions = grid(
        cell("none", "base", None, "counting", [0, 1, 0, 1, 0]),
        cell("counting", "sft", 0, "counting", [0, 1, 1, 0, 0]),
        cell("counting", "grpo_d", 0, "counting", [0, 0, 0, 1, 1]),
        cell("counting", "grpo_d", 1, "counting", [1, 1, 1, 1, 1]),  # another seed
        cell("none", "base", None, "geometry", [0, 0, 1, 0, 0]),
        cell("counting", "grpo_d", 0, "geometry", [0, 0, 0, 1, 1]),
        cell("geometry", "grpo_d", 0, "geometry", [0, 0, 1, 1, 1]),
    )
    samples = choose_samples(predictions, METHODS, [("grpo_d", "grpo"), ("grpo_d", "sft")])
    return {sample.rule.title: sample for sample in samples}


@pytest.mark.parametrize(
    ("title", "example", "found"),
    [
        ("Learnt", "counting-4", 1),
        ("Unlearnt", "counting-1", 1),
        ("Ahead", "counting-3", 2),
        ("Behind", "counting-1", 2),
        ("Transferred", "geometry-3", 2),
        ("Not transferred", "geometry-2", 1),
    ],
)
def test_samples_are_the_first_that_meet_their_rule(title: str, example: str, found: int) -> None:
    sample = sampled()[title]
    assert (sample.example_id, sample.found, sample.tested) == (example, found, 5)


def test_a_sample_shows_all_that_were_trained_on_its_task() -> None:
    samples = sampled()
    models = samples["Ahead"].answers[["train_task", "method"]].to_numpy().tolist()
    assert models == [["none", "base"], ["counting", "sft"], ["counting", "grpo_d"]]
    trained = samples["Not transferred"].answers["train_task"].tolist()
    assert trained == ["none", "counting", "geometry"]


def test_samples_hold_a_method_against_its_own_seed_and_base_model() -> None:
    # The method has no seed 0: its seed 1 started from base model 1, which was right on item 0.
    predictions = grid(
        cell("none", "base", None, "counting", [0, 0, 0], base_model=0),
        cell("none", "base", None, "counting", [1, 0, 0], base_model=1),
        cell("counting", "sft", 0, "counting", [0, 0, 0], base_model=0),
        cell("counting", "sft", 1, "counting", [1, 1, 0], base_model=1),
        cell("counting", "grpo_d", 1, "counting", [1, 1, 1], base_model=1),
    )
    samples = choose_samples(predictions, METHODS, [("grpo_d", "sft")])
    found = {sample.rule.title: (sample.example_id, sample.found) for sample in samples}
    assert found == {"Learnt": ("counting-1", 2), "Ahead": ("counting-2", 1)}
    for sample in samples:
        assert sample.answers["base_model"].tolist() == [1, 1, 1]
        assert sample.answers["seed"].dropna().tolist() == [1, 1]


def test_a_grid_without_a_pair_or_a_match_has_fewer_samples() -> None:
    predictions = grid(
        cell("none", "base", None, "counting", [0, 0]),
        cell("counting", "mine", 0, "counting", [1, 0]),
    )
    titles = [sample.rule.title for sample in choose_samples(predictions, METHODS, COMPARISONS)]
    assert titles == ["Learnt"]
    assert choose_samples(predictions[:2], METHODS, COMPARISONS) == []


def test_pictures_are_small_and_those_that_were_seen() -> None:
    examples: list[dict[str, Any]] = [
        {"id": i, "task": "t", "form": "", "question": "", "answer": "", "image": image}
        for i, image in (("a", picture(1, (1024, 512))), ("b", picture(9)))
    ]

    def color(uri: str) -> tuple[tuple[int, int], int]:
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        pixel = image.convert("RGB").getpixel((0, 0))
        assert isinstance(pixel, tuple)
        return image.size, round(pixel[0] / 20)

    own = make_items(examples, decode)
    assert [color(item.picture) for item in own] == [((256, 128), 1), ((32, 24), 9)]
    shuffled = make_items(examples, decode, {"a": "b", "b": "a"})
    assert [item.picture for item in shuffled] == [own[1].picture, own[0].picture]
    examples[1]["image"] = b"never read: there is no room"
    scarce = make_items(examples, decode, room_bytes=1)
    assert [item.picture for item in scarce] == [own[0].picture, ""]


def test_a_forest_has_one_axis_and_says_what_its_tests_are_over() -> None:
    row = {"method": "grpo_d", "baseline": "sft", "scope": "same", "seeds": 1, "unit": "items"}
    row |= {"cells": 1, "pairs": 9, "discordant": 3, "p": 0.5, "margin": 5.0, "base_models": 1}
    row |= {"directions": "counting → counting"}
    row |= {"p_equivalent": 0.01, "p_equivalent_holm": 0.02}
    differences = pd.DataFrame(
        columns=list(Difference._fields),
        data=[
            {**row, "points": 20.0, "low": 10.0, "high": 30.0, "p_holm": 0.01},
            {
                **{**row, "baseline": "base", "scope": "cross", "p_holm": 1e-9},
                **{"points": -10.0, "low": -20.0, "high": 0.0},
            },
            {**row, "unit": "seeds", "seeds": 4, "points": 0, "low": 0, "high": 0, "p_holm": None},
        ],
    )
    drawn = forest(differences.astype({"p_holm": float}), KNOWN)
    assert [tick for _, tick in drawn.ticks] == ["−20", "−10", "0", "+10", "+20", "+30"]
    assert (drawn.zero, drawn.margin) == (40, 5)
    assert [(w.low, w.value, w.high) for w in drawn.whiskers[:2]] == [(60, 80, 100), (0, 20, 40)]
    assert [whisker.p for whisker in drawn.whiskers] == [
        *("p = 0.010, over items, one seed", "p < 0.001, over items, one seed"),
        "no test, over 4 seeds of one base model",
    ]
    assert [whisker.margin for whisker in drawn.whiskers] == [(30, 20), None, (30, 20)]
    assert [whisker.conclusion for whisker in drawn.whiskers] == [
        *("undecided, one seed", "undecided, one seed"),
        "equivalent within 5 points",
    ]


def test_curves_begin_with_the_own_task_and_multiply_the_kl_by_its_weight() -> None:
    panels = curve_panels(HISTORY, METHODS, KNOWN)
    assert [panel.title for panel in panels["geometry"]] == [
        "accuracy, geometry (own task)",
        "accuracy, counting (other task)",
        *("reward", "KL weight × √(2 KL)"),
    ]
    own, *_, kl_pull = panels["geometry"]
    assert own.lines[0].points == "33.3,90.0 66.7,80.0 100.0,70.0"
    assert own.summary.endswith("first → last step: GRPO-D 10 % → 30 %")
    # 0.04 step · √(0.02 step): 0.0057, 0.016 and 0.0294 under a top of 0.032.
    assert (kl_pull.top, kl_pull.lines[0].points) == ("0.032", "33.3,82.3 66.7,50.0 100.0,8.1")


@pytest.mark.parametrize(
    "query", ["method == 'base'", "method != 'base'", "train_task == eval_task"]
)
def test_any_subset_of_the_grid_has_a_page(query: str) -> None:
    assert (
        "nan"
        not in page_of(page_predictions().query(query))
        .replace(HOSTILE, "")
        .split('<script id="archive"')[0]
        .partition("</style>")[2]
    )
