"""Normalisations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.ir.axes import AxisMap
from ingot.ir.op import Op, attr
from ingot.ir.types import TensorType
from ingot.ir.value import Value

if TYPE_CHECKING:
    from ingot.ir.module import Builder


class RmsNorm(Op):
    """x / sqrt(mean(x^2) + eps) * w over the last axis (Zhang and Sennrich 2019), computed in at least float32."""

    name = "rms_norm"
    axes = "x[... d!], w[d] -> [... d!]"
    x: Value
    w: Value | None = None
    eps: float = 1e-6

    def infer(self) -> TensorType:
        self.need_floats(*self.operands)
        if not self.x.type.rank:
            raise self.fail("x must have an axis")
        if self.w is not None and self.w.type.dims != self.x.type.dims[-1:]:
            raise self.fail("w must have the last axis of x")
        return self.x.type

    def reference(self, x: Any, w: Any) -> Any:
        y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps)
        return y if w is None else y * w


class LayerNorm(Op):
    """(x - mean) / sqrt(var + eps) * w + b over the last axis (Ba et al. 2016), computed in at least float32."""

    name = "layer_norm"
    axes = "x[... d!], w[d], bias[d] -> [... d!]"
    x: Value
    w: Value | None = None
    bias: Value | None = None
    eps: float = 1e-5

    def infer(self) -> TensorType:
        self.need_floats(*self.operands)
        if not self.x.type.rank:
            raise self.fail("x must have an axis")
        for value in (self.w, self.bias):
            if value is not None and value.type.dims != self.x.type.dims[-1:]:
                raise self.fail("w and bias must have the last axis of x")
        return self.x.type

    def reference(self, x: Any, w: Any, bias: Any) -> Any:
        y = x - np.mean(x, axis=-1, keepdims=True)
        y = y / np.sqrt(np.mean(y * y, axis=-1, keepdims=True) + self.eps)
        y = y if w is None else y * w
        return y if bias is None else y + bias


class SkipRmsNorm(Op):
    """A residual sum and its RMS norm: (rms_norm(x + skip, w), x + skip)."""

    name = "skip_rms_norm"
    axes = "x[... d!], skip[... d], w[d] -> [... d!], [... d]"
    x: Value
    skip: Value
    w: Value | None = None
    eps: float = 1e-6

    def infer(self) -> tuple[TensorType, ...]:
        if self.x.type != self.skip.type:
            raise self.fail("x and skip must have one type")
        return RmsNorm(self.x, self.w, self.eps).result.type, self.x.type

    def reference(self, x: Any, skip: Any, w: Any) -> Any:
        total = x + skip
        return RmsNorm.reference(self, total, w), total  # type: ignore[arg-type]

    def decompose(self, b: Builder) -> tuple[Value, ...]:
        from ingot.ir.ops.pointwise import Add

        total = b(Add(self.x, self.skip))
        return b(RmsNorm(total, self.w, self.eps)), total


class SkipLayerNorm(Op):
    """A residual sum and its layer norm: (layer_norm(x + skip, w, bias), x + skip)."""

    name = "skip_layer_norm"
    axes = "x[... d!], skip[... d], w[d], bias[d] -> [... d!], [... d]"
    x: Value
    skip: Value
    w: Value | None = None
    bias: Value | None = None
    eps: float = 1e-5

    def infer(self) -> tuple[TensorType, ...]:
        if self.x.type != self.skip.type:
            raise self.fail("x and skip must have one type")
        return LayerNorm(self.x, self.w, self.bias, self.eps).result.type, self.x.type

    def reference(self, x: Any, skip: Any, w: Any, bias: Any) -> Any:
        total = x + skip
        return LayerNorm.reference(self, total, w, bias), total  # type: ignore[arg-type]

    def decompose(self, b: Builder) -> tuple[Value, ...]:
        from ingot.ir.ops.pointwise import Add

        total = b(Add(self.x, self.skip))
        return b(LayerNorm(total, self.w, self.bias, self.eps)), total


Norm = RmsNorm | LayerNorm | SkipRmsNorm | SkipLayerNorm
"""The norms over the last axis; the normed value is the first result."""


class GroupNorm(Op):
    """Layer norm over groups of channels: x [n, c, ...], w and bias [c] (Wu and He 2018)."""

    name = "group_norm"
    x: Value
    w: Value | None = None
    bias: Value | None = None
    groups: int = attr(kw_only=True)
    eps: float = 1e-5

    def infer(self) -> TensorType:
        self.need_floats(*self.operands)
        if self.x.type.rank < 2:
            raise self.fail("x must be [n, c, ...]")
        channels = self.x.type.dims[1]
        if not isinstance(channels, int) or self.groups < 1 or channels % self.groups:
            raise self.fail(f"{channels} channels do not make {self.groups} groups")
        if any(v is not None and v.type.dims != (channels,) for v in (self.w, self.bias)):
            raise self.fail("w and bias must be [channels]")
        return self.x.type

    def reference(self, x: Any, w: Any, bias: Any) -> Any:
        flat = x.reshape(x.shape[0], self.groups, -1)
        flat = flat - flat.mean(-1, keepdims=True)
        y = (flat / np.sqrt((flat * flat).mean(-1, keepdims=True) + self.eps)).reshape(x.shape)
        shape = (-1,) + (1,) * (x.ndim - 2)
        y = y if w is None else y * w.reshape(shape)
        return y if bias is None else y + bias.reshape(shape)

    def axis_map(self) -> AxisMap:
        labels = tuple((f"a{i}",) for i in range(self.x.type.rank))
        extra = tuple((labels[1],) for v in (self.w, self.bias) if v is not None)
        return AxisMap((labels, *extra), (labels,), frozenset(ls[0] for ls in labels[1:]))


class BatchNorm(Op):
    """Inference batch norm: (x - mean) / sqrt(var + eps) * w + bias per channel; x [n, c, ...] (Ioffe and Szegedy 2015)."""

    name = "batch_norm"
    x: Value
    mean: Value
    var: Value
    w: Value | None = None
    bias: Value | None = None
    eps: float = 1e-5

    def infer(self) -> TensorType:
        self.need_floats(*self.operands)
        if self.x.type.rank < 2:
            raise self.fail("x must be [n, c, ...]")
        for _, value in self.operand_fields[1:]:
            if isinstance(value, Value) and value.type.dims != self.x.type.dims[1:2]:
                raise self.fail("statistics and parameters must be [channels]")
        return self.x.type

    def reference(self, x: Any, mean: Any, var: Any, w: Any, bias: Any) -> Any:
        shape = (-1,) + (1,) * (x.ndim - 2)
        y = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + self.eps)
        y = y if w is None else y * w.reshape(shape)
        return y if bias is None else y + bias.reshape(shape)

    def axis_map(self) -> AxisMap:
        labels = tuple((f"a{i}",) for i in range(self.x.type.rank))
        return AxisMap((labels,) + ((labels[1],),) * (len(self.operands) - 1), (labels,))

    def decompose(self, b: Builder) -> Value:
        from ingot.ir.ops.creation import Scalar
        from ingot.ir.ops.layout import Reshape
        from ingot.ir.ops.pointwise import Add, Cast, Mul, Rsqrt, Sub

        shape = (self.mean.type.dims[0],) + (1,) * (self.x.type.rank - 2)

        def channel(value: Value) -> Value:
            return b(Reshape(value, shape))

        factor = b(Rsqrt(b(Add(self.var, b(Scalar(self.eps, self.var.type.dtype))))))
        if self.w is not None:
            factor = b(Mul(factor, self.w))
        y = b(Mul(b(Sub(self.x, channel(self.mean))), channel(factor)))
        if self.bias is not None:
            y = b(Add(y, channel(self.bias)))
        return y if y.type.dtype == self.x.type.dtype else b(Cast(y, self.x.type.dtype))
