"""Closed, typed blocks of parameters, and faults in them told as a user needs to hear them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_origin

import click
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from othink_pipeline.core.paths import check_path

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Place = Annotated[str, AfterValidator(check_path), Field(json_schema_extra={"format": "path"})]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", json_schema_extra={"format": "name"})]
Weight = Annotated[float, Field(ge=0)]
BASE = "base"
"""The untrained policy, where a method is named."""
LearningRate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
HubId = Annotated[
    str, Field(pattern=r"^[\w.-]+/[\w.-]+$", json_schema_extra={"format": "owner/name"})
]
"""``owner/name`` on the Hugging Face hub."""


SAME_ENV = "(with the --env of this run)"
"""Ends a remedy's command, which would change the results of conf/base without it."""


class ConfigurationError(click.ClickException):
    """Bad input, found before any work was done: shown without a traceback, exit code 1."""


class BadParametersError(ConfigurationError):
    """All that is wrong with the parameters, a line each."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = list(dict.fromkeys(faults))
        super().__init__("bad parameters\n  " + "\n  ".join(self.faults))


class Block(BaseModel):
    """A block of parameters that accepts no unknown key and never changes.

    Strict: neither ``true`` nor ``"3"`` is a number. Numbers are finite. A field's docstring is its
    description in the reference of all parameters.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def validate(model: type[BaseModel], value: Any, homes: Mapping[str, str], home: str = "") -> Any:
    """``value`` as ``model``; a fault is told with the block its key stands in, else ``home``.

    Raises:
        BadParametersError: with every fault.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            block = homes.get(str(fault["loc"][0]), home)
            lines.append(f"{block}.{_explain(fault, model)}" if block else _explain(fault, model))
        raise BadParametersError(lines) from None


def _explain(fault: Any, model: type[BaseModel]) -> str:
    """One fault as ``key = value: what is wrong``, with the nearest key for a misspelt one."""
    keys, siblings, here = _locate(fault["loc"], model)
    key = ".".join(keys)
    if fault["type"] == "extra_forbidden":
        near = get_close_matches(keys[-1], siblings, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        told = f"{key}: unknown key.{hint} Allowed here: {', '.join(siblings)}"
        if (
            len(keys) > 1 and fault["loc"][-2] != keys[-2] and not near
        ):  # the block is of one kind of several
            told += (
                f". Where it is left over from another kind of {keys[-2]}: --params takes no key "
                "away; write the block anew in the parameters.yml of an environment"
            )
        return told
    if fault["type"] == "missing":
        return f"{key}: missing; add it"
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag = fault["ctx"]["discriminator"].strip("'")
        allowed = ", ".join(value for choice in here for value in _literals(choice))
        return (
            f"{key}.{tag} = {fault['input'].get(tag)!r}: not allowed. Allowed: {allowed}. "
            f"The block holds: {', '.join(map(str, fault['input']))}"
        )
    if here and fault["type"] != "value_error":  # that one comes from a check of the block
        allowed = "; or ".join(", ".join(sorted(choice.model_fields)) for choice in here)
        return f"{key} = {fault['input']!r}: must be a block with the keys {allowed}"
    message = fault["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    return f"{key} = {fault['input']!r}: {message}"


def _locate(
    location: tuple[str | int, ...], model: type[BaseModel]
) -> tuple[list[str], list[str], list[type[BaseModel]]]:
    """A fault's keys as they stand in the YAML, the keys allowed beside it, the models below it.

    Pydantic puts the tag of a discriminated union into the location; the YAML has no such key.
    """
    keys: list[str] = []
    siblings: list[str] = []
    here, named = [model], False
    for part in location:
        if named:  # a name in a mapping
            keys.append(str(part))
            named = False
            continue
        chosen = [choice for choice in here if len(here) > 1 and part in _literals(choice)]
        if chosen:
            here = chosen
            continue
        keys.append(str(part))
        siblings = sorted({name for choice in here for name in choice.model_fields})
        kinds = [
            choice.model_fields[str(part)].annotation
            for choice in here
            if part in choice.model_fields
        ]
        named = any(get_origin(kind) is dict for kind in kinds)
        here = [below for kind in kinds for below in _models_in(kind)]
    return keys, siblings, here


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if parts := get_args(annotation):
        return [below for part in parts for below in _models_in(part)]
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return [annotation] if is_model else []


def _literals(model: type[BaseModel]) -> list[str]:
    return [
        value
        for info in model.model_fields.values()
        if get_origin(info.annotation) is Literal
        for value in get_args(info.annotation)
    ]
