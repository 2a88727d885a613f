"""Tensors made from attributes and dims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.dtypes import held
from ingot.backends.onnx.registry import rule
from ingot.ir.dims import Dim
from ingot.ir.ops.creation import Arange, Full, Scalar, Size
from ingot.ir.types import i64

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering


@rule(Scalar)
def scalar(op: Scalar, lo: Lowering) -> str:
    return lo.const(op.value, held(op.dtype))


@rule(Full)
def full(op: Full, lo: Lowering) -> str:
    value = lo.const(op.value, held(op.dtype))
    return lo.emit("Expand", value, lo.shape(op.shape)) if op.shape else value


@rule(Arange)
def arange(op: Arange, lo: Lowering) -> str:
    dtype = held(op.dtype)
    if isinstance(op.count, int) and isinstance(op.start, int) and op.count <= 128:
        return lo.const((np.arange(op.count) * op.step + op.start).astype(dtype.numpy))
    return lo.cast(counted(lo, op.count, op.start, op.step), i64, dtype)


def counted(lo: Lowering, count: Dim, start: Dim = 0, step: int = 1) -> str:
    """start, start + step, ...: `count` numbers, i64[count]."""
    return lo.emit("Range", lo.scalar_dim(start), lo.scalar_dim(start + count * step), lo.const(step))


@rule(Size)
def size(op: Size, lo: Lowering) -> str:
    return lo.cast(lo.scalar_dim(op.dim), i64, held(op.dtype))
