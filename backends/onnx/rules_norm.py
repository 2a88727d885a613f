"""Normalisations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.dtypes import held
from ingot.backends.onnx.registry import rule
from ingot.backends.onnx.rules_layout import reshaped
from ingot.ir.dims import Dim, product
from ingot.ir.op import Op
from ingot.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RmsNorm
from ingot.ir.types import DType
from ingot.ir.value import Value

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering


def ones(lo: Lowering, size: Dim, dtype: DType, value: float = 1.0) -> str:
    """[size] filled with `value`."""
    if isinstance(size, int):
        return lo.const(np.full(size, value), dtype)
    return lo.emit("Expand", lo.const(value, dtype), lo.dim(size))


def factor(lo: Lowering, op: Op, w: Value | None, size: Dim) -> str:
    """A scale operand in the element type of the op's result, ones when absent."""
    dtype = held(op.results[0].type.dtype)
    return ones(lo, size, dtype) if w is None else lo.cast(lo(w), held(w.type.dtype), dtype)


@rule(RmsNorm)
def rms_norm(op: RmsNorm, lo: Lowering) -> str:
    return lo.emit("RMSNormalization", lo(op.x), factor(lo, op, op.w, op.x.type.dims[-1]), axis=-1, epsilon=op.eps)


@rule(LayerNorm)
def layer_norm(op: LayerNorm, lo: Lowering) -> str:
    size = op.x.type.dims[-1]
    bias = None if op.bias is None else factor(lo, op, op.bias, size)
    return lo.emit("LayerNormalization", lo(op.x), factor(lo, op, op.w, size), bias, axis=-1, epsilon=op.eps)


@rule(GroupNorm)
def group_norm(op: GroupNorm, lo: Lowering) -> str:
    dims = op.x.type.dims
    grouped: tuple[Dim, ...] = (dims[0], op.groups, product(dims[1:]) // op.groups)
    dtype = held(op.x.type.dtype)
    y = lo.emit("InstanceNormalization", reshaped(lo, lo(op.x), dims, grouped), ones(lo, op.groups, dtype),
                ones(lo, op.groups, dtype, 0.0), epsilon=op.eps)
    y = reshaped(lo, y, grouped, dims)
    for node, value in (("Mul", op.w), ("Add", op.bias)):
        if value is not None:
            spread = (dims[1],) + (1,) * (len(dims) - 2)
            y = lo.emit(node, y, reshaped(lo, factor(lo, op, value, dims[1]), (dims[1],), spread))
    return y


@rule(BatchNorm)
def batch_norm(op: BatchNorm, lo: Lowering) -> str:
    channels, dtype = op.x.type.dims[1], held(op.x.type.dtype)
    bias = ones(lo, channels, dtype, 0.0) if op.bias is None else factor(lo, op, op.bias, channels)
    return lo.emit("BatchNormalization", lo(op.x), factor(lo, op, op.w, channels), bias, factor(lo, op, op.mean, channels),
                   factor(lo, op, op.var, channels), epsilon=op.eps)
