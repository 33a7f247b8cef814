"""Score a file of outputs: ``python -m othink_pipeline.score FILE --task geometry``.

JSON lines, an array of objects, or R1-V's own results file. Of each object two keys are read: the
gold (text, a number, or a list: see ``scoring.kinds``) and the output (text), under their usual
names (``GOLDS``, ``OUTPUTS``) or those that are given. The whole file is checked before anything is
scored. Prints one JSON object:

    n, correct, accuracy, ci_low, ci_high    correct of n, the Wilson 95 % interval
    format_valid                             outputs that are <think>…</think><answer>…</answer>
    unparseable                              outputs without an answer that the rule reads

Whatever cannot be scored counts as not correct; nothing is dropped.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import click

from othink_pipeline.report.estimators import wilson_interval
from othink_pipeline.scoring import r1v, strict
from othink_pipeline.scoring.golds import answer_text
from othink_pipeline.scoring.kinds import EXACT, AnswerKind, Choice, Items, Number, Text, accepted
from othink_pipeline.scoring.r1v import WorkerError
from othink_pipeline.scoring.strict import Verdict

Task = Literal["counting", "geometry"]
Rule = Literal["strict", "r1v"]
PROGRESS_S = 10.0
GOLDS = ("ground_truth", "gold", "target", "reference", "label", "solution", "answer")
OUTPUTS = ("model_output", "output", "completion", "response", "prediction", "generated_text")
"""What the two keys may be called. The first of each goes before all others; where a record lacks
that one and has several of the others, one has to be named."""
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
    help="Of exact answers. counting: golds are whole numbers; geometry: expressions. Also chooses "
    "R1-V's judge.",
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
@click.option(
    "--answer",
    type=click.Choice(("exact", "number", "choice", "text", "list", "set")),
    default="exact",
    show_default=True,
    help="The kind of answer, under rule strict.",
)
@click.option(
    "--relative",
    type=click.FloatRange(0),
    default=0.05,
    show_default=True,
    help="Of --answer number: the tolerance, a share of the gold.",
)
@click.option(
    "--absolute",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Of --answer number: the tolerance at least.",
)
@click.option("--gold-key", help="What the gold is called in the file; it is found if it is usual.")
@click.option("--output-key", help="The same of the output.")
def main(
    file: Path,
    task: Task | None,
    rule: Rule,
    out: Path | None,
    answer: str,
    relative: float,
    absolute: float,
    gold_key: str | None,
    output_key: str | None,
) -> None:
    """Score the outputs in FILE: JSON lines, an array, or R1-V's results."""
    if out is not None and not out.parent.is_dir():
        raise click.UsageError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out is not None and out.exists() and out.samefile(file):
        raise click.UsageError(f"--out {out} is the file to score: name another")
    kinds: dict[str, AnswerKind] = {
        "exact": EXACT,
        "number": Number(kind="number", relative=relative, absolute=absolute),
        "choice": Choice(kind="choice"),
        "text": Text(kind="text"),
        "list": Items(kind="list"),
        "set": Items(kind="set"),
    }
    kind = kinds[answer]
    if task is None and kind is EXACT:
        raise click.UsageError("Missing option '--task': counting or geometry")
    if rule == "r1v" and kind is not EXACT:
        raise click.UsageError(f"--answer {answer}: R1-V knew no such kind; leave out --rule r1v")
    records = read_records(file, task, None if rule == "r1v" else kind, (gold_key, output_key))
    try:
        verdicts = [
            strict.score(record.output, record.gold, kind)
            if rule == "strict"
            else r1v.score(record.output, record.gold, which=task or "geometry")
            for record in with_progress(records)
        ]
    except WorkerError as error:
        raise click.ClickException(str(error)) from error
    if out is not None:
        write_verdicts(out, records, verdicts)
    click.echo(json.dumps(summarize(verdicts)))


def read_records(
    file: Path,
    task: Task | None,
    kind: AnswerKind | None,
    keys: tuple[str | None, str | None] = (None, None),
) -> list[Record]:
    """The file's records; lines of white space are none.

    Args:
        kind: of the answers; None: whatever rule r1v makes of them.
        keys: what gold and output are called; None: one of ``GOLDS``, ``OUTPUTS``.

    Raises:
        click.ClickException: a record that cannot be used, or none that can; names the first few.
    """
    records: list[Record] = []
    faults: list[str] = []
    for number, found in _read_objects(file):
        try:
            records.append(_read_record(number, found, task, kind, keys))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    if faults:
        more = len(faults) - _FAULTS_SHOWN
        shown = [*faults[:_FAULTS_SHOWN], *([f"and {more} more lines"] if more > 0 else [])]
        raise click.ClickException(f"{file}: nothing was scored\n  " + "\n  ".join(shown))
    if not records:
        raise click.ClickException(f"{file} has no lines to score")
    return records


def _read_objects(file: Path) -> Iterator[tuple[int, Any]]:
    """What stands in each line, or in each place of an array, from 1; a fault as a ValueError."""
    content = file.read_bytes()
    whole = _parse(content) if content.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"[", b"{") else None
    if isinstance(whole, dict) and isinstance(whole.get("results"), list):  # as R1-V writes them
        whole = whole["results"]
    if isinstance(whole, list):
        yield from enumerate(whole, start=1)
        return
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            yield number, _parse(line)


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return ValueError(f"no JSON in UTF-8: {error}")


def _read_record(
    number: int,
    record: Any,
    task: Task | None,
    kind: AnswerKind | None,
    keys: tuple[str | None, str | None],
) -> Record:
    if isinstance(record, ValueError):
        raise record
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__}, not an object")
    gold_key = keys[0] or _find_key(record, GOLDS, "--gold-key")
    output_key = keys[1] or _find_key(record, OUTPUTS, "--output-key")
    for key in (gold_key, output_key):
        if key not in record:
            raise ValueError(f"no key {key!r}; it has {', '.join(map(repr, record)) or 'none':.80}")
    value, output = record[gold_key], record[output_key]
    if kind is None and isinstance(value, list):
        raise ValueError(f"{gold_key} is a list, {value!r:.80}: rule r1v knows one gold")
    gold = None if isinstance(value, bool) and kind in (None, EXACT) else answer_text(value)
    if not isinstance(gold, str):
        raise ValueError(f"{gold_key} must be text or a number, got {value!r:.80}")
    if not isinstance(output, str):
        raise ValueError(f"{output_key} must be text, got {type(output).__name__}")
    # A gold that nobody can hit would lower the accuracy without a word.
    whole = kind not in (None, EXACT) or task != "counting" or _is_whole(gold)
    if not whole:
        raise ValueError(f"{gold_key} {gold!r:.80} is no whole number; is it --task geometry?")
    if kind is not None and not kind.read_golds(gold):
        raise ValueError(f"{gold_key} {gold!r:.80} does not read under rule strict")
    return Record(number, gold, output)


def _is_whole(gold: str) -> bool:
    return all(re.fullmatch(r"\s*[0-9]{1,18}\s*", text) for text in accepted(gold))


def _find_key(record: Mapping[str, Any], usual: Sequence[str], option: str) -> str:
    """The one of the usual keys that a record has; the first of them goes before all others."""
    found = [key for key in usual if key in record]
    if usual[0] in found or not found:
        return usual[0]
    if len(found) > 1:
        raise ValueError(f"has the keys {', '.join(found)}: say which one is meant: {option}")
    return found[0]


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
    """One JSON object a line, in the order of the file: as a shell would redirect them to ``out``.

    So what ``out`` links to is written, and a device or a named pipe stays what it is.

    Raises:
        click.ClickException: it cannot be written.
    """
    rows = (
        {"line": record.line, "gold": record.gold, **asdict(verdict)}
        for record, verdict in zip(records, verdicts, strict=True)
    )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    try:
        out.write_text(text, encoding="ascii")
    except OSError as error:
        raise click.ClickException(f"--out {out} cannot be written: {error}") from error


if __name__ == "__main__":
    main(prog_name="python -m othink_pipeline.score")
