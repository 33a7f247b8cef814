"""How `kedro run` ends when it is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from othink_pipeline import cli
from tests.conftest import shipped_parameters


def run_with(monkeypatch: pytest.MonkeyPatch, error: BaseException, *options: str) -> Any:
    def callback(**_: Any) -> None:
        raise error

    monkeypatch.setattr(cli.kedro_run, "callback", callback)
    return CliRunner().invoke(cli.cli, ["run", *options])


def test_ctrl_c_says_what_is_kept_and_has_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_kept", lambda: "3 cells are finished.")
    result = run_with(monkeypatch, KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "Stopped. 3 cells are finished.\n"


def test_what_is_kept_is_told_by_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.GridConfigLoader, "current", None)
    assert cli._kept() == "Nothing had begun."
    monkeypatch.setattr(cli.GridConfigLoader, "current", {"parameters": {}})
    assert "Nothing was changed" in cli._kept()  # bad parameters: no second error
    monkeypatch.chdir(Path(__file__).parents[1])  # the base model is there
    monkeypatch.setattr(cli.GridConfigLoader, "current", {"parameters": shipped_parameters()})
    said = cli._kept()
    assert "The same command goes on from there." in said
    assert "after its last state (one every 8 updates)" in said
    again = shipped_parameters()
    again["compute"]["fresh"] = True
    monkeypatch.setattr(cli.GridConfigLoader, "current", {"parameters": again})
    assert cli._kept() == said.replace("same command", "same command without compute.fresh")


def test_an_error_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run_with(monkeypatch, ValueError("something else"), "--pipelines=rl")
    assert isinstance(result.exception, ValueError)
