"""Reductions, scans, softmax and sorting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingot.backends.onnx.dtypes import held, worked
from ingot.backends.onnx.registry import rule
from ingot.backends.onnx.term import Term
from ingot.ir.dims import product
from ingot.ir.ops.reduce import (
    All_,
    Any_,
    Argmax,
    ArgReduce,
    Cumsum,
    LogSoftmax,
    Max,
    Mean,
    Min,
    Prod,
    Reduce,
    Softmax,
    Sum,
    TopK,
    Variance,
)
from ingot.ir.types import bool_, i32, i64
from ingot.ir.value import Value

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering

_REDUCE: dict[type[Reduce], str] = {Sum: "ReduceSum", Mean: "ReduceMean", Max: "ReduceMax", Min: "ReduceMin", Prod: "ReduceProd",
                                    Any_: "ReduceMax", All_: "ReduceMin"}


def work(lo: Lowering, value: Value) -> Term:
    """A value in the type in which arithmetic on it is done."""
    return Term(lo, lo(value), held(value.type.dtype)).cast(worked(value.type.dtype))


@rule(Sum, Mean, Max, Min, Prod, Any_, All_)
def reduce(op: Reduce, lo: Lowering) -> str:
    x = work(lo, op.x)
    if isinstance(op, Any_ | All_):
        x = Term(lo, lo(op.x), held(op.x.type.dtype)).cast(bool_).cast(i32)
    if op.axis:
        x = x.apply(_REDUCE[type(op)], Term(lo, axes(lo, op), i64), keepdims=int(op.keep))
    return x.cast(held(op.result.type.dtype)).name


def axes(lo: Lowering, op: Reduce) -> str:
    return lo.const(sorted(a % op.x.type.rank for a in op.axis))


@rule(Variance)
def variance(op: Variance, lo: Lowering) -> str:
    x = work(lo, op.x)
    where = Term(lo, axes(lo, op), i64)
    off = x - x.apply("ReduceMean", where, keepdims=1)
    total = (off * off).apply("ReduceSum", where, keepdims=int(op.keep))
    size = product([op.x.type.dims[a] for a in op.axis])
    count = Term(lo, lo.scalar_dim(size), i64).cast(x.dtype)
    return (total / (count - op.correction)).cast(held(op.result.type.dtype)).name


@rule(ArgReduce)
def arg_reduce(op: ArgReduce, lo: Lowering) -> str:
    name = "ArgMax" if isinstance(op, Argmax) else "ArgMin"
    x = work(lo, op.x)
    return x.apply(name, axis=op.axis % op.x.type.rank, keepdims=int(op.keep), dtype=i64).name


@rule(Softmax)
def softmax(op: Softmax, lo: Lowering) -> str:
    return lo.emit("Softmax", lo(op.x), axis=op.axis % op.x.type.rank)


@rule(LogSoftmax)
def log_softmax(op: LogSoftmax, lo: Lowering) -> str:
    return lo.emit("LogSoftmax", lo(op.x), axis=op.axis % op.x.type.rank)


@rule(Cumsum)
def cumsum(op: Cumsum, lo: Lowering) -> str:
    dtype = held(op.result.type.dtype)
    x = Term(lo, lo(op.x), held(op.x.type.dtype)).cast(dtype)
    return lo.emit("CumSum", x.name, lo.const(op.axis % op.x.type.rank))


@rule(TopK)
def topk(op: TopK, lo: Lowering) -> tuple[str, ...]:
    x = work(lo, op.x)
    values, index = lo.emit_many("TopK", x.name, lo.dim(op.k), n_out=2, axis=op.axis % op.x.type.rank,
                                 largest=int(op.largest), sorted=1)
    return Term(lo, values, x.dtype).cast(held(op.x.type.dtype)).name, index
