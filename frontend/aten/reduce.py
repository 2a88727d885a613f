"""torch ops that combine positions of an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ingot.frontend.aten.layout import reshaped
from ingot.frontend.aten.registry import RULES, Graph, Rule, aten
from ingot.ir.dims import Dim
from ingot.ir.ops import reduce as r
from ingot.ir.ops.layout import TakeAlong
from ingot.ir.ops.pointwise import Cast, Mul, Sqrt
from ingot.ir.types import DType
from ingot.ir.value import Value

Axes = int | Sequence[int] | None


def _axes(x: Value, dim: Axes) -> tuple[int, ...]:
    if dim is None or (not isinstance(dim, int) and not dim):
        return tuple(range(x.type.rank))
    return tuple(axis % max(x.type.rank, 1) for axis in ([dim] if isinstance(dim, int) else dim))


def _reduction(cls: type[r.Reduce]) -> Rule:
    def rule(g: Graph, x: Value, dim: Axes = None, keepdim: bool = False, *, dtype: DType | None = None) -> Value:
        return g(cls(x if cls.dtype_out else g.cast(x, g.out.dtype), _axes(x, dim), keepdim))
    return rule


_REDUCTIONS: dict[str, type[r.Reduce]] = {
    "sum.default": r.Sum, "sum.dim_IntList": r.Sum, "mean.default": r.Mean, "mean.dim": r.Mean, "amax.default": r.Max,
    "amin.default": r.Min, "max.default": r.Max, "min.default": r.Min, "prod.default": r.Prod, "prod.dim_int": r.Prod,
    "any.default": r.Any_, "any.dim": r.Any_, "any.dims": r.Any_, "all.default": r.All_, "all.dim": r.All_,
}
RULES.update({f"aten.{name}": _reduction(cls) for name, cls in _REDUCTIONS.items()})


@aten("var.correction", "var.dim")
def var(g: Graph, x: Value, dim: Axes = None, correction: Any = None, keepdim: bool = False) -> Value:
    return g(r.Variance(x, _axes(x, dim), keepdim, 1.0 if correction is None else float(correction)))


@aten("std.correction", "std.dim")
def std(g: Graph, x: Value, dim: Axes = None, correction: Any = None, keepdim: bool = False) -> Value:
    return g(Sqrt(var(g, x, dim, correction, keepdim)))


@aten("linalg_vector_norm.default")
def vector_norm(g: Graph, x: Value, ord: float = 2, dim: Axes = None, keepdim: bool = False, **_: Any) -> Value:
    if ord != 2:
        raise g.unsupported(f"the {ord}-norm")
    x = g.cast(x, g.out.dtype)
    return g(Sqrt(g(r.Sum(g(Mul(x, x)), _axes(x, dim), keepdim))))


def _extreme(position: type[r.ArgReduce]) -> Rule:
    def rule(g: Graph, x: Value, dim: int, keepdim: bool = False) -> tuple[Value, Value]:
        dim %= x.type.rank
        index = g(position(x, dim, True))
        return tuple(reshaped(g, v, g.out.dims) for v in (g(TakeAlong(x, index, dim)), index))  # type: ignore[return-value]
    return rule


RULES["aten.max.dim"], RULES["aten.min.dim"] = _extreme(r.Argmax), _extreme(r.Argmin)


def _arg(position: type[r.ArgReduce]) -> Rule:
    def rule(g: Graph, x: Value, dim: int | None = None, keepdim: bool = False) -> Value:
        if dim is None:
            x, dim = reshaped(g, x, (x.type.size,)), 0
        return reshaped(g, g(position(x, dim % x.type.rank, keepdim)), g.out.dims)
    return rule


RULES["aten.argmax.default"], RULES["aten.argmin.default"] = _arg(r.Argmax), _arg(r.Argmin)


@aten("softmax.int", "_softmax.default", "special_softmax.int")
def softmax(g: Graph, x: Value, dim: int, dtype: DType | bool | None = None) -> Value:
    return g(r.Softmax(g.cast(x, g.out.dtype), dim % max(x.type.rank, 1)))


@aten("log_softmax.int", "_log_softmax.default")
def log_softmax(g: Graph, x: Value, dim: int, dtype: DType | bool | None = None) -> Value:
    return g(r.LogSoftmax(g.cast(x, g.out.dtype), dim % max(x.type.rank, 1)))


@aten("cumsum.default")
def cumsum(g: Graph, x: Value, dim: int, dtype: DType | None = None) -> Value:
    return g(r.Cumsum(g.cast(x, g.out.dtype), dim % x.type.rank))


@aten("topk.default")
def topk(g: Graph, x: Value, k: Dim, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Value, ...]:
    return g.add(r.TopK(x, k, dim % x.type.rank, largest)).results


@aten("sort.default", "sort.stable")
def sort(g: Graph, x: Value, *args: Any, stable: bool = False, dim: int = -1, descending: bool = False) -> tuple[Value, ...]:
    given = [a for a in args if a is not None]
    if given and isinstance(given[0], bool) and g.name.endswith("stable"):
        given = given[1:]
    dim = given[0] if given else dim
    descending = given[1] if len(given) > 1 else descending
    values, index = g.add(r.TopK(x, x.type.dims[dim], dim % x.type.rank, descending)).results
    return values, index


@aten("argsort.default", "argsort.stable")
def argsort(g: Graph, x: Value, dim: int = -1, descending: bool = False, stable: bool = False) -> Value:
    return g.add(r.TopK(x, x.type.dims[dim], dim % x.type.rank, descending)).results[1]


@aten("count_nonzero.dim_IntList")
def count_nonzero(g: Graph, x: Value, dim: Axes) -> Value:
    from ingot.ir.types import bool_

    return g(r.Sum(g(Cast(g.cast(x, bool_), g.out.dtype)), _axes(x, dim), False))
