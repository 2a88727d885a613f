"""Reductions, scans, softmax and sorting along axes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

from ingot.ir.axes import Axis, AxisMap
from ingot.ir.dims import Dim
from ingot.ir.op import Op
from ingot.ir.ops.layout import axis_of
from ingot.ir.types import DType, TensorType, bool_, i64
from ingot.ir.value import Value


def _labels(rank: int) -> tuple[Axis, ...]:
    return tuple((f"a{i}",) for i in range(rank))


class Reduce(Op):
    """Base: `axis` (several) removed, or kept with size one when `keep`; the element type stays (cast bools first)."""

    fn: ClassVar[Any] = None
    floating: ClassVar[bool] = False
    numeric: ClassVar[bool] = False
    dtype_out: ClassVar[DType | None] = None
    x: Value
    axis: tuple[int, ...]
    keep: bool = False

    def infer(self) -> TensorType:
        gone = {axis_of(self, a, self.x.type.rank) for a in self.axis}
        if len(gone) < len(self.axis):
            raise self.fail("an axis is named twice")
        if self.floating:
            self.need_floats(self.x)
        if self.numeric and self.x.type.dtype == bool_:
            raise self.fail("takes numbers; cast first")
        dims = [1 if i in gone else d for i, d in enumerate(self.x.type.dims) if self.keep or i not in gone]
        return TensorType(self.dtype_out or self.x.type.dtype, tuple(dims))

    def reference(self, x: Any) -> Any:
        return type(self).fn(x, axis=self.axis, keepdims=self.keep)

    def axis_map(self) -> AxisMap:
        axes = _labels(self.x.type.rank)
        gone = {a % len(axes) for a in self.axis}
        out = tuple(() if i in gone else ls for i, ls in enumerate(axes) if self.keep or i not in gone)
        return AxisMap((axes,), (out,), frozenset(axes[i][0] for i in gone))


class Sum(Reduce):
    name = "sum"
    numeric = True
    fn = np.sum


class Mean(Reduce):
    name = "mean"
    floating = True
    fn = np.mean


class Max(Reduce):
    name = "max"
    fn = np.max


class Min(Reduce):
    name = "min"
    fn = np.min


class Prod(Reduce):
    name = "prod"
    numeric = True
    fn = np.prod


class Any_(Reduce):
    name = "any"
    fn = np.any
    dtype_out = bool_


class All_(Reduce):
    name = "all"
    fn = np.all
    dtype_out = bool_


class Variance(Reduce):
    """Mean squared distance from the mean, over n - correction."""

    name = "var"
    floating = True
    correction: float = 1.0

    def reference(self, x: Any) -> Any:
        count = math.prod(x.shape[a] for a in self.axis)
        squares = np.square(x - np.mean(x, axis=self.axis, keepdims=True))
        return np.sum(squares, axis=self.axis, keepdims=self.keep) / np.asarray(max(count - self.correction, 0.0), x.dtype)


class ArgReduce(Op):
    """Base: index of the extreme element along one axis, the first of equals."""

    fn: ClassVar[Any] = None
    x: Value
    axis: int = -1
    keep: bool = False

    def infer(self) -> TensorType:
        axis = axis_of(self, self.axis, self.x.type.rank)
        dims = [1 if i == axis else d for i, d in enumerate(self.x.type.dims) if self.keep or i != axis]
        return TensorType(i64, tuple(dims))

    def reference(self, x: Any) -> Any:
        return type(self).fn(x, axis=self.axis, keepdims=self.keep)

    def axis_map(self) -> AxisMap:
        axes = _labels(self.x.type.rank)
        gone = self.axis % len(axes)
        out = tuple(() if i == gone else ls for i, ls in enumerate(axes) if self.keep or i != gone)
        return AxisMap((axes,), (out,), frozenset(axes[gone]))


class Argmax(ArgReduce):
    name = "argmax"
    fn = np.argmax


class Argmin(ArgReduce):
    name = "argmin"
    fn = np.argmin


class Along(Op):
    """Base: the shape stays, positions of one axis are mixed."""

    floating: ClassVar[bool] = False
    x: Value
    axis: int = -1

    def infer(self) -> TensorType:
        axis_of(self, self.axis, self.x.type.rank)
        if self.floating:
            self.need_floats(self.x)
        return self.x.type

    def axis_map(self) -> AxisMap:
        axes = _labels(self.x.type.rank)
        return AxisMap((axes,), (axes,), frozenset(axes[self.axis % len(axes)]))


class Softmax(Along):
    """exp(x) / sum(exp(x)) along `axis`; a row that is -inf throughout gives NaN."""

    name = "softmax"
    floating = True

    def reference(self, x: Any) -> Any:
        e = np.exp(x - np.max(x, axis=self.axis, keepdims=True))
        return e / np.sum(e, axis=self.axis, keepdims=True)


class LogSoftmax(Along):
    name = "log_softmax"
    floating = True

    def reference(self, x: Any) -> Any:
        y = x - np.max(x, axis=self.axis, keepdims=True)
        return y - np.log(np.sum(np.exp(y), axis=self.axis, keepdims=True))


class Cumsum(Along):
    """Running sum; integers are summed as i64."""

    name = "cumsum"

    def infer(self) -> TensorType:
        super().infer()
        return self.x.type if self.x.type.dtype.is_float else self.x.type.with_dtype(i64)

    def reference(self, x: Any) -> Any:
        return np.cumsum(x, axis=self.axis)


class TopK(Op):
    """The k greatest (or least) elements along an axis in order, and their indices; the first of equals comes first."""

    name = "topk"
    x: Value
    k: Dim
    axis: int = -1
    largest: bool = True

    def infer(self) -> tuple[TensorType, TensorType]:
        axis = axis_of(self, self.axis, self.x.type.rank)
        size = self.x.type.dims[axis]
        if isinstance(self.k, int) and (self.k < 0 or (isinstance(size, int) and self.k > size)):
            raise self.fail(f"no {self.k} elements in an axis of {size}")
        dims = self.x.type.dims[:axis] + (self.k,) + self.x.type.dims[axis + 1:]
        return self.x.type.with_dims(*dims), TensorType(i64, dims)

    def reference(self, x: Any) -> Any:
        if self.largest:
            last = np.flip(np.argsort(np.flip(x, self.axis), axis=self.axis, kind="stable"), self.axis)
            order = x.shape[self.axis] - 1 - last
        else:
            order = np.argsort(x, axis=self.axis, kind="stable")
        index = np.take(order, np.arange(self.k), axis=self.axis)  # type: ignore[arg-type]
        return np.take_along_axis(x, index, axis=self.axis), index

    def axis_map(self) -> AxisMap:
        axes = _labels(self.x.type.rank)
        axis = self.axis % len(axes)
        out = axes[:axis] + (("k",),) + axes[axis + 1:]
        return AxisMap((axes,), (out, out), frozenset(axes[axis]))
