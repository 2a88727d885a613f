"""Modules whose generated kernels are kept as text and compiled ahead of time."""

from __future__ import annotations

from pathlib import Path

from ingot.ir.module import Module
from ingot.ir.text import parse_module

HERE = Path(__file__).parent / "replay"
NAMES = sorted(p.stem for p in HERE.glob("*.ir"))


def example(name: str) -> Module:
    """The module of replay/<name>.ir."""
    return parse_module((HERE / f"{name}.ir").read_text(), filename=f"{name}.ir")
