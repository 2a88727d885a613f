"""Ops that move elements, create tensors or reduce axes."""

from __future__ import annotations

from ingot.ir.ops.creation import Arange, Full, Scalar, Size
from ingot.ir.ops.layout import Concat, Expand, Flip, Pad, Pick, Reshape, Slice, Split, Take, TakeAlong, Transpose, Triangle
from ingot.ir.ops.reduce import (
    All_,
    Any_,
    Argmax,
    Argmin,
    Cumsum,
    LogSoftmax,
    Max,
    Mean,
    Min,
    Prod,
    Softmax,
    Sum,
    TopK,
    Variance,
)
from ingot.ir.types import bf16, bool_, f32, f64, i32, i64
from tests.backends.op_case import B, S, T, between, bits, case, results

case(Reshape, "split and merge", lambda c: c(Reshape(c.x(B, S, 6), (B * S, 2, 3))))
case(Reshape, "two symbols kept", lambda c: c(Reshape(c.x(B, S, 6), (B, S, 2, 3))))
case(Reshape, "symbols moved", lambda c: c(Reshape(c.x(B, S, T), (S, B, T))))
case(Reshape, "to a scalar", lambda c: c(Reshape(c.x(1, 1), ())))
case(Reshape, "ones put in", lambda c: c(Reshape(c.x(B, S), (B, 1, S, 1))))
case(Transpose, "heads", lambda c: c(Transpose(c.x(B, S, 2, 3), (0, 2, 1, 3))))
case(Transpose, "rotation", lambda c: c(Transpose(c.x(2, 3, S, dtype=i64, draw=between(0, 9)), (2, 0, 1))))
case(Transpose, "bool", lambda c: c(Transpose(c.x(B, S, dtype=bool_, draw=bits), (1, 0))))
case(Expand, "rows", lambda c: (c(Expand(c.x(1, S), (B, S))), c.x(B)))
case(Expand, "new axis", lambda c: (c(Expand(c.x(1, 3), (B, T, 3))), c.x(B, T)))
case(Expand, "bool", lambda c: c(Expand(c.x(B, 1, dtype=bool_, draw=bits), (B, 4))))
case(Slice, "middle", lambda c: c(Slice(c.x(B, 9), 1, 2, 5)))
case(Slice, "step", lambda c: c(Slice(c.x(9, S), 0, 1, 8, step=3)))
case(Slice, "symbolic", lambda c: (c(Slice(c.x(B, 4 * S), -1, S, 3 * S)), c.x(S)))
case(Slice, "bf16", lambda c: c(Slice(c.x(B, 9, dtype=bf16), -1, 0, 1)))
case(Concat, "last", lambda c: c(Concat((c.x(B, 2), c.x(B, S), c.x(B, 1)))))
case(Concat, "first", lambda c: c(Concat((c.x(S, 2), c.x(T, 2)), axis=0)))
case(Concat, "one", lambda c: c(Concat((c.x(B, 2),))))
case(Split, "last", lambda c: results(Split(c.x(B, 6), (1, 2, 3)), c))
case(Split, "symbolic", lambda c: (*results(Split(c.x(S + T, 2), (S, T), axis=0), c), c.x(S, T)))
case(Split, "one", lambda c: results(Split(c.x(B, 6), (6,)), c))
case(Pad, "constant", lambda c: c(Pad(c.x(B, 3), (0, 1, 2, 0), value=-1.5)))
case(Pad, "symbolic", lambda c: (c(Pad(c.x(B, S), (0, 0, T, 1))), c.x(T)))
case(Pad, "i64", lambda c: c(Pad(c.x(B, 3, dtype=i64, draw=between(0, 9)), (0, 0, 1, 1), value=7.0)))
for _mode in ("reflect", "replicate", "circular"):
    case(Pad, _mode, lambda c, m=_mode: c(Pad(c.x(B, 2, 5, 4), (0, 0, 0, 0, 2, 1, 0, 3), mode=m)))
for _dtype in (f32, bf16, i64):
    case(Take, str(_dtype),
         lambda c, d=_dtype: c(Take(c.x(B, 6, dtype=d, draw=between(0, 9)), c.x(S, 2, dtype=i64, draw=between(0, 5)), axis=1)))
case(Take, "scalar i32", lambda c: c(Take(c.x(B, 6), c.x(dtype=i32, draw=between(0, 5)), axis=-1)))
case(Take, "negative", lambda c: c(Take(c.x(6, 3), c.x(S, dtype=i64, draw=between(-6, -1)), axis=0)))
case(TakeAlong, "last", lambda c: c(TakeAlong(c.x(B, 6), c.x(B, S, dtype=i64, draw=between(0, 5)))))
case(TakeAlong, "smaller index", lambda c: c(TakeAlong(c.x(4, 6), c.x(2, 3, dtype=i64, draw=between(0, 3)), axis=0)))
case(Pick, "rows of tokens", lambda c: c(Pick(c.x(B, S, 6), c.x(B, T, dtype=i64, draw=between(0, 0)))))
case(Pick, "fixed axis", lambda c: c(Pick(c.x(B, 9, 6, dtype=bf16), c.x(B, S, dtype=i64, draw=between(0, 8)))))
case(Pick, "last axis",
     lambda c: c(Pick(c.x(B, S, 6, dtype=i64, draw=between(0, 99)), c.x(B, 3, dtype=i32, draw=between(0, 5)), axis=2)))
case(Pick, "last of four axes", lambda c: c(Pick(c.x(B, 2, S, 6), c.x(B, 3, dtype=i64, draw=between(0, 5)), axis=3)))
case(Pick, "one row of x", lambda c: c(Pick(c.x(1, 5, 2), c.x(B, 4, dtype=i64, draw=between(0, 4)))))
case(Flip, "one", lambda c: c(Flip(c.x(B, S), (1,))))
case(Flip, "two", lambda c: c(Flip(c.x(B, S, 3), (0, -1))))
for _upper in (False, True):
    case(Triangle, f"upper {_upper}", lambda c, u=_upper: c(Triangle(c.x(B, S, T), diagonal=1, upper=u)))
case(Triangle, "bool", lambda c: c(Triangle(c.x(4, 4, dtype=bool_, draw=bits), diagonal=-1)))
case(Triangle, "i32", lambda c: c(Triangle(c.x(4, 4, dtype=i32, draw=between(1, 9)))))

case(Scalar, "types", lambda c: tuple(c(Scalar(1.5 if d.is_float else 1.0, d)) for d in (f32, f64, bf16, i64, bool_)))
case(Full, "fixed", lambda c: c(Full((2, 3), -1.5)))
case(Full, "symbolic", lambda c: (c(Full((B, S), 2.0, i64)), c.x(B, S)))
case(Arange, "fixed", lambda c: c(Arange(5, 2, 3)))
case(Arange, "symbolic", lambda c: (c(Arange(S, T, 2)), c(Arange(B, dtype=f32)), c.x(B, S, T)))
case(Size, "expression", lambda c: (c(Size(2 * S + T // 2 - B)), c(Size(S % 3, i32)), c(Size(B * S * T + 1)), c.x(B, S, T)))

for _cls in (Sum, Mean, Max, Min, Prod):
    case(_cls, "last", lambda c, k=_cls: c(k(c.x(B, S, 6), axis=(-1,))))
    case(_cls, "several kept", lambda c, k=_cls: c(k(c.x(B, S, 6), axis=(0, 2), keep=True)))
    case(_cls, "bf16", lambda c, k=_cls: c(k(c.x(B, 6, dtype=bf16), axis=(1,))))
    case(_cls, "none", lambda c, k=_cls: c(k(c.x(B, 6), axis=())))
for _cls in (Sum, Max, Min, Prod):
    case(_cls, "i64", lambda c, k=_cls: c(k(c.x(B, 6, dtype=i64, draw=between(-3, 3)), axis=(0,))))
for _cls in (Any_, All_):
    case(_cls, "bool", lambda c, k=_cls: c(k(c.x(B, S, 3, dtype=bool_, draw=bits), axis=(1,), keep=True)))
    case(_cls, "f32", lambda c, k=_cls: c(k(c.x(B, 2, draw=between(0, 1)), axis=(-1,))))
for _correction in (0.0, 1.0):
    case(Variance, f"correction {_correction}", lambda c, n=_correction: c(Variance(c.x(B, 6, S), axis=(1,), correction=n)))
case(Variance, "symbolic kept", lambda c: c(Variance(c.x(B, S, 3), axis=(1, 2), keep=True)))
for _cls in (Argmax, Argmin):
    case(_cls, "first of equals", lambda c, k=_cls: c(k(c.x(B, 9, draw=between(0, 2)))))
    case(_cls, "kept", lambda c, k=_cls: c(k(c.x(B, S, 3), axis=1, keep=True)))
    case(_cls, "i64", lambda c, k=_cls: c(k(c.x(B, 9, dtype=i64, draw=between(0, 2)), axis=0)))
for _cls in (Softmax, LogSoftmax):
    case(_cls, "last", lambda c, k=_cls: c(k(c.x(B, S, 6, draw=lambda r, s: r.normal(size=s) * 30))))
    case(_cls, "middle", lambda c, k=_cls: c(k(c.x(B, S, 6), axis=1)))
    case(_cls, "bf16", lambda c, k=_cls: c(k(c.x(B, 6, dtype=bf16))))
case(Cumsum, "f32", lambda c: c(Cumsum(c.x(B, S, 3), axis=1)))
case(Cumsum, "i64", lambda c: c(Cumsum(c.x(B, S, dtype=i64, draw=between(0, 3)))))
case(Cumsum, "bool", lambda c: c(Cumsum(c.x(B, S, dtype=bool_, draw=bits))))
case(TopK, "largest", lambda c: results(TopK(c.x(B, 9), 4), c))
case(TopK, "smallest with equals", lambda c: results(TopK(c.x(9, S, draw=between(0, 3)), 3, axis=0, largest=False), c))
case(TopK, "largest with equals", lambda c: results(TopK(c.x(B, 9, draw=between(0, 3)), 3), c))
