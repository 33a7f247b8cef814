"""What is shown and kept of addresses and errors holds no credentials."""

import pytest

from othink_pipeline.core.redaction import failure, redact_uri


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("http://ada:secret@host:5000/path", "http://***@host:5000/path"),
        ("postgresql+psycopg2://u:p@ss/w@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        ("http://token@host", "http://***@host"),
        ("mssql://h/d?user=u&password=p%20w&x=1", "mssql://h/d?user=u&password=***&x=1"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////data/mlflow.db", "sqlite:////data/mlflow.db"),
        ("to http://a:b@h/api failed: x@y", "to http://***@h/api failed: x@y"),
    ],
)
def test_no_password_is_shown(text: str, redacted: str) -> None:
    assert redact_uri(text) == redacted


def test_a_failure_is_told_in_one_line_without_a_password() -> None:
    told = failure(OSError("http://me:secret@host/x\n  is away; token=abc " + 600 * "."))
    assert told.startswith("OSError: http://***@host/x is away; token=*** ...")
    assert len(told) == 500
