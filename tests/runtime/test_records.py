"""JSON values become dataclasses, and what is of another type is named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from ingot.runtime.records import record


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int | str, ...]
    span: tuple[int, int] | None = None


@dataclass(frozen=True)
class Outer:
    name: str
    share: float
    parts: tuple[Inner, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    on: bool = False
    more: Any = None


def test_lists_become_tuples_and_objects_dataclasses() -> None:
    made = record(Outer, {"name": "a", "share": 1, "parts": [{"sizes": [1, "B"], "span": [2, 3]}, {"sizes": []}],
                          "counts": {"x": 1}, "on": True, "more": [1]})
    assert made == Outer("a", 1, (Inner((1, "B"), (2, 3)), Inner(())), {"x": 1}, True, [1])


@pytest.mark.parametrize(("data", "message"), [
    (3, "an object is expected, not 3"),
    ({"share": 1.0}, "there is no name"),
    ({"name": "a"}, "there is no share"),
    ({"name": None, "share": 1.0}, "name cannot be None"),
    ({"name": "a", "share": True}, "share cannot be True"),
    ({"name": "a", "share": "1"}, "share cannot be '1'"),
    ({"name": "a", "share": 1, "on": 1}, "on cannot be 1"),
    ({"name": "a", "share": 1, "other": 1}, "other"),
    ({"name": "a", "share": 1, "counts": {"x": 1.5}}, r"counts.x cannot be 1.5"),
    ({"name": "a", "share": 1, "counts": [1]}, r"counts cannot be \[1\]"),
    ({"name": "a", "share": 1, "parts": [{}]}, "parts: there is no sizes"),
    ({"name": "a", "share": 1, "parts": [{"sizes": [None]}]}, "parts: sizes cannot be None"),
    ({"name": "a", "share": 1, "parts": [{"sizes": [], "span": [1, 2, 3]}]}, r"span cannot be \[1, 2, 3\]"),
])
def test_what_does_not_fit_is_named(data: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        record(Outer, data)
