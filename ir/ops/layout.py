"""Ops that move elements without computing on them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ingot.errors import IRError
from ingot.ir.axes import Axis, AxisMap, reshape_axes
from ingot.ir.dims import Dim, product
from ingot.ir.op import Op
from ingot.ir.types import TensorType, broadcast
from ingot.ir.value import Value


def axis_of(op: Op, axis: int, rank: int) -> int:
    """`axis` counted from the front. Raises IRError when there is no such axis."""
    if not -rank <= axis < rank:
        raise op.fail(f"no axis {axis} in a tensor of rank {rank}")
    return axis % rank


def _labels(rank: int, prefix: str = "a") -> tuple[Axis, ...]:
    return tuple((f"{prefix}{i}",) for i in range(rank))


def _with(axes: tuple[Axis, ...], axis: int, labels: Axis) -> tuple[Axis, ...]:
    return axes[:axis] + (labels,) + axes[axis + 1:]


class Reshape(Op):
    """The same elements, row-major, under another shape."""

    name = "reshape"
    x: Value
    shape: tuple[Dim, ...]

    def infer(self) -> TensorType:
        if product(self.shape) != self.x.type.size or any(isinstance(d, int) and d < 0 for d in self.shape):
            raise self.fail(f"shape [{', '.join(map(str, self.shape))}] has another number of elements")
        return self.x.type.with_dims(*self.shape)

    def reference(self, x: Any) -> Any:
        return x.reshape(self.shape)

    def axis_map(self) -> AxisMap:
        return reshape_axes(self.x.type.dims, self.shape)


class Transpose(Op):
    """Axes in the order `perm`."""

    name = "transpose"
    x: Value
    perm: tuple[int, ...]

    def infer(self) -> TensorType:
        if sorted(self.perm) != list(range(self.x.type.rank)):
            raise self.fail(f"{list(self.perm)} is no permutation of its axes")
        return self.x.type.with_dims(*(self.x.type.dims[i] for i in self.perm))

    def reference(self, x: Any) -> Any:
        return x.transpose(self.perm)

    def axis_map(self) -> AxisMap:
        axes = _labels(self.x.type.rank)
        return AxisMap((axes,), (tuple(axes[i] for i in self.perm),))


class Expand(Op):
    """Broadcast to `shape`."""

    name = "expand"
    x: Value
    shape: tuple[Dim, ...]

    def infer(self) -> TensorType:
        try:
            fits = broadcast(self.x.type.dims, self.shape) == self.shape
        except IRError:
            fits = False
        if not fits or any(isinstance(d, int) and d < 0 for d in self.shape):
            raise self.fail(f"does not broadcast to [{', '.join(map(str, self.shape))}]")
        return self.x.type.with_dims(*self.shape)

    def reference(self, x: Any) -> Any:
        return np.broadcast_to(x, self.shape)  # type: ignore[arg-type]

    def axis_map(self) -> AxisMap:
        out = _labels(len(self.shape))
        shift = len(self.shape) - self.x.type.rank
        source = tuple(out[i + shift] if d == self.shape[i + shift] else () for i, d in enumerate(self.x.type.dims))
        return AxisMap((source,), (out,))


class Slice(Op):
    """Positions start, start + step, ... below stop of one axis (0 <= start <= stop <= size, step >= 1)."""

    name = "slice"
    x: Value
    axis: int
    start: Dim
    stop: Dim
    step: int = 1

    def infer(self) -> TensorType:
        axis = axis_of(self, self.axis, self.x.type.rank)
        size = self.x.type.dims[axis]
        start, stop = self.start, self.stop
        marks = [d for d in (0, start, stop, size) if isinstance(d, int)]
        if marks != sorted(marks):
            raise self.fail(f"positions {start} to {stop} are not inside an axis of {size}")
        if self.step < 1:
            raise self.fail(f"a step of {self.step}, the least is 1")
        dims = list(self.x.type.dims)
        dims[axis] = (stop - start + self.step - 1) // self.step
        return self.x.type.with_dims(*dims)

    def reference(self, x: Any) -> Any:
        index = [slice(None)] * x.ndim
        index[self.axis] = slice(self.start, self.stop, self.step)
        return x[tuple(index)]

    def axis_map(self) -> AxisMap:
        axis = self.axis % self.x.type.rank
        axes = _labels(self.x.type.rank)
        if self.step != 1:
            return AxisMap((axes,), (_with(axes, axis, ("part",)),), frozenset(axes[axis]))
        return AxisMap((axes,), (_with(axes, axis, ("part",)),), sums={axes[axis][0]: ("before", "part", "after")},
                       sizes={"before": self.start, "after": self.x.type.dims[axis] - self.stop})


class Concat(Op):
    """Tensors joined along one axis."""

    name = "concat"
    xs: tuple[Value, ...]
    axis: int = -1

    def infer(self) -> TensorType:
        if not self.xs:
            raise self.fail("nothing to join")
        first = self.xs[0].type
        axis = axis_of(self, self.axis, first.rank)
        total: Dim = 0
        others = [d for i, d in enumerate(first.dims) if i != axis]
        for x in self.xs:
            rest = [d for i, d in enumerate(x.type.dims) if i != axis]
            if x.type.dtype != first.dtype or x.type.rank != first.rank or rest != others:
                raise self.fail("operands differ in another axis or in element type")
            total = total + x.type.dims[axis]
        dims = list(first.dims)
        dims[axis] = total
        return first.with_dims(*dims)

    def reference(self, xs: Any) -> Any:
        return np.concatenate(xs, axis=self.axis)

    def axis_map(self) -> AxisMap:
        rank = self.xs[0].type.rank
        axis, axes = self.axis % rank, _labels(rank)
        parts = tuple(f"p{i}" for i in range(len(self.xs)))
        return AxisMap(tuple(_with(axes, axis, (p,)) for p in parts), (axes,), sums={axes[axis][0]: parts})


class Split(Op):
    """One axis cut into consecutive parts of the given sizes."""

    name = "split"
    x: Value
    sizes: tuple[Dim, ...]
    axis: int = -1

    def infer(self) -> tuple[TensorType, ...]:
        axis = axis_of(self, self.axis, self.x.type.rank)
        total: Dim = 0
        for size in self.sizes:
            total = total + size
        if not self.sizes or any(isinstance(d, int) and d < 0 for d in self.sizes):
            raise self.fail("sizes must be one or more, none negative")
        if total != self.x.type.dims[axis]:
            raise self.fail(f"sizes add up to {total}, the axis has {self.x.type.dims[axis]}")
        dims = self.x.type.dims
        return tuple(self.x.type.with_dims(*dims[:axis], size, *dims[axis + 1:]) for size in self.sizes)

    def reference(self, x: Any) -> Any:
        return tuple(np.split(x, np.cumsum(self.sizes)[:-1], axis=self.axis))  # type: ignore[arg-type]

    def axis_map(self) -> AxisMap:
        rank = self.x.type.rank
        axis, axes = self.axis % rank, _labels(rank)
        parts = tuple(f"p{i}" for i in range(len(self.sizes)))
        return AxisMap((axes,), tuple(_with(axes, axis, (p,)) for p in parts), sums={axes[axis][0]: parts})


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class Pad(Op):
    """`value` put before and after along every axis: pads = (before0, after0, before1, after1, ...), none negative.

    mode: constant, reflect (without the edge), replicate (the edge) or circular.
    """

    name = "pad"
    x: Value
    pads: tuple[Dim, ...]
    value: float = 0.0
    mode: str = "constant"

    def infer(self) -> TensorType:
        if len(self.pads) != 2 * self.x.type.rank:
            raise self.fail(f"{len(self.pads)} pads for rank {self.x.type.rank}")
        if any(isinstance(p, int) and p < 0 for p in self.pads):
            raise self.fail("pads must not be negative")
        if self.mode not in _PAD_MODES:
            raise self.fail(f"no mode {self.mode}; there are {', '.join(_PAD_MODES)}")
        before, after = self.pads[::2], self.pads[1::2]
        return self.x.type.with_dims(*(d + b + a for d, b, a in zip(self.x.type.dims, before, after)))

    def reference(self, x: Any) -> Any:
        width = list(zip(self.pads[::2], self.pads[1::2]))
        if self.mode == "constant":
            return np.pad(x, width, constant_values=self.value)  # type: ignore[arg-type]
        return np.pad(x, width, mode=_PAD_MODES[self.mode])  # type: ignore[call-overload]

    def axis_map(self) -> AxisMap:
        axes = _labels(self.x.type.rank)
        out = axes
        sums: dict[str, tuple[str, ...]] = {}
        sizes: dict[str, Dim] = {}
        mixed: set[str] = set()
        for i in range(self.x.type.rank):
            if self.pads[2 * i] != 0 or self.pads[2 * i + 1] != 0:
                out = _with(out, i, (f"padded{i}",))
                if self.mode == "constant":
                    sums[f"padded{i}"] = (f"before{i}", axes[i][0], f"after{i}")
                    sizes |= {f"before{i}": self.pads[2 * i], f"after{i}": self.pads[2 * i + 1]}
                else:
                    mixed.add(axes[i][0])
        return AxisMap((axes,), (out,), frozenset(mixed), sums, sizes=sizes)


class Take(Op):
    """x[..., index[...], ...]: whole slices of `axis` picked by an integer tensor, whose axes replace that axis."""

    name = "take"
    x: Value
    index: Value
    axis: int = 0

    def infer(self) -> TensorType:
        axis = axis_of(self, self.axis, self.x.type.rank)
        if not self.index.type.dtype.is_integer:
            raise self.fail("the index must be an integer tensor")
        dims = self.x.type.dims
        return self.x.type.with_dims(*dims[:axis], *self.index.type.dims, *dims[axis + 1:])

    def reference(self, x: Any, index: Any) -> Any:
        return np.take(x, index, axis=self.axis)

    def axis_map(self) -> AxisMap:
        axis, axes = self.axis % self.x.type.rank, _labels(self.x.type.rank)
        index = _labels(self.index.type.rank, "i")
        return AxisMap((axes, index), (axes[:axis] + index + axes[axis + 1:],), frozenset(axes[axis]))


class Pick(Op):
    """Positions of one axis picked per row: out[b, ..., n, ...] = x[b, ..., index[b, n], ...]; x [b, ...], index [b, n]."""

    name = "pick"
    x: Value
    index: Value
    axis: int = 1

    def infer(self) -> TensorType:
        axis = axis_of(self, self.axis, self.x.type.rank)
        index = self.index.type.dims
        if axis == 0 or len(index) != 2 or self.x.type.dims[0] not in (1, index[0]):
            raise self.fail("x is [b, ...] and index [b, n], the axis not the first")
        if not self.index.type.dtype.is_integer:
            raise self.fail("the index must be an integer tensor")
        dims = self.x.type.dims
        return self.x.type.with_dims(index[0], *dims[1:axis], index[1], *dims[axis + 1:])

    def reference(self, x: Any, index: Any) -> Any:
        x = np.broadcast_to(x, (index.shape[0], *x.shape[1:]))
        picked = np.moveaxis(x, self.axis, 1)[np.arange(index.shape[0])[:, None], index]
        return np.moveaxis(picked, 1, self.axis)

    def axis_map(self) -> AxisMap:
        axis, axes = self.axis % self.x.type.rank, _labels(self.x.type.rank)
        batch = () if self.x.type.dims[0] == 1 and self.index.type.dims[0] != 1 else axes[0]
        return AxisMap((_with(axes, 0, batch), (axes[0], ("n",))), (_with(axes, axis, ("n",)),), frozenset(axes[axis]))


class TakeAlong(Op):
    """out[i..., j, k...] = x[i..., index[i..., j, k...], k...] along `axis` (torch.gather)."""

    name = "take_along"
    x: Value
    index: Value
    axis: int = -1

    def infer(self) -> TensorType:
        axis_of(self, self.axis, self.x.type.rank)
        if self.index.type.rank != self.x.type.rank:
            raise self.fail("the index must have the rank of x")
        if not self.index.type.dtype.is_integer:
            raise self.fail("the index must be an integer tensor")
        for i, (have, wanted) in enumerate(zip(self.x.type.dims, self.index.type.dims)):
            if i != self.axis % self.x.type.rank and isinstance(have, int) and isinstance(wanted, int) and wanted > have:
                raise self.fail(f"the index is longer than x along axis {i}")
        return self.x.type.with_dims(*self.index.type.dims)

    def reference(self, x: Any, index: Any) -> Any:
        index = np.where(index < 0, index + x.shape[self.axis], index)
        crop = tuple(slice(None) if i == self.axis % x.ndim else slice(0, n) for i, n in enumerate(index.shape))
        return np.take_along_axis(x[crop], index, axis=self.axis)

    def axis_map(self) -> AxisMap:
        axis, axes = self.axis % self.x.type.rank, _labels(self.x.type.rank)
        index = _with(axes, axis, ("j",))
        sizes = zip(self.x.type.dims, self.index.type.dims)
        cut = [f"x{i}" if i != axis and have != wanted else f"a{i}" for i, (have, wanted) in enumerate(sizes)]
        return AxisMap((tuple((label,) for label in cut), index), (index,), frozenset(axes[axis]),
                       {label: (f"a{i}", f"rest{i}") for i, label in enumerate(cut) if label == f"x{i}"},
                       sizes={f"rest{i}": self.x.type.dims[i] - self.index.type.dims[i]
                              for i, label in enumerate(cut) if label == f"x{i}"})


class Flip(Op):
    """Order reversed along some axes."""

    name = "flip"
    x: Value
    axes_: tuple[int, ...]

    def infer(self) -> TensorType:
        if len({axis_of(self, a, self.x.type.rank) for a in self.axes_}) < len(self.axes_):
            raise self.fail("an axis is named twice")
        return self.x.type

    def reference(self, x: Any) -> Any:
        return np.flip(x, self.axes_)

    def axis_map(self) -> AxisMap:
        axes = _labels(self.x.type.rank)
        return AxisMap((axes,), (axes,), frozenset(axes[a % len(axes)][0] for a in self.axes_))


class Triangle(Op):
    """Elements kept where column - row <= diagonal (lower) or >= diagonal (upper) of the last two axes, else zero."""

    name = "triangle"
    x: Value
    diagonal: int = 0
    upper: bool = False

    def infer(self) -> TensorType:
        if self.x.type.rank < 2:
            raise self.fail("x must have two axes or more")
        return self.x.type

    def reference(self, x: Any) -> Any:
        return np.triu(x, self.diagonal) if self.upper else np.tril(x, self.diagonal)

    def axis_map(self) -> AxisMap:
        axes = _labels(self.x.type.rank)
        return AxisMap((axes,), (axes,), frozenset(axes[-1] + axes[-2]))
