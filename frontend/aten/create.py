"""torch ops that make tensors from numbers and sizes."""

from __future__ import annotations

from typing import Any

from ingot.frontend.aten.registry import Graph, aten
from ingot.ir.dims import Dim, Expr
from ingot.ir.ops.creation import Arange, Full
from ingot.ir.ops.pointwise import Add, Mul
from ingot.ir.types import i64
from ingot.ir.value import Value


def filled(g: Graph, value: float | Dim) -> Value:
    """The result torch declares, filled with one value."""
    if not g.out.rank or isinstance(value, Expr):
        from ingot.ir.ops.layout import Expand

        scalar = g.cast(g.scalar(value, g.out.dtype), g.out.dtype)
        return g(Expand(scalar, g.out.dims)) if g.out.rank else scalar
    return g(Full(g.out.dims, float(value), g.out.dtype))


@aten("full.default", "full_like.default")
def full(g: Graph, _: Any, value: float | Dim, **layout: Any) -> Value:
    return filled(g, value)


@aten("new_full.default")
def new_full(g: Graph, _: Value, shape: Any, value: float | Dim, **layout: Any) -> Value:
    return filled(g, value)


@aten("scalar_tensor.default")
def scalar_tensor(g: Graph, value: float | Dim, **layout: Any) -> Value:
    return filled(g, value)


@aten("fill.Scalar")
def fill(g: Graph, _: Value, value: float | Dim) -> Value:
    return filled(g, value)


@aten("zeros.default", "zeros_like.default", "new_zeros.default", "empty.memory_format", "new_empty.default",
      "empty_like.default", "empty_permuted.default")
def zeros(g: Graph, *args: Any, **layout: Any) -> Value:
    return filled(g, 0.0)


@aten("ones.default", "ones_like.default", "new_ones.default")
def ones(g: Graph, *args: Any, **layout: Any) -> Value:
    return filled(g, 1.0)


@aten("arange.default")
def arange(g: Graph, end: float | Dim, **layout: Any) -> Value:
    return arange_step(g, 0, end, 1)


@aten("arange.start")
def arange_start(g: Graph, start: float | Dim, end: float | Dim, **layout: Any) -> Value:
    return arange_step(g, start, end, 1)


@aten("arange.start_step")
def arange_step(g: Graph, start: float | Dim, end: float | Dim, step: float | Dim = 1, **layout: Any) -> Value:
    (count,) = g.out.dims
    if not isinstance(start, float) and isinstance(step, int):
        return g(Arange(count, start, step, g.out.dtype))
    steps = g.cast(g(Arange(count, 0, 1, i64)), g.out.dtype)
    return g(Add(g(Mul(steps, g.scalar(step, g.out.dtype))), g.scalar(start, g.out.dtype)))


@aten("linspace.default")
def linspace(g: Graph, start: float, end: float, steps: int, **layout: Any) -> Value:
    return arange_step(g, float(start), end, (end - start) / max(steps - 1, 1))
