"""Which function computes which op class.

A rule takes the op (its dims bound to integers) and one argument per operand field, as `Op.reference` does: a tensor,
None when absent, a tuple when variadic; it returns a tensor or a tuple of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ingot.ir.op import Op

Rule = Callable[..., Any]
F = TypeVar("F", bound=Rule)

RULES: dict[type[Op], Rule] = {}
NATIVE: set[type[Op]] = set()
"""Classes whose rules take f16 and bf16 as they are; for all others these are widened to f32 first."""


def rule(*classes: type[Op], native: bool = False) -> Callable[[F], F]:
    """Registers a function for op classes and their subclasses; native: see NATIVE."""

    def register(fn: F) -> F:
        for cls in classes:
            RULES[cls] = fn
            if native:
                NATIVE.add(cls)
        return fn

    return register


def find(cls: type[Op]) -> tuple[Rule, bool] | None:
    """The rule of the nearest class among `cls` and its bases, and whether it is native."""
    for base in cls.__mro__:
        if base in RULES:
            return RULES[base], base in NATIVE
    return None
