"""torch ops that move elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ingot.frontend.aten.registry import Graph, aten
from ingot.ir.dims import Dim
from ingot.ir.ops.creation import Arange
from ingot.ir.ops.layout import Concat, Expand, Flip, Pad, Reshape, Slice, Split, Take, TakeAlong, Transpose, Triangle
from ingot.ir.ops.pointwise import Add, Equal, Mod, Mul, Where
from ingot.ir.ops.reduce import Any_
from ingot.ir.types import bool_, i64
from ingot.ir.value import Value


def reshaped(g: Graph, x: Value, dims: Sequence[Dim]) -> Value:
    """`x` under another shape, itself when it has it already."""
    return x if x.type.dims == tuple(dims) else g(Reshape(x, tuple(dims)))


def permuted(g: Graph, x: Value, perm: Sequence[int]) -> Value:
    """Axes in another order; a permutation that changes nothing is left out."""
    perm = tuple(axis % x.type.rank for axis in perm)
    return x if perm == tuple(range(x.type.rank)) else g(Transpose(x, perm))


def cut(g: Graph, x: Value, axis: int, start: Dim, stop: Dim, step: int = 1) -> Value:
    """Positions of one axis; all of them is `x` itself."""
    if start == 0 and step == 1 and stop == x.type.dims[axis]:
        return x
    return g(Slice(x, axis, start, stop, step))


# --- shapes -------------------------------------------------------------------------------------------------------


@aten("view.default", "reshape.default", "_unsafe_view.default", "unsqueeze.default", "squeeze.dim", "squeeze.dims",
      "squeeze.default", "flatten.using_ints", "unflatten.int", "view_copy.default", "_reshape_copy.default")
def reshape(g: Graph, x: Value, *_: Any, **__: Any) -> Value:
    return reshaped(g, x, g.out.dims)


@aten("permute.default")
def permute(g: Graph, x: Value, dims: Sequence[int]) -> Value:
    return permuted(g, x, dims)


@aten("transpose.int", "swapaxes.default")
def transpose(g: Graph, x: Value, a: int, b: int) -> Value:
    perm = list(range(x.type.rank))
    perm[a], perm[b] = perm[b], perm[a]
    return permuted(g, x, perm)


@aten("t.default", "numpy_T.default", "mT.default")
def turned(g: Graph, x: Value) -> Value:
    return transpose(g, x, -1, -2) if x.type.rank > 1 else x


@aten("expand.default", "expand_as.default", "broadcast_to.default")
def expand(g: Graph, x: Value, *_: Any, **__: Any) -> Value:
    return x if x.type.dims == g.out.dims else g(Expand(x, g.out.dims))


@aten("copy.default")
def copy(g: Graph, x: Value, source: Value, non_blocking: bool = False) -> Value:
    return expand(g, g.cast(source, g.out.dtype))


@aten("repeat.default")
def repeat(g: Graph, x: Value, repeats: Sequence[Dim]) -> Value:
    """Tiling: every axis gets an outer axis of copies, which is then merged."""
    dims = (1,) * (len(repeats) - x.type.rank) + x.type.dims
    if all(n == 1 for n in repeats):
        return reshaped(g, x, dims)
    split = [part for n, d in zip(repeats, dims) for part in ((1, d) if n != 1 else (d,))]
    wide = [part for n, d in zip(repeats, dims) for part in ((n, d) if n != 1 else (d,))]
    return reshaped(g, g(Expand(reshaped(g, x, split), tuple(wide))), g.out.dims)


@aten("repeat_interleave.self_int")
def repeat_interleave(g: Graph, x: Value, repeats: int, dim: int | None = None, output_size: Dim | None = None) -> Value:
    if dim is None:
        x, dim = reshaped(g, x, (x.type.size,)), 0
    dim %= x.type.rank
    dims = x.type.dims
    wide = (*dims[:dim + 1], repeats, *dims[dim + 1:])
    return reshaped(g, g(Expand(reshaped(g, x, (*dims[:dim + 1], 1, *dims[dim + 1:])), wide)), g.out.dims)


# --- parts --------------------------------------------------------------------------------------------------------


def _from_front(position: Dim, size: Dim) -> Dim:
    return size + position if isinstance(position, int) and position < 0 else position


@aten("slice.Tensor")
def slice_(g: Graph, x: Value, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1) -> Value:
    dim %= x.type.rank
    size, count = x.type.dims[dim], g.out.dims[dim]
    if count == size:
        return x
    first = _from_front(start or 0, size)
    stop = first + count if step == 1 else first + (count - 1) * step + 1
    return cut(g, x, dim, first, stop, step)


@aten("slice_scatter.default")
def slice_scatter(g: Graph, x: Value, source: Value, dim: int = 0, start: Dim | None = None, end: Dim | None = None,
                  step: int = 1) -> Value:
    """`x` with `source` in place of a slice."""
    dim %= x.type.rank
    if step != 1:
        raise g.unsupported("a slice with steps")
    size, first = x.type.dims[dim], _from_front(start or 0, x.type.dims[dim])
    last = first + source.type.dims[dim]
    before = [cut(g, x, dim, 0, first)] if first != 0 else []
    after = [cut(g, x, dim, last, size)] if last != size else []
    parts = (*before, g.cast(source, g.out.dtype), *after)
    return parts[0] if len(parts) == 1 else g(Concat(parts, dim))


@aten("narrow.default")
def narrow(g: Graph, x: Value, dim: int, start: Dim, length: Dim) -> Value:
    dim %= x.type.rank
    first = _from_front(start, x.type.dims[dim])
    return cut(g, x, dim, first, first + length)


@aten("select.int")
def select(g: Graph, x: Value, dim: int, index: Dim) -> Value:
    dim %= x.type.rank
    first = _from_front(index, x.type.dims[dim])
    return reshaped(g, cut(g, x, dim, first, first + 1), g.out.dims)


@aten("split.Tensor", "split_with_sizes.default", "split.sizes", "chunk.default", "tensor_split.sections")
def split(g: Graph, x: Value, _: Any, dim: int = 0) -> tuple[Value, ...]:
    dim %= x.type.rank
    sizes = tuple(out.dims[dim] for out in g.outs if out is not None)
    return (x,) if len(sizes) == 1 else g.add(Split(x, sizes, dim)).results


@aten("unbind.int")
def unbind(g: Graph, x: Value, dim: int = 0) -> tuple[Value, ...]:
    dim %= x.type.rank
    parts = g.add(Split(x, (1,) * len(g.outs), dim)).results
    return tuple(reshaped(g, part, g.out.dims) for part in parts)


@aten("cat.default", "concat.default")
def cat(g: Graph, xs: Sequence[Value], dim: int = 0) -> Value:
    dim %= g.out.rank
    # torch lets an empty vector take part whatever the other ranks are
    parts = [g.cast(x, g.out.dtype) for x in xs if x.type.rank == g.out.rank]
    return parts[0] if len(parts) == 1 else g(Concat(tuple(parts), dim))


@aten("stack.default")
def stack(g: Graph, xs: Sequence[Value], dim: int = 0) -> Value:
    dim %= g.out.rank
    dims = (*g.out.dims[:dim], 1, *g.out.dims[dim + 1:])
    parts = tuple(reshaped(g, g.cast(x, g.out.dtype), dims) for x in xs)
    return parts[0] if len(parts) == 1 else g(Concat(parts, dim))


@aten("constant_pad_nd.default", "pad.default", "reflection_pad1d.default", "reflection_pad2d.default",
      "replication_pad1d.default", "replication_pad2d.default")
def pad(g: Graph, x: Value, pads: Sequence[Dim], *rest: Any) -> Value:
    """torch lists (before, after) from the last axis backwards; a negative one cuts. rest: the mode, the value, or both."""
    mode = next((item for item in rest if isinstance(item, str)), "constant")
    for prefix, named in (("aten.reflection", "reflect"), ("aten.replication", "replicate")):
        mode = named if g.name.startswith(prefix) else mode
    value = next((item for item in rest if isinstance(item, int | float)), 0.0)
    rank = x.type.rank
    around = [(0, 0)] * (rank - len(pads) // 2) + list(zip(pads[-2::-2], pads[-1::-2]))
    for axis, (before, after) in enumerate(around):
        low = -before if isinstance(before, int) and before < 0 else 0
        high = x.type.dims[axis] + (after if isinstance(after, int) and after < 0 else 0)
        x = cut(g, x, axis, low, high)
    grown = tuple(0 if isinstance(n, int) and n < 0 else n for pair in around for n in pair)
    return x if all(n == 0 for n in grown) else g(Pad(x, grown, float(value), mode))


@aten("roll.default")
def roll(g: Graph, x: Value, shifts: Sequence[int] | int, dims: Sequence[int] | int = ()) -> Value:
    shifts, dims = ([v] if isinstance(v, int) else list(v) for v in (shifts, dims))
    if not dims:
        raise g.unsupported("a roll without axes")
    for shift, dim in zip(shifts, dims):
        dim %= x.type.rank
        size = x.type.dims[dim]
        at = (-shift) % size if isinstance(size, int) else _from_front(-shift, size)
        if at != 0:
            head, tail = g.add(Split(x, (at, size - at), dim)).results
            x = g(Concat((tail, head), dim))
    return x


@aten("flip.default")
def flip(g: Graph, x: Value, dims: Sequence[int]) -> Value:
    return g(Flip(x, tuple(dim % x.type.rank for dim in dims)))


@aten("tril.default")
def tril(g: Graph, x: Value, diagonal: int = 0) -> Value:
    return g(Triangle(x, diagonal, False))


@aten("triu.default")
def triu(g: Graph, x: Value, diagonal: int = 0) -> Value:
    return g(Triangle(x, diagonal, True))


# --- picking by index ---------------------------------------------------------------------------------------------


@aten("index_select.default")
def index_select(g: Graph, x: Value, dim: int, index: Value) -> Value:
    return g(Take(x, index, dim % x.type.rank))


@aten("gather.default")
def gather(g: Graph, x: Value, dim: int, index: Value, sparse_grad: bool = False) -> Value:
    return g(TakeAlong(x, index, dim % x.type.rank))


@aten("index.Tensor", "_unsafe_index.Tensor")
def index(g: Graph, x: Value, indices: Sequence[Value | None]) -> Value:
    """x[i, j, ...]: one index tensor is a take; several, on neighbouring axes, are one take from the merged axes."""
    axes = [axis for axis, i in enumerate(indices) if i is not None]
    tensors = [i for i in indices if i is not None]
    if any(i.type.dtype == bool_ for i in tensors):
        raise g.unsupported("picking by a boolean mask (the result's size depends on the data)")
    first, last = axes[0], axes[-1]
    if len(axes) == 1:
        return g(Take(x, tensors[0], first))
    if last - first + 1 != len(axes):
        return _apart(g, x, axes, tensors)
    dims = x.type.dims
    merged: Dim = 1
    flat: Value | None = None
    for axis, i in zip(axes, tensors):
        i = g(Mod(g.cast(i, i64), g.scalar(dims[axis], i64)))
        flat = i if flat is None else g(Add(g(Mul(flat, g.scalar(dims[axis], i64))), i))
        merged = merged * dims[axis]
    assert flat is not None
    return g(Take(reshaped(g, x, (*dims[:first], merged, *dims[last + 1:])), flat, first))


def _apart(g: Graph, x: Value, axes: list[int], tensors: list[Value]) -> Value:
    """Index tensors on axes that are not neighbours: those axes go to the front, where the result has them too."""
    others = [axis for axis in range(x.type.rank) if axis not in axes]
    return index(g, permuted(g, x, [*axes, *others]), tensors)


@aten("scatter.value")
def scatter_value(g: Graph, x: Value, dim: int, index: Value, value: float) -> Value:
    """`value` at the indexed places of one axis: those whose position is among the row's indices."""
    dim %= x.type.rank
    rows, size = x.type.dims[:dim] + x.type.dims[dim + 1:], x.type.dims[dim]
    if dim != x.type.rank - 1 or index.type.dims[:dim] != rows:
        raise g.unsupported("places on another axis than the last, or in some rows only")
    places = g(Equal(reshaped(g, index, (*index.type.dims, 1)), g(Arange(size))))
    return g(Where(g(Any_(places, (dim,))), g.tensor(value, x.type.dtype), x))
