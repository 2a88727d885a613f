"""Convolutions and pooling over [n, c, spatial...] tensors of one to three spatial axes."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ingot.ir.axes import AxisMap
from ingot.ir.dims import Dim
from ingot.ir.op import Op, attr
from ingot.ir.types import TensorType, promote
from ingot.ir.value import Value


class Windowed(Op):
    """Base: how a window of `kernel` moves; stride, dilation per spatial axis, padding = (before..., after...)."""

    def out(self, size: Dim, kernel: int, stride: int, before: int, after: int, dilation: int) -> Dim:
        """How many places a window has along one axis. Raises IRError for impossible windows."""
        if kernel < 1 or stride < 1 or dilation < 1 or before < 0 or after < 0:
            raise self.fail("kernel, stride and dilation must be 1 or more, padding not negative")
        count = (size + before + after - dilation * (kernel - 1) - 1) // stride + 1
        if isinstance(count, int) and count < 1:
            raise self.fail(f"a window over {dilation * (kernel - 1) + 1} positions does not fit into {size}")
        return count


def windows(x: np.ndarray, kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...],
            dilation: tuple[int, ...], fill: float) -> np.ndarray:
    """[n, c, out..., kernel...]: the elements under the window at every place."""
    n = len(kernel)
    x = np.pad(x, [(0, 0), (0, 0), *zip(padding[:n], padding[n:])], constant_values=fill)
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation))
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(2, 2 + n)))
    index = (slice(None), slice(None), *(slice(None, None, s) for s in stride), *(slice(None, None, d) for d in dilation))
    return view[index]


class Conv(Windowed):
    """Cross-correlation: x [n, c, ...], w [o, c / groups, kernel...], bias [o]."""

    name = "conv"
    x: Value
    w: Value
    bias: Value | None = None
    stride: tuple[int, ...] = attr(kw_only=True)
    padding: tuple[int, ...] = attr(kw_only=True)
    dilation: tuple[int, ...] = attr(kw_only=True)
    groups: int = 1

    def infer(self) -> TensorType:
        self.need_floats(*self.operands)
        x, w = self.x.type.dims, self.w.type.shape
        n = len(w) - 2
        if n < 1 or len(x) != n + 2 or not len(self.stride) == len(self.dilation) == n or len(self.padding) != 2 * n:
            raise self.fail("x, w, stride, padding and dilation differ in the number of spatial axes")
        if self.groups < 1 or x[1] != w[1] * self.groups or w[0] % self.groups:
            raise self.fail(f"x has {x[1]} channels, w and groups={self.groups} need {w[1] * self.groups}")
        if self.bias is not None and self.bias.type.dims != (w[0],):
            raise self.fail(f"bias must be [{w[0]}]")
        spatial = (self.out(x[2 + i], w[2 + i], self.stride[i], self.padding[i], self.padding[n + i], self.dilation[i])
                   for i in range(n))
        return TensorType(promote(self.x.type, self.w.type), (x[0], w[0], *spatial))

    def reference(self, x: Any, w: Any, bias: Any) -> Any:
        n = w.ndim - 2
        view = windows(x, w.shape[2:], self.stride, self.padding, self.dilation, 0.0)
        size = w.shape[0] // self.groups
        parts = [np.tensordot(view[:, g * w.shape[1]:(g + 1) * w.shape[1]], w[g * size:(g + 1) * size],
                              axes=((1, *range(2 + n, 2 + 2 * n)), tuple(range(1, 2 + n)))) for g in range(self.groups)]
        y = np.moveaxis(np.concatenate(parts, -1), -1, 1)
        return y if bias is None else y + bias.reshape((-1,) + (1,) * n)

    def axis_map(self) -> AxisMap:
        n = self.w.type.rank - 2
        space = tuple((f"s{i}",) for i in range(n))
        out = tuple((f"t{i}",) for i in range(n))
        kernel: tuple[tuple[str, ...], ...] = ((),) * n
        x: tuple[str, ...]
        rows: tuple[str, ...]
        columns: tuple[str, ...]
        if self.groups == 1:
            x, rows, columns = ("i",), ("o",), ("i",)
        elif self.x.type.dims[1] == self.w.type.dims[0] == self.groups:  # depthwise
            x, rows, columns = ("o",), ("o",), ()
        else:
            x, rows, columns = ("g", "i"), ("g", "o"), ("i",)
        operands = ((("n",), x, *space), (rows, columns, *kernel)) + (((rows,),) if self.bias is not None else ())
        return AxisMap(operands, ((("n",), rows, *out),), frozenset(f"s{i}" for i in range(n)),
                       sizes={"g": self.groups} if "g" in x else {})


class Pool(Windowed):
    """Base: a window function per channel.

    ceil rounds the number of places up: the last window is completed by elements after the end. It is refused where a
    window could lie beyond the tensor altogether.
    """

    fill: ClassVar[float] = 0.0
    x: Value
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    ceil: bool = False

    def infer(self) -> TensorType:
        n = len(self.kernel)
        x = self.x.type.dims
        self.need_floats(self.x)
        if not n or len(x) != n + 2 or len(self.stride) != n or len(self.padding) != 2 * n:
            raise self.fail("x, kernel, stride and padding differ in the number of spatial axes")
        if self.ceil and any(s + after > k for s, after, k in zip(self.stride, self.padding[n:], self.kernel)):
            raise self.fail("with ceil, a window could lie beyond the tensor: stride plus padding exceed the kernel")
        up = [s - 1 if self.ceil else 0 for s in self.stride]
        spatial = (self.out(x[2 + i], self.kernel[i], self.stride[i], self.padding[i], self.padding[n + i] + up[i], 1)
                   for i in range(n))
        return self.x.type.with_dims(*x[:2], *spatial)

    def _windows(self, x: np.ndarray, fill: float) -> np.ndarray:
        n = len(self.kernel)
        up = tuple(s - 1 if self.ceil else 0 for s in self.stride)
        padding = self.padding[:n] + tuple(p + u for p, u in zip(self.padding[n:], up))
        return windows(x, self.kernel, self.stride, padding, (1,) * n, fill)

    def axis_map(self) -> AxisMap:
        n = len(self.kernel)
        return AxisMap(((("n",), ("c",), *((f"s{i}",) for i in range(n))),),
                       ((("n",), ("c",), *((f"t{i}",) for i in range(n))),), frozenset(f"s{i}" for i in range(n)))


class MaxPool(Pool):
    name = "max_pool"

    def reference(self, x: Any) -> Any:
        return self._windows(x, -np.inf).max(tuple(range(-len(self.kernel), 0)))


class AvgPool(Pool):
    """Mean under the window; padding counts as zeros when `count_padding` (not with `ceil`, whose elements never count)."""

    name = "avg_pool"
    count_padding: bool = True

    def infer(self) -> TensorType:
        if self.ceil and self.count_padding:
            raise self.fail("ceil and count_padding exclude each other")
        return super().infer()

    def reference(self, x: Any) -> Any:
        axes = tuple(range(-len(self.kernel), 0))
        if self.count_padding:
            return self._windows(x, 0.0).mean(axes)
        return self._windows(x, 0.0).sum(axes) / self._windows(np.ones_like(x), 0.0).sum(axes)
