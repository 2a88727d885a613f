"""Attention written out in products, a softmax and a mask made from positions."""

from __future__ import annotations

from ingot.ir.module import Builder
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.creation import Arange, Scalar
from ingot.ir.ops.layout import Concat, Expand, Reshape, Slice, Transpose
from ingot.ir.ops.matmul import MatMul
from ingot.ir.ops.pointwise import Add, And, Cast, Greater, GreaterEqual, Less, Mul, NotEqual, Sub, Tanh, Where
from ingot.ir.ops.reduce import Any_, Softmax
from ingot.ir.types import DType, f32, i64
from ingot.ir.value import Value

HIDDEN = -1e30
"""Score of a hidden key: finite, so that a row of nothing else has no NaN; its exponential is zero in every float type."""


def written_out(op: Attention, b: Builder) -> Value:
    """The result of `op` in simpler ops, computed in f32 at least."""
    dtype = op.q.type.dtype if op.q.type.dtype.bits >= 32 else f32
    q, k, v = (_cast(b, x, dtype) for x in (op.q, op.k, op.v))
    (batch, h, s, d), (_, g, t, e) = q.type.dims, v.type.dims
    group_rows = op.heads[0] // op.heads[1] * s
    scores = b(MatMul(b(Reshape(q, (batch, g, group_rows, d))), b(Transpose(k, (0, 1, 3, 2)))))
    scores = b(Mul(b(Reshape(scores, (batch, h, s, t))), b(Scalar(op.scale, dtype))))
    if op.softcap is not None:
        small = b(Mul(scores, b(Scalar(1 / op.softcap, dtype))))
        scores = b(Mul(b(Tanh(small)), b(Scalar(op.softcap, dtype))))
    if op.bias is not None:
        scores = b(Add(scores, _cast(b, op.bias, dtype)))
    seen = visible(op, b)
    if seen is not None:
        scores = b(Where(seen, scores, b(Scalar(HIDDEN, dtype))))
    if op.sinks is None:
        weights = b(Softmax(scores))
    else:
        sinks = b(Expand(b(Reshape(_cast(b, op.sinks, dtype), (1, h, 1, 1))), (batch, h, s, 1)))
        weights = b(Slice(b(Softmax(b(Concat((scores, sinks))))), 3, 0, t))
    y = b(Reshape(b(MatMul(b(Reshape(weights, (batch, g, group_rows, t))), v)), (batch, h, s, e)))
    if seen is not None and may_be_blind(op):
        y = b(Where(b(Any_(seen, axis=(3,), keep=True)), y, b(Scalar(0.0, dtype))))
    return _cast(b, y, op.q.type.dtype)


def may_be_blind(op: Attention) -> bool:
    """Whether a query may see no key at all: without a mask, position p sees key 0, or key p under a window."""
    return op.sinks is None and (op.mask is not None or (op.pos is not None and op.window is not None))


def visible(op: Attention, b: Builder) -> Value | None:
    """Which key each query sees, bool [b, 1, s, t] up to broadcasting; None when all."""
    s, t = op.q.type.dims[2], op.k.type.dims[2]
    parts: list[Op | Value] = []
    if op.causal or op.window is not None:
        if op.pos is None:
            at = b(Reshape(b(Arange(s)), (1, 1, s, 1)))
        else:
            at = b(Reshape(_cast(b, op.pos, i64), (op.pos.type.dims[0], 1, s, 1)))
        back = b(Sub(at, b(Arange(t))))
        if op.causal:
            parts.append(GreaterEqual(back, b(Scalar(0, i64))))
        if op.window is not None:
            parts.append(Less(back, b(Scalar(op.window, i64))))
            if not op.causal:
                parts.append(Greater(back, b(Scalar(-op.window, i64))))
    if op.mask is not None:
        keys = b(Reshape(op.mask, (op.mask.type.dims[0], 1, 1, t)))
        parts.append(keys if keys.type.dtype.kind == "bool" else NotEqual(keys, b(Scalar(0, keys.type.dtype))))
    seen: Value | None = None
    for part in parts:
        value = part if isinstance(part, Value) else b(part)
        seen = value if seen is None else b(And(seen, value))
    return seen


def _cast(b: Builder, value: Value, dtype: DType) -> Value:
    return value if value.type.dtype == dtype else b(Cast(value, dtype))
