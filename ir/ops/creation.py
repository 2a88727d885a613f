"""Tensors made from nothing but attributes and dims."""

from __future__ import annotations

from typing import Any

import numpy as np

from ingot.ir.axes import AxisMap
from ingot.ir.dims import Dim
from ingot.ir.op import Op
from ingot.ir.types import DType, TensorType, f32, i64


def _wide(dtype: DType) -> np.dtype:
    """Floats are made as float64; the interpreter rounds them."""
    return np.dtype(np.float64) if dtype.is_float else dtype.numpy


class Creation(Op):
    """Base: no operands, so no axis comes from anywhere."""

    def axis_map(self) -> AxisMap:
        return AxisMap((), (tuple((f"n{i}",) for i in range(self.result.type.rank)),))


class Scalar(Creation):
    """A constant of rank 0."""

    name = "scalar"
    value: int | float
    dtype: DType = f32

    def infer(self) -> TensorType:
        return TensorType(self.dtype, ())

    def reference(self) -> Any:
        return np.asarray(self.value, _wide(self.dtype))


class Full(Creation):
    """A tensor filled with one value."""

    name = "full"
    shape: tuple[Dim, ...]
    value: int | float
    dtype: DType = f32

    def infer(self) -> TensorType:
        if any(isinstance(d, int) and d < 0 for d in self.shape):
            raise self.fail(f"no shape {list(self.shape)}")
        return TensorType(self.dtype, self.shape)

    def reference(self) -> Any:
        shape: Any = self.shape
        return np.full(shape, self.value, _wide(self.dtype))


class Arange(Creation):
    """start, start + step, ... : `count` numbers."""

    name = "arange"
    count: Dim
    start: Dim = 0
    step: int = 1
    dtype: DType = i64

    def infer(self) -> TensorType:
        if isinstance(self.count, int) and self.count < 0:
            raise self.fail(f"a count of {self.count}")
        return TensorType(self.dtype, (self.count,))

    def reference(self) -> Any:
        steps: Any = np.arange(self.count)  # type: ignore[arg-type]
        return (steps * self.step + self.start).astype(_wide(self.dtype))


class Size(Creation):
    """The value of a dim, as a rank-0 integer."""

    name = "size"
    dim: Dim
    dtype: DType = i64

    def infer(self) -> TensorType:
        return TensorType(self.dtype, ())

    def reference(self) -> Any:
        return np.asarray(self.dim, _wide(self.dtype))
