"""Addresses and errors as they may be shown and kept: without credentials."""

from __future__ import annotations

import re


def redact_uri(text: str) -> str:
    """A URI, or a message with URIs in it, with every user, password and token as ``***``."""
    text = re.sub(r"://[^\s'\"]*@", "://***@", text)
    return re.sub(r"(?i)((?:password|passwd|pwd|token|secret)=)[^&\s'\"]+", r"\1***", text)


def failure(error: BaseException) -> str:
    """Why something failed, in one line without credentials."""
    text = " ".join(redact_uri(str(error)).split())
    return f"{type(error).__name__}: {text}"[:500]
