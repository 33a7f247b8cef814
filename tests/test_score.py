"""The command: its figures by hand, and every fault of a file named before anything is scored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from othink_pipeline import score as command
from othink_pipeline.scoring.r1v import WorkerError
from othink_pipeline.scoring.strict import score


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def record(gold: str | int, output: str) -> dict[str, Any]:
    return {"question": "?", "ground_truth": gold, "model_output": output, "other": None}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command.main, [str(argument) for argument in arguments])


def figures(*arguments: object) -> dict[str, Any]:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


COUNTING = [
    record(4, "<think>2+2</think><answer>4</answer>"),
    record("4", "<answer> 4 </answer>"),
    record(4, "<answer>5</answer>"),
    record(4, "<think>x</think>\n<answer>4.0</answer>"),
    record(4, "The answer is 4."),
]
GEOMETRY = [
    record("35°", "<think>so it is 35</think><answer>35</answer>"),
    record("7√{2}", "<think>a</think><answer> 7 </answer>"),
    record("7√{2}", r"<think>a</think><answer>7\sqrt{2}</answer>"),
    record("√{7}", "<answer>√7</answer>"),
    record("12cm", "The answer is 12."),
    record("12cm", "<answer>12 m</answer>"),
    record(r"\frac{4}{3}", "none"),
]


def test_strict_counting(tmp_path: Path) -> None:
    found = figures(write(tmp_path / "a.jsonl", COUNTING), "--task", "counting")
    assert list(found) == [
        *("n", "correct", "accuracy", "ci_low", "ci_high", "format_valid", "unparseable")
    ]
    assert (found["n"], found["correct"], found["accuracy"]) == (5, 3, 0.6)
    assert (found["format_valid"], found["unparseable"]) == (2, 1)
    # Wilson's interval by hand: (p + z²/2n ± z √(p q/n + z²/4n²)) / (1 + z²/n), z = 1.959964.
    assert found["ci_low"] == pytest.approx(0.230724, abs=1e-6)
    assert found["ci_high"] == pytest.approx(0.882379, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "task", "rule", "correct", "unparseable"),
    [
        (COUNTING, "counting", "r1v", 2, 2),  # 4.0 and the untagged 4 are no digits in a tag
        (COUNTING, "geometry", "strict", 3, 1),
        (GEOMETRY, "geometry", "strict", 3, 2),
        (GEOMETRY, "geometry", "r1v", 3, 4),  # not the same three
    ],
)
def test_the_rule_and_the_task_choose_the_judge(
    tmp_path: Path, rows: list[Any], task: str, rule: str, correct: int, unparseable: int
) -> None:
    found = figures(write(tmp_path / "a.jsonl", rows), "--task", task, "--rule", rule)
    assert (found["correct"], found["unparseable"]) == (correct, unparseable)


def test_out_holds_every_verdict(tmp_path: Path) -> None:
    source, out = write(tmp_path / "a.jsonl", GEOMETRY), tmp_path / "verdicts.jsonl"
    out.write_text("old")
    found = figures(source, "--task", "geometry", "--out", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["gold"] for row in rows] == [row["ground_truth"] for row in GEOMETRY]
    assert [row["correct"] for row in rows] == [True, False, True, True, False, False, False]
    assert sum(row["correct"] for row in rows) == found["correct"]
    for row, given in zip(rows, GEOMETRY, strict=True):
        verdict = score(given["model_output"], given["ground_truth"])
        assert row["reason"] == verdict.reason
        assert row["canonical"] == verdict.canonical
    assert sorted(tmp_path.iterdir()) == [source, out]


def test_out_is_written_as_a_shell_would(tmp_path: Path) -> None:
    """What it links to is written, a pipe stays a pipe, a device a device."""
    source, target = write(tmp_path / "a.jsonl", COUNTING), tmp_path / "target.jsonl"
    target.write_text("old" * 9999)
    target.chmod(0o600)
    before = target.stat().st_ino
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    listener.start()
    for name in ("link", "pipe"):
        figures(source, "--task", "counting", "--out", tmp_path / name)
    listener.join()
    assert (tmp_path / "link").is_symlink()
    assert (target.stat().st_ino, target.stat().st_mode & 0o777) == (before, 0o600)
    assert (tmp_path / "pipe").is_fifo()
    assert heard == [target.read_text()]
    assert target.read_text().count("\n") == 5
    figures(source, "--task", "counting", "--out", "/dev/null")
    assert Path("/dev/null").is_char_device()
    result = run(source, "--task", "counting", "--out", "/dev/full")
    assert result.exit_code == 1
    assert "--out /dev/full cannot be written" in result.stderr
    assert run(source, "--task", "counting", "--out", tmp_path).exit_code == 2


@pytest.mark.parametrize("shape", ["lines", "array", "r1v"])
def test_every_shape_of_a_file_is_scored_alike(tmp_path: Path, shape: str) -> None:
    source = tmp_path / "a.json"
    if shape == "lines":
        write(source, GEOMETRY)
    else:
        whole = GEOMETRY if shape == "array" else {"accuracy": 1.0, "results": GEOMETRY}
        source.write_text(json.dumps(whole, indent=2))
    assert figures(source, "--task", "geometry")["correct"] == 3


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        (("gold", "completion"), [], ""),
        (("answer", "prediction"), [], ""),
        (("target", "response"), [], ""),
        (("right", "said"), ["--gold-key", "right", "--output-key", "said"], ""),
        (("right", "said"), [], "no key 'ground_truth'; it has 'right', 'said'"),
        (("gold", "said"), [], "no key 'model_output'"),
    ],
)
def test_the_usual_names_of_columns_are_known(
    tmp_path: Path, keys: tuple[str, str], options: list[str], message: str
) -> None:
    rows = [{keys[0]: 4, keys[1]: "<answer>4</answer>", "question": "?"}]
    result = run(write(tmp_path / "a.jsonl", rows), "--task", "counting", *options)
    assert message in result.stderr
    assert (result.exit_code == 0) is (not message)


def test_two_names_that_both_may_be_the_gold_have_to_be_told_apart(tmp_path: Path) -> None:
    """The answer may be the model's."""
    row = {"label": 4, "answer": "5", "output": "<answer>4</answer>"}
    source = write(tmp_path / "a.jsonl", [row])
    result = run(source, "--task", "counting")
    assert "line 1: has the keys label, answer: say which one is meant: --gold-key" in result.stderr
    assert figures(source, "--task", "counting", "--gold-key", "label")["correct"] == 1
    assert figures(source, "--task", "counting", "--gold-key", "answer")["correct"] == 0


@pytest.mark.parametrize("gold", [5, 5.0, "5", "<answer> 5 </answer>", " 5 "])
def test_golds_are_read_as_data_sources_read_them(tmp_path: Path, gold: Any) -> None:
    source = write(tmp_path / "a.jsonl", [record(gold, "<answer>5</answer>")])
    for rule in ("strict", "r1v"):
        assert figures(source, "--task", "counting", "--rule", rule)["correct"] == 1


def test_a_kind_of_answer_may_be_asked_for(tmp_path: Path) -> None:
    rows = [
        record(["red", "crimson"], "<answer>Crimson</answer>"),
        record("no", "<answer>n</answer>"),
    ]
    source = write(tmp_path / "a.jsonl", rows)
    assert figures(source, "--answer", "text")["correct"] == 1
    numbers = write(tmp_path / "b.jsonl", [record(100, "<answer>104</answer>")])
    assert figures(numbers, "--answer", "number")["correct"] == 1
    assert figures(numbers, "--answer", "number", "--relative", "0.01")["correct"] == 0
    result = run(source, "--answer", "text", "--rule", "r1v", "--task", "geometry")
    assert "--answer text: R1-V knew no such kind" in result.stderr


def test_several_golds_are_read_under_the_strict_rule_alone(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [record(["4", "5"], "<think>a</think><answer>5</answer>")])
    assert figures(source, "--task", "counting")["correct"] == 1
    result = run(source, "--task", "counting", "--rule", "r1v")
    assert "rule r1v knows one gold" in result.stderr


def test_hostile_outputs_are_counted(tmp_path: Path) -> None:
    outputs = ["<answer>" * 9999, "\ud800", "\0", "", "9" * 100_000, "<answer>9**9**9</answer>"]
    source = write(tmp_path / "a.jsonl", [record(4, output) for output in outputs])
    for rule in ("strict", "r1v"):
        found = figures(source, "--task", "counting", "--rule", rule, "--out", tmp_path / "out")
        assert (found["n"], found["correct"], found["unparseable"]) == (6, 0, 6)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: no JSON in UTF-8"),
        ("[" * 100_000, "line 2: no JSON in UTF-8"),
        ('{"ground_truth": ' + "1" * 5000 + "}", "line 2: no JSON in UTF-8"),
        ("[1]", "line 2: a JSON list, not an object"),
        ('{"right": 1}', "line 2: no key 'ground_truth'; it has 'right'"),
        ("{}", "line 2: no key 'ground_truth'; it has none"),
        (
            '{"ground_truth": 1, "said": ""}',
            "line 2: no key 'model_output'; it has 'ground_truth'",
        ),
        ('{"ground_truth": true, "model_output": ""}', "text or a number, got True"),
        ('{"ground_truth": 1.5, "model_output": ""}', "ground_truth '1.5' is no whole number"),
        ('{"ground_truth": null, "model_output": ""}', "text or a number, got None"),
        ('{"ground_truth": 1, "model_output": null}', "model_output must be text, got NoneType"),
        ('{"ground_truth": "x", "model_output": ""}', "ground_truth 'x' is no whole number"),
        ('{"ground_truth": -1, "model_output": ""}', "ground_truth '-1' is no whole number"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.setattr(command.strict, "score", lambda *_, **__: pytest.fail("scored"))
    source, out = tmp_path / "a.jsonl", tmp_path / "out"
    source.write_text(json.dumps(COUNTING[0]) + "\n" + line + "\n")
    result = run(source, "--task", "counting", "--out", out)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr) < 500
    assert "Traceback" not in result.stderr
    assert (result.stdout, out.exists()) == ("", False)


def test_a_gold_that_strict_cannot_read_is_a_fault_of_the_file(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [record("about 5", "x"), *GEOMETRY, record("5%", "x")])
    result = run(source, "--task", "geometry")
    assert result.exit_code == 1
    assert "line 1: ground_truth 'about 5' does not read under rule strict" in result.stderr
    assert "line 9: ground_truth '5%'" in result.stderr
    assert figures(source, "--task", "geometry", "--rule", "r1v")["n"] == 9  # R1-V had no such rule


def test_only_the_first_faults_are_listed(tmp_path: Path) -> None:
    result = run(write(tmp_path / "a.jsonl", [1] * 9), "--task", "counting")
    assert "line 5:" in result.stderr
    assert "line 6:" not in result.stderr
    assert "and 4 more lines" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jsonl", "--task", "counting"], "'none.jsonl' does not exist"),
        (["a.jsonl"], "Missing option '--task'"),
        (["a.jsonl", "--task", "algebra"], "'algebra' is not one of 'counting', 'geometry'"),
        (["a.jsonl", "--task", "counting", "--rule", "lax"], "not one of 'strict', 'r1v'"),
        (["a.jsonl", "--task", "counting", "--out", "no/out"], "there is no folder no; make it"),
        (["a.jsonl", "--task", "counting", "--out", "a.jsonl"], "is the file to score"),
    ],
)
def test_bad_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", COUNTING)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_file_without_records_has_no_accuracy(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("\n \n")
    result = run(source, "--task", "counting")
    assert result.exit_code == 1
    assert "no lines to score" in result.stderr


def test_a_worker_that_does_not_start_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise WorkerError("no worker")

    monkeypatch.setattr(command.r1v, "score", fail)
    result = run(write(tmp_path / "a.jsonl", COUNTING), "--task", "counting", "--rule", "r1v")
    assert (result.exit_code, result.stderr) == (1, "Error: no worker\n")


def test_progress_goes_to_standard_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "PROGRESS_S", 0.0)
    result = run(write(tmp_path / "a.jsonl", COUNTING), "--task", "counting")
    assert "4 of 5 lines scored" in result.stderr
    assert json.loads(result.stdout)["n"] == 5


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", COUNTING)
    command_line = [sys.executable, "-m", "othink_pipeline.score", source, "--task", "counting"]
    done = subprocess.run(command_line, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["correct"] == 3
