"""Golds: the texts that the right answers of tables and files stand for."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np

YES_NO = {True: '["yes", "true"]', False: '["no", "false"]'}


def answer_text(value: Any) -> Any:
    """What a table holds as the text of an answer, without its tag; other values as they are.

    Numbers are written out, in the fewest digits that tell them apart in their own type; what is
    not finite is None, what is missing. A list is a JSON list of texts: see ``kinds``; one of lists
    is left as it is, no kind means anything by it.
    """
    if isinstance(value, bool | np.bool_):
        return YES_NO[bool(value)]
    if isinstance(value, float | np.floating):
        # Tables make floats of whole columns for one missing number: 3.0 is 3.
        return np.format_float_positional(value, trim="-") if np.isfinite(value) else None
    if isinstance(value, Decimal):
        return format(value, "f") if value.is_finite() else None
    if isinstance(value, int | np.integer):
        return str(value)
    if isinstance(value, list | tuple):
        if any(isinstance(each, list | tuple) for each in value):
            return value
        texts = [_item_text(each) for each in value]
        if not texts or not all(isinstance(text, str) for text in texts):
            return value
        return json.dumps(texts, ensure_ascii=False)
    return unwrap(value, "answer") if isinstance(value, str) else value


def _item_text(value: Any) -> Any:
    """An element of a list: one text, not the list of texts that a truth value is by itself."""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return answer_text(value)


def unwrap(text: str, tag: str) -> str:
    """What stands in ``<tag>…</tag>`` where that is all of ``text``; else ``text``; stripped."""
    text = text.strip()
    opening, closing = f"<{tag}>", f"</{tag}>"
    whole = text.startswith(opening) and text.endswith(closing)
    if not whole or text.count(opening) != 1 or text.count(closing) != 1:
        return text
    return text[len(opening) : -len(closing)].strip()
