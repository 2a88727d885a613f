"""Interpreted tests are collected only where Triton interprets, which is decided before it is imported: see test_interpreted."""

from __future__ import annotations

import os

collect_ignore = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["interpreted"]
