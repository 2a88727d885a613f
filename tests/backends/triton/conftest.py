"""Interpreted tests are collected only where Triton interprets, which is decided before it is imported: see test_interpreted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]


@pytest.fixture
def hopper(tmp_path: Path) -> Iterator[None]:
    """A driver that knows of a Hopper chip and can start nothing, and `tmp_path` as Triton's cache."""
    from ingot.backends.triton.warmup import aimed

    with aimed(90, tmp_path):
        yield
