"""Composite ops written out in elementwise ops and reductions, computed in f32 at least.

These are not `Op.decompose`: other backends have kernels for norms and softmax, here they are made of parts, so that they
fuse with what stands before and behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ingot.backends.triton.term import widened
from ingot.ir.dims import Dim, product
from ingot.ir.module import Builder, Func
from ingot.ir.op import Op
from ingot.ir.ops.creation import Scalar, Size
from ingot.ir.ops.layout import Reshape
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RmsNorm, SkipLayerNorm, SkipRmsNorm
from ingot.ir.ops.pointwise import Add, Cast, Div, Exp, Log, Maximum, Mul, Rsqrt, Sub
from ingot.ir.ops.reduce import LogSoftmax, Max, Mean, Softmax, Sum, Variance
from ingot.ir.types import DType
from ingot.ir.value import Value


def expand(func: Func) -> None:
    """Replace every composite op of a func, in place."""
    for op in list(func.ops):
        how = EXPANSIONS.get(type(op))
        if how is None or (isinstance(op, Linear) and op.bias is None):
            continue
        built = how(op, Builder(func, before=op))
        for old, new in zip(op.results, built if isinstance(built, tuple) else (built,), strict=True):
            if new.op is not None:
                new.hint = old.hint
            func.replace(old, new)
        func.erase(op)


def _wide(b: Builder, x: Value) -> Value:
    return _cast(b, x, widened(x.type.dtype))


def _cast(b: Builder, x: Value, dtype: DType) -> Value:
    return x if x.type.dtype == dtype else b(Cast(x, dtype))


def _number(b: Builder, value: float, like: Value) -> Value:
    return b(Scalar(value, like.type.dtype))


def rms_norm(op: RmsNorm, b: Builder) -> Value:
    x = _wide(b, op.x)
    mean = b(Mean(b(Mul(x, x), "square"), (-1,), True), "mean")
    y = b(Mul(x, b(Rsqrt(b(Add(mean, _number(b, op.eps, mean)))), "scale")))
    return _scaled(b, y, op.w, None, op.x.type.dtype)


def layer_norm(op: LayerNorm, b: Builder) -> Value:
    return _scaled(b, _standard(b, _wide(b, op.x), op.eps), op.w, op.bias, op.x.type.dtype)


def _standard(b: Builder, x: Value, eps: float) -> Value:
    """x less its mean over the last axis, over its standard deviation."""
    away = b(Sub(x, b(Mean(x, (-1,), True), "mean")), "away")
    var = b(Mean(b(Mul(away, away), "square"), (-1,), True), "var")
    return b(Mul(away, b(Rsqrt(b(Add(var, _number(b, eps, var)))), "scale")))


def _scaled(b: Builder, y: Value, w: Value | None, bias: Value | None, dtype: DType) -> Value:
    if w is not None:
        y = b(Mul(y, _cast(b, w, y.type.dtype)))
    if bias is not None:
        y = b(Add(y, _cast(b, bias, y.type.dtype)))
    return _cast(b, y, dtype)


def group_norm(op: GroupNorm, b: Builder) -> Value:
    n, channels, *space = op.x.type.dims
    assert isinstance(channels, int)
    inner: Dim = channels // op.groups * product(space)
    flat = b(Reshape(_wide(b, op.x), (n, op.groups, inner)))
    y = b(Reshape(_standard(b, flat, op.eps), op.x.type.dims))
    shape = (channels, *(1 for _ in space))
    w, bias = (None if v is None else b(Reshape(v, shape)) for v in (op.w, op.bias))
    return _scaled(b, y, w, bias, op.x.type.dtype)


def softmax(op: Softmax, b: Builder) -> Value:
    x = _wide(b, op.x)
    e = b(Exp(b(Sub(x, b(Max(x, (op.axis,), True), "top")))), "e")
    return _cast(b, b(Div(e, b(Sum(e, (op.axis,), True), "total"))), op.x.type.dtype)


def log_softmax(op: LogSoftmax, b: Builder) -> Value:
    x = _wide(b, op.x)
    y = b(Sub(x, b(Max(x, (op.axis,), True), "top")), "below")
    return _cast(b, b(Sub(y, b(Log(b(Sum(b(Exp(y), "e"), (op.axis,), True), "total"))))), op.x.type.dtype)


def variance(op: Variance, b: Builder) -> Value:
    x = _wide(b, op.x)
    away = b(Sub(x, b(Mean(x, op.axis, True), "mean")), "away")
    total = b(Sum(b(Mul(away, away), "square"), op.axis, op.keep), "total")
    count = b(Cast(b(Size(product([x.type.dims[a] for a in op.axis]))), x.type.dtype))
    over = b(Maximum(b(Sub(count, _number(b, op.correction, count))), _number(b, 0.0, count)))
    return _cast(b, b(Div(total, over)), op.x.type.dtype)


def _own(op: Op, b: Builder) -> Any:
    return op.decompose(b)


def _skip(op: Any, b: Builder, norm: Callable[[Any, Builder], Value]) -> tuple[Value, ...]:
    """The norm reads the sum before it is rounded to its stored type."""
    total = b(Add(_wide(b, op.x), _wide(b, op.skip)), "total")
    inner = RmsNorm(total, op.w, op.eps) if isinstance(op, SkipRmsNorm) else LayerNorm(total, op.w, op.bias, op.eps)
    return _cast(b, norm(inner, b), op.x.type.dtype), _cast(b, total, op.x.type.dtype)


def _linear(op: Linear, b: Builder) -> Value:
    """The product and its bias apart, so that the bias is the first op behind the product."""
    assert op.bias is not None
    y = b(Linear(op.x, op.w))
    return _cast(b, b(Add(_wide(b, y), _cast(b, op.bias, widened(y.type.dtype)))), op.result.type.dtype)


EXPANSIONS: dict[type[Op], Callable[[Any, Builder], Value | tuple[Value, ...]]] = {
    RmsNorm: rms_norm, LayerNorm: layer_norm, GroupNorm: group_norm, Softmax: softmax, LogSoftmax: log_softmax,
    Variance: variance, SkipRmsNorm: lambda op, b: _skip(op, b, rms_norm), SkipLayerNorm: lambda op, b: _skip(op, b, layer_norm),
    BatchNorm: _own, Linear: _linear,
}
