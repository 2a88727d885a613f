"""The examples run, and say what the documentation shows."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from ingot.passes.base import PASSES

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"compare_artifacts.py", "write_a_pass.py"}


def test_write_a_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """The pass keeps its contract; with the bug it does not, and the smallest decoder shows it."""
    try:
        runpy.run_path(str(EXAMPLES / "write_a_pass.py"), run_name="__main__")
    finally:
        PASSES.pop("fold-scale", None)
    shown = capsys.readouterr().out
    assert shown.startswith("fold-scale keeps its contract\nwith the bug, fold-scale broke its contract (exact): %linear")
    assert "before: %linear = linear(%mul, @l0.attn.q, bias=@l0.attn.q.bias)" in shown
    assert "after:  %linear = linear(%x, @l0.attn.q.scaled, bias=@l0.attn.q.bias.scaled)" in shown


def test_compare_artifacts() -> None:
    command = runpy.run_path(str(EXAMPLES / "compare_artifacts.py"))["main"]
    assert "--text" in CliRunner().invoke(command, ["--help"]).stdout
