"""Ops that move elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.dtypes import held
from ingot.backends.onnx.registry import rule
from ingot.ir.dims import Dim, symbols
from ingot.ir.ops.layout import Concat, Expand, Flip, Pad, Pick, Reshape, Slice, Split, Take, TakeAlong, Transpose, Triangle
from ingot.ir.types import i64

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering

_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


@rule(Reshape)
def reshape(op: Reshape, lo: Lowering) -> str:
    return reshaped(lo, lo(op.x), op.x.type.dims, op.shape)


def reshaped(lo: Lowering, name: str, source: Sequence[Dim], target: Sequence[Dim]) -> str:
    """`name` of shape `source` as `target`; the target is a constant when at most one dim is left to infer."""
    if tuple(source) == tuple(target):
        return name
    known = [d if isinstance(d, int) else 0 if i < len(source) and source[i] == d else None for i, d in enumerate(target)]
    empty = any(d == 0 or (not isinstance(d, int) and _may_be_zero(lo, d)) for d in target)
    if empty or known.count(None) > 1:
        return lo.emit("Reshape", name, lo.shape(target), allowzero=1 if empty else None)
    return lo.emit("Reshape", name, lo.const([-1 if d is None else d for d in known] or np.zeros(0, np.int64)))


def _may_be_zero(lo: Lowering, dim: Dim) -> bool:
    return any(lo.func.module.dims.get(s, (1, 1))[0] < 1 for s in symbols(dim))


@rule(Transpose)
def transpose(op: Transpose, lo: Lowering) -> str:
    if list(op.perm) == sorted(op.perm):
        return lo(op.x)
    return lo.emit("Transpose", lo(op.x), perm=op.perm)


@rule(Expand)
def expand(op: Expand, lo: Lowering) -> str:
    return expanded(lo, lo(op.x), op.x.type.dims, op.shape)


def expanded(lo: Lowering, name: str, source: Sequence[Dim], target: Sequence[Dim]) -> str:
    """`name` of shape `source` broadcast to `target`."""
    if tuple(source) == tuple(target):
        return name
    shift = len(target) - len(source)
    # A one in Expand's shape leaves the axis as it is.
    return lo.emit("Expand", name, lo.shape([1 if i >= shift and source[i - shift] == d else d for i, d in enumerate(target)]))


@rule(Slice)
def slice_(op: Slice, lo: Lowering) -> str:
    return sliced(lo, lo(op.x), op.axis % op.x.type.rank, op.start, op.stop, op.step)


def sliced(lo: Lowering, name: str, axis: int, start: Dim, stop: Dim, step: int = 1) -> str:
    """Positions start, start + step, ... below stop of one axis."""
    return lo.emit("Slice", name, lo.dim(start), lo.dim(stop), lo.const([axis]), lo.const([step]) if step != 1 else None)


@rule(Concat)
def concat(op: Concat, lo: Lowering) -> str:
    xs = [lo(x) for x in op.xs]
    return xs[0] if len(xs) == 1 else lo.emit("Concat", *xs, axis=op.axis % op.xs[0].type.rank)


@rule(Split)
def split(op: Split, lo: Lowering) -> tuple[str, ...]:
    if len(op.sizes) == 1:
        return (lo(op.x),)
    return lo.emit_many("Split", lo(op.x), lo.shape(op.sizes), n_out=len(op.sizes), axis=op.axis % op.x.type.rank)


@rule(Pad)
def pad(op: Pad, lo: Lowering) -> str:
    before_after = (*op.pads[::2], *op.pads[1::2])
    fill = lo.const(op.value, held(op.x.type.dtype)) if op.mode == "constant" else None
    return lo.emit("Pad", lo(op.x), lo.shape(before_after), fill, mode=_MODES[op.mode])


@rule(Take)
def take(op: Take, lo: Lowering) -> str:
    return lo.emit("Gather", lo(op.x), index(lo, op), axis=op.axis % op.x.type.rank)


@rule(Pick)
def pick(op: Pick, lo: Lowering) -> str:
    axis, dims = op.axis % op.x.type.rank, op.x.type.dims
    front = [0, axis, *(i for i in range(1, len(dims)) if i != axis)]
    x = expanded(lo, lo(op.x), dims, (op.index.type.dims[0], *dims[1:]))
    if axis != 1:
        x = lo.emit("Transpose", x, perm=front)
    at = lo.cast(lo(op.index), held(op.index.type.dtype), i64)
    picked = lo.emit("GatherND", x, lo.emit("Unsqueeze", at, lo.const([2])), batch_dims=1)
    return picked if axis == 1 else lo.emit("Transpose", picked, perm=sorted(range(len(front)), key=front.__getitem__))


@rule(TakeAlong)
def take_along(op: TakeAlong, lo: Lowering) -> str:
    return lo.emit("GatherElements", lo(op.x), index(lo, op), axis=op.axis % op.x.type.rank)


def index(lo: Lowering, op: Take | TakeAlong | Pick) -> str:
    """The index operand as i32 or i64, the types ONNX picks by."""
    dtype = held(op.index.type.dtype)
    return lo.cast(lo(op.index), dtype, dtype if dtype.name in ("i32", "i64") else i64)


@rule(Flip)
def flip(op: Flip, lo: Lowering) -> str:
    axes = [a % op.x.type.rank for a in op.axes_]
    if not axes:
        return lo(op.x)
    least = np.iinfo(np.int64).min
    return lo.emit("Slice", lo(op.x), lo.const([-1] * len(axes)), lo.const([least] * len(axes)), lo.const(axes),
                   lo.const([-1] * len(axes)))


@rule(Triangle)
def triangle(op: Triangle, lo: Lowering) -> str:
    dtype = held(op.x.type.dtype)
    wide = dtype if dtype.is_float or dtype.name in ("i64", "bool") else i64
    kept = lo.emit("Trilu", lo.cast(lo(op.x), dtype, wide), lo.const(op.diagonal), upper=int(op.upper))
    return lo.cast(kept, wide, dtype)
