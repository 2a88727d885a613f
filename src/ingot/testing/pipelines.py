"""Random pipelines as a Hypothesis strategy: passes in orders that are not refused, with any options."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, fields, replace
from typing import Any

from hypothesis import strategies as st

import ingot.passes.all  # noqa: F401  (registers the passes)
from ingot.errors import PassError
from ingot.ir.module import Module
from ingot.passes.base import PASSES, Pass
from ingot.passes.pipeline import check_order

DECODERS_ONLY = frozenset({"cached", "take"})
"""What passes establish that are about decoders alone."""


@st.composite
def pipelines(draw: st.DrawFn, target: Module | str = "decoder", *, most: int = 6, calibrated: bool = False,
              contracts: Sequence[str] = ("exact", "cache", "lossy"), extra: Sequence[type[Pass]] = ()) -> list[Pass]:
    """At most `most` of ingot's passes (and those of `extra`) in an order and with options that `check_order` accepts.

    target: the module they are for, or its kind (decoder, encoder, ...). contracts: of the passes to draw.
    calibrated: whether there is calibration text. A pass may still refuse the module with a PassError, or match nothing.
    """
    module = target if isinstance(target, Module) else Module()
    kind = module.meta.get("kind") if isinstance(target, Module) else target
    own = [cls for cls in PASSES.values() if cls.__module__.startswith("ingot.passes.")]
    classes = [cls for cls in (*sorted(own, key=lambda c: c.name), *extra) if cls.contract in contracts and _can_be_drawn(cls)
               and (kind == "decoder" or not DECODERS_ONLY.intersection(cls.establishes))]
    found: list[Pass] = []
    for p in draw(st.lists(st.sampled_from(classes).flatmap(options_of), max_size=most)):
        try:
            check_order([*found, p], module, has_calibration=calibrated)
        except PassError:
            continue
        found.append(p)
    return found


@st.composite
def options_of(draw: st.DrawFn, /, cls: type[Pass], **given: Any) -> Pass:
    """A pass with any of the values its options name; those that name none, or do not go with the others, keep their default.

    given: options that are set already, by field: what has no default and names no values (a path, say) must be.
    """
    drawn = {f.name: draw(st.sampled_from(_values(f))) for f in fields(cls) if _values(f) and f.name not in given}  # type: ignore[arg-type]
    needed = {f.name: drawn.pop(f.name) for f in fields(cls) if f.default is MISSING and f.name in drawn}  # type: ignore[arg-type]
    found = cls(**given, **needed)
    for name, value in drawn.items():
        with suppress(PassError):
            found = replace(found, **{name: value})  # type: ignore[type-var]
    return found


def _can_be_drawn(cls: type[Pass]) -> bool:
    """Whether every option has a default or names its values; a path, say, has to come from a test."""
    return all(_values(f) or f.default is not MISSING or f.default_factory is not MISSING for f in fields(cls))  # type: ignore[arg-type]


def _values(f: Field[Any]) -> tuple[Any, ...]:
    """What an option may be, its default first; () leaves it alone."""
    choices = f.metadata.get("choices") or ((False, True) if isinstance(f.default, bool) else ())
    if f.default is MISSING or not choices:
        return tuple(choices)
    return (f.default, *(c for c in choices if c != f.default))
