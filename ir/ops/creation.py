"""Tensors made from nothing but attributes and dims."""

from __future__ import annotations

from typing import Any

import numpy as np

from ingot.ir.axes import AxisMap
from ingot.ir.dims import Dim
from ingot.ir.op import Op
from ingot.ir.types import DType, TensorType, f32, i64


class Creation(Op):
    """Base: no operands, so no axis comes from anywhere."""

    def axis_map(self) -> AxisMap:
        return AxisMap((), (tuple((f"n{i}",) for i in range(self.result.type.rank)),))


class Scalar(Creation):
    """A constant of rank 0."""

    name = "scalar"
    value: float
    dtype: DType = f32

    def infer(self) -> TensorType:
        return TensorType(self.dtype, ())

    def reference(self) -> Any:
        return np.asarray(self.value, np.float64 if self.dtype.is_float else self.dtype.numpy)


class Full(Creation):
    """A tensor filled with one value."""

    name = "full"
    shape: tuple[Dim, ...]
    value: float
    dtype: DType = f32

    def infer(self) -> TensorType:
        return TensorType(self.dtype, self.shape)

    def reference(self) -> Any:
        return np.full(self.shape, self.value, np.float64 if self.dtype.is_float else self.dtype.numpy)


class Arange(Creation):
    """start, start + step, ... : `count` numbers."""

    name = "arange"
    count: Dim
    start: Dim = 0
    step: int = 1
    dtype: DType = i64

    def infer(self) -> TensorType:
        return TensorType(self.dtype, (self.count,))

    def reference(self) -> Any:
        return (np.arange(self.count) * self.step + self.start).astype(self.dtype.numpy)  # type: ignore[arg-type]


class Size(Creation):
    """The value of a dim, as a rank-0 integer."""

    name = "size"
    dim: Dim
    dtype: DType = i64

    def infer(self) -> TensorType:
        return TensorType(self.dtype, ())

    def reference(self) -> Any:
        return np.asarray(self.dim, self.dtype.numpy)
