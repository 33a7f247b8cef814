"""Score a file of outputs: ``python -m othink_pipeline.score FILE.jsonl --task geometry``.

Each line is a JSON object with ``ground_truth`` (text or an integer) and ``model_output`` (text);
other keys are ignored. The whole file is checked before anything is scored. Prints one JSON object:

    n, correct, accuracy, ci_low, ci_high    correct of n, the Wilson 95 % interval
    format_valid                             outputs that are <think>…</think><answer>…</answer>
    unparseable                              outputs without an answer that the rule reads

Whatever cannot be scored counts as not correct; nothing is dropped.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import click

from othink_pipeline.report.estimators import wilson_interval
from othink_pipeline.scoring import r1v, strict
from othink_pipeline.scoring.answers import read
from othink_pipeline.scoring.r1v import WorkerError
from othink_pipeline.scoring.strict import Verdict

Task = Literal["counting", "geometry"]
Rule = Literal["strict", "r1v"]
PROGRESS_S = 10.0
_FAULTS_SHOWN = 5


class Record(NamedTuple):
    """One line of the file: its number from 1, the gold as text, what the model said."""

    line: int
    gold: str
    output: str


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--task",
    type=click.Choice(get_args(Task)),
    required=True,
    help="counting: golds are whole numbers; geometry: expressions. Also chooses R1-V's judge.",
)
@click.option(
    "--rule",
    type=click.Choice(get_args(Rule)),
    default="strict",
    show_default=True,
    help="strict: the one answer tag, exactly; r1v: what R1-V did, faults included.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write each line's verdict to this file, as JSON lines.",
)
def main(file: Path, task: Task, rule: Rule, out: Path | None) -> None:
    """Score the outputs in FILE: JSON lines with ground_truth and model_output."""
    if out is not None and not out.parent.is_dir():
        raise click.UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out is not None and out.resolve() == file.resolve():
        raise click.UsageError(f"--out {out} is the file to score: name another")
    records = read_records(file, task, rule)
    try:
        verdicts = [
            strict.score(record.output, record.gold)
            if rule == "strict"
            else r1v.score(record.output, record.gold, which=task)
            for record in with_progress(records)
        ]
    except WorkerError as error:
        raise click.ClickException(str(error)) from error
    if out is not None:
        write_verdicts(out, records, verdicts)
    click.echo(json.dumps(summarize(verdicts)))


def read_records(file: Path, task: Task, rule: Rule) -> list[Record]:
    """The file's records; lines of white space are none.

    Raises:
        click.ClickException: a line that cannot be used, or none that can; names the first few.
    """
    records: list[Record] = []
    faults: list[str] = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                records.append(_read_record(number, line, task, rule))
            except ValueError as error:
                faults.append(f"line {number}: {error}")
    if faults:
        more = len(faults) - _FAULTS_SHOWN
        shown = [*faults[:_FAULTS_SHOWN], *([f"and {more} more lines"] if more > 0 else [])]
        raise click.ClickException(f"{file}: nothing was scored\n  " + "\n  ".join(shown))
    if not records:
        raise click.ClickException(f"{file} has no lines to score")
    return records


def _read_record(number: int, line: bytes, task: Task, rule: Rule) -> Record:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON in UTF-8: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, not an object")
    for key in ("ground_truth", "model_output"):
        if key not in record:
            raise ValueError(f"no key {key!r}; it has {', '.join(map(repr, record)) or 'none':.80}")
    gold, output = record["ground_truth"], record["model_output"]
    if isinstance(gold, bool) or not isinstance(gold, str | int):
        raise ValueError(f"ground_truth must be text or an integer, got {gold!r:.80}")
    if not isinstance(output, str):
        raise ValueError(f"model_output must be text, got {type(output).__name__}")
    gold = str(gold)
    # A gold that nobody can hit would lower the accuracy without a word.
    if task == "counting" and not re.fullmatch(r"\s*[0-9]{1,18}\s*", gold):
        raise ValueError(f"ground_truth {gold!r:.80} is no whole number; is it --task geometry?")
    if rule == "strict" and read(gold) is None:
        raise ValueError(f"ground_truth {gold!r:.80} does not read under rule strict")
    return Record(number, gold, output)


def with_progress(records: list[Record]) -> Iterator[Record]:
    """The records; says on standard error how far it is, at most every ``PROGRESS_S``."""
    said = time.monotonic()
    for done, record in enumerate(records):
        if time.monotonic() - said >= PROGRESS_S:
            said = time.monotonic()
            click.echo(f"{done} of {len(records)} lines scored", err=True)
        yield record


def summarize(verdicts: list[Verdict]) -> dict[str, int | float]:
    """The figures of a file with at least one line; shares are in [0, 1]."""
    n, correct = len(verdicts), sum(verdict.correct for verdict in verdicts)
    accuracy = wilson_interval(correct, n)
    return {
        "n": n,
        "correct": correct,
        "accuracy": accuracy.value,
        "ci_low": accuracy.low,
        "ci_high": accuracy.high,
        "format_valid": sum(verdict.format_ok for verdict in verdicts),
        "unparseable": sum(verdict.unparseable for verdict in verdicts),
    }


def write_verdicts(out: Path, records: Iterable[Record], verdicts: Iterable[Verdict]) -> None:
    """One JSON object a line, in the order of the file. ``out`` is whole or as it was before.

    Raises:
        click.ClickException: it cannot be written.
    """
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="ascii") as lines:
            for record, verdict in zip(records, verdicts, strict=True):
                row = {"line": record.line, "gold": record.gold, **asdict(verdict)}
                lines.write(json.dumps(row) + "\n")
        partial.replace(out)
    except OSError as error:
        raise click.ClickException(f"--out {out} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main(prog_name="python -m othink_pipeline.score")
