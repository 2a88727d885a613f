"""Which function lowers which op class to ONNX.

A rule takes the op and the `Lowering`; it emits nodes and returns the ONNX name of the op's result (a tuple of names
for several results). It returns None, or raises Decline, when it does not apply; what it emitted until then vanishes.
Rules asked first: contrib ones (unless only standard operators are wanted), later registered ones before earlier ones,
an op's own class before its bases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from ingot.ir.op import Op

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering

Names = str | tuple[str, ...]
Rule = Callable[[Any, "Lowering"], Names | None]
F = TypeVar("F", bound=Rule)

CONTRIB_DOMAIN = "com.microsoft"
"""The domain of onnxruntime's own operators."""

STANDARD: dict[type[Op], list[Rule]] = {}
"""Rules that emit operators of the ONNX standard only."""

CONTRIB: dict[type[Op], list[Rule]] = {}
"""Rules that may emit onnxruntime's own operators (domain com.microsoft)."""


class Decline(Exception):
    """Raised by a rule that does not apply to this op after all."""


def rule(*classes: type[Op], contrib: bool = False) -> Callable[[F], F]:
    """Registers a rule for op classes and their subclasses."""

    def register(fn: F) -> F:
        table = CONTRIB if contrib else STANDARD
        for cls in classes:
            table.setdefault(cls, []).insert(0, fn)
        return fn

    return register


def rules_for(cls: type[Op], *, opset_only: bool) -> Iterator[Rule]:
    """The rules that may lower ops of a class, in the order in which they are asked."""
    for table in (STANDARD,) if opset_only else (CONTRIB, STANDARD):
        for base in cls.__mro__:
            yield from table.get(base, ())
