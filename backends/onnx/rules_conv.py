"""Convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingot.backends.onnx.dtypes import held
from ingot.backends.onnx.registry import rule
from ingot.ir.ops.conv import AvgPool, Conv, MaxPool, Pool
from ingot.ir.types import DType

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering


@rule(Conv)
def conv(op: Conv, lo: Lowering) -> str:
    dtype = held(op.result.type.dtype)
    x, w, bias = (None if v is None else lo.cast(lo(v), held(v.type.dtype), dtype) for v in (op.x, op.w, op.bias))
    return lo.emit("Conv", x, w, bias, kernel_shape=op.w.type.shape[2:], strides=op.stride, dilations=op.dilation,
                   pads=op.padding, group=op.groups)


@rule(MaxPool)
def max_pool(op: MaxPool, lo: Lowering) -> str:
    x = padded(lo, lo(op.x), _pads(op), -math.inf, held(op.x.type.dtype))
    return lo.emit("MaxPool", x, kernel_shape=op.kernel, strides=op.stride)


@rule(AvgPool)
def avg_pool(op: AvgPool, lo: Lowering) -> str:
    dtype = held(op.x.type.dtype)
    x = lo(op.x)
    y = lo.emit("AveragePool", padded(lo, x, _pads(op), 0.0, dtype), kernel_shape=op.kernel, strides=op.stride)
    if op.count_padding or not any(_pads(op)):
        return y
    ones = padded(lo, lo.emit("Expand", lo.const(1.0, dtype), lo.shape((1, 1, *op.x.type.dims[2:]))), _pads(op), 0.0, dtype)
    return lo.emit("Div", y, lo.emit("AveragePool", ones, kernel_shape=op.kernel, strides=op.stride))


def _pads(op: Pool) -> tuple[int, ...]:
    """Padding (before..., after...); rounding the number of places up is padding by one place less one element."""
    n = len(op.kernel)
    return op.padding[:n] + tuple(p + (s - 1 if op.ceil else 0) for p, s in zip(op.padding[n:], op.stride))


def padded(lo: Lowering, x: str, pads: Sequence[int], fill: float, dtype: DType) -> str:
    """Padding as a node of its own: pooling operators refuse a padding as large as their kernel."""
    n = len(pads) // 2
    return lo.emit("Pad", x, lo.const([0, 0, *pads[:n], 0, 0, *pads[n:]]), lo.const(fill, dtype)) if any(pads) else x
