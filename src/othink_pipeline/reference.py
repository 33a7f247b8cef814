"""The reference of all parameters: ``python -m othink_pipeline.reference FILE.md``.

Made from the JSON schema of the blocks that check them, beside the values of ``conf/base``. To be
run in the project's folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import yaml
from pydantic.json_schema import models_json_schema

from othink_pipeline.cells.parameters import Parameters
from othink_pipeline.training.parameters import RL, SFT, Training

Schema = Mapping[str, Any]

HEAD = """\
# All parameters

Made from the code by `make docs`. A block is a top-level key of the parameter files in `conf/`, and
closed: an unknown key or a value that is not allowed stops a run before it starts. A name has small
letters, digits and underscores; a relative path starts at the project. `…` is too long to be shown.
How one environment is laid over another: [change something](../change.md#environments).
"""
SHARED = {"sft": (SFT, Training), "rl": (RL, Training)}
"""Blocks of ``Parameters`` that are checked as part of a method: by which model, and what of it
stands in another block."""
LONGEST = 48
"""Characters of a value that fit into a table."""
BOUNDS = {
    "exclusiveMinimum": ">",
    "minimum": "≥",
    "exclusiveMaximum": "<",
    "maximum": "≤",
    "multipleOf": "a multiple of",
}


class Nested(NamedTuple):
    """Where a block may stand."""

    path: str
    """Its key, with those of the blocks around it; ``*`` stands for any name."""
    model: str
    """Its name in the schema."""
    kind: str = ""
    """What tells it from other blocks that may stand there, such as ``kind: hub``."""


def parameters_page(conf: Path) -> str:
    """The page, in Markdown.

    Args:
        conf: the folder of the environment whose values are shown.
    """
    _, schema = models_json_schema([(model, "validation") for model in (Parameters, SFT, RL)])
    models = schema["$defs"]
    homes: dict[str, Path] = {}
    values: dict[str, Any] = {}
    for file in sorted(conf.glob("parameters*.yml")):
        blocks = yaml.safe_load(file.read_text(encoding="utf-8"))
        values |= blocks
        homes |= dict.fromkeys(blocks, file)
    sections = [HEAD.rstrip()]
    for name, field in models["Parameters"]["properties"].items():
        home = f"In `{homes[name].as_posix()}`."
        sections += [f"## `{name}`", " ".join([_prose(field), home]).lstrip()]
        model, elsewhere = SHARED.get(name, (None, None))
        hidden = elsewhere.model_fields if elsewhere else {}
        places = [Nested(name, model.__name__)] if model else [*_blocks_in(name, field, models)]
        shown = set()
        for place in places:  # grows on the way
            if place.model in shown:
                continue
            shown.add(place.model)
            fields = {
                key: each
                for key, each in models[place.model]["properties"].items()
                if key not in hidden and "const" not in each
            }
            kind = f", `{place.kind}`" if place.kind else ""
            title = f"### `{place.path}`{kind}" if place.path != name else ""
            sections += [title, _prose(models[place.model])]
            sections.append(_table(fields, _at(values, place.path)) if fields else "")
            for key, each in fields.items():
                places += _blocks_in(f"{place.path}.{key}", each, models)
    return "\n\n".join(filter(None, sections)) + "\n"


def _table(fields: Schema, values: Schema) -> str:
    """A row a key."""
    rows = ["| key | allowed | `conf/base` | |", "| --- | --- | --- | --- |"]
    for key, field in fields.items():
        value = f"`{_shown(values[key])}`" if key in values else "–"
        rows.append(f"| `{key}` | {_allowed(field)} | {value} | {_prose(field)} |")
    return "\n".join(rows)


def _at(values: Schema, path: str) -> Schema:
    """The block at a path; empty where there is none."""
    for key in path.split("."):
        values = values.get(key) or {}
    return values


def _shown(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    text = value if isinstance(value, str) else text.removesuffix("\n...\n").rstrip()
    return text if len(text) <= LONGEST else "…"


def _allowed(schema: Schema) -> str:
    """What a value may be: ``integer > 0``, ``number ≥ 0, ≤ 1``, ``list of name``."""
    match schema:
        case {"const": value}:
            return f"`{value}`"
        case {"enum": values}:
            return ", ".join(f"`{value}`" for value in values)
        case {"anyOf": choices} | {"oneOf": choices}:
            return " or ".join(dict.fromkeys(map(_allowed, choices)))
        case {"type": "array", "prefixItems": items}:
            return "[" + ", ".join(map(_allowed, items)) + "]"
        case {"type": "array", "items": item}:
            return f"list of {_allowed(item)}"
        case {"patternProperties": named}:
            return "{name: " + ", ".join(map(_allowed, named.values())) + "}"
        case {"additionalProperties": dict(each)}:
            return f"{{text: {_allowed(each)}}}"
        case {"$ref": _}:
            return "a block"
        case {"type": "null"}:
            return "`null`"
        case {"type": "boolean"}:
            return "`true`, `false`"
        case {"type": "string"}:
            return str(schema.get("format", "text"))
    bounds = ", ".join(f"{sign} {schema[key]:g}" for key, sign in BOUNDS.items() if key in schema)
    return f"{schema['type']} {bounds}".rstrip()


def _blocks_in(path: str, schema: Schema, models: Schema) -> Iterator[Nested]:
    """The blocks that a field may hold."""
    match schema:
        case {"$ref": reference}:
            name = reference.rpartition("/")[2]
            fields = models[name]["properties"].items()
            tags = [f"{key}: {field['const']}" for key, field in fields if "const" in field]
            yield Nested(path, name, ", ".join(tags))
        case {"anyOf": choices} | {"oneOf": choices}:
            for choice in choices:
                yield from _blocks_in(path, choice, models)
        case {"type": "array", "items": item}:
            yield from _blocks_in(path, item, models)
        case {"patternProperties": named}:
            for inner in named.values():
                yield from _blocks_in(f"{path}.*", inner, models)


def _prose(schema: Schema) -> str:
    """A description as Markdown, each paragraph in one line."""
    text = schema.get("description", "").replace("``", "`").replace("|", "\\|")
    return "\n\n".join(" ".join(part.split()) for part in re.split(r"\n\s*\n", text))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def main(file: Path) -> None:
    """Write the reference of all parameters to FILE."""
    file.write_text(parameters_page(Path("conf/base")), encoding="utf-8")


if __name__ == "__main__":
    main(prog_name="python -m othink_pipeline.reference")
