"""Quantised tensors in standard operators: DequantizeLinear where it has the format, else tables of values times steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.dtypes import held
from ingot.backends.onnx.quant_parts import (
    computed_values,
    count_decoded,
    kernel_block,
    steps,
    stored_bits,
    stored_bytes,
    values,
    work_type,
)
from ingot.backends.onnx.registry import rule
from ingot.backends.onnx.rules_layout import reshaped, sliced
from ingot.backends.onnx.rules_matmul import as_result, ids, with_bias
from ingot.ir.dims import Dim
from ingot.ir.formats import Integer, format_named
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import DType, TensorType, i2, i4, i8, u2, u4, u8
from ingot.ir.value import Const

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering

_STORED = {8: (i8, u8), 4: (i4, u4), 3: (i4, u4), 2: (i2, u2)}
"""ONNX types of codes by bits: signed without zero points, unsigned with them. There is no 3-bit type."""

Layout = Callable[[np.ndarray], np.ndarray]


@rule(Dequantize)
def dequantize(op: Dequantize, lo: Lowering) -> str:
    """By tables and arithmetic: any format, weights or computed codes."""
    fmt, work = format_named(op.format), work_type(op)
    if isinstance(op.packed, Const):
        count_decoded(lo, op)
        found = values(lo, fmt, stored_bytes(lo, op.packed, stored_bits(fmt)), work, centred=op.zero is None)
    else:
        found = lo.emit("Unsqueeze", computed_values(lo, op, work), lo.const([-1]))
    return scaled(lo, op, found, op.packed.type.dims, steps(lo, op), None if op.zero is None else lo(op.zero))


@rule(Dequantize)
def dequantize_weight(op: Dequantize, lo: Lowering) -> str | None:
    """By DequantizeLinear with blocks along the last axis."""
    return _dequantize_linear(op, lo, axis=op.packed.type.rank - 1, layout=np.asarray, suffix="codes")


@rule(Linear)
def linear(op: Linear, lo: Lowering) -> str | None:
    """DequantizeLinear right before MatMul, blocks along `in`: onnxruntime turns the pair into MatMulNBits.

    A Transpose between the two would hide the pair, so codes and scales are stored as [in, out].
    """
    # onnxruntime 1.31 makes wrong numbers of that fusion when 2-bit rows do not end on whole bytes.
    dq = op.w.op
    if not isinstance(dq, Dequantize) or held(dq.dtype) != held(op.result.type.dtype):
        return None
    least = 4 if dq.packed.type.dims[0] % 4 else 2
    w = _dequantize_linear(dq, lo, axis=0, layout=np.transpose, suffix="codes.T", least_bits=least)
    return None if w is None else with_bias(lo, op, lo.emit("MatMul", as_result(lo, op, op.x), w))


def _dequantize_linear(op: Dequantize, lo: Lowering, *, axis: int, layout: Layout, suffix: str,
                       least_bits: int = 2) -> str | None:
    fmt, last, scale, zero = format_named(op.format), op.packed.type.dims[-1], op.scale, op.zero
    if not isinstance(op.packed, Const) or not isinstance(scale, Const) or not isinstance(zero, Const | None):
        return None
    if not isinstance(fmt, Integer) or fmt.bits not in _STORED or op.tensor_scale is not None:
        return None
    if not isinstance(last, int) or last % op.group or held(op.dtype) != held(scale.type.dtype):
        return None
    rows, block = op.packed.type.shape[:-1], kernel_block(op.group, last)
    if last % (block or 1) or not block:
        block = op.group
    wide = scale.type.shape != (*rows, last // block)
    stored = _STORED[max(fmt.bits, least_bits)][0 if zero is None else 1]
    if stored.bits == 2:
        lo.require(25)
    codes = _stored(lo, op.packed, suffix, stored, layout, fmt.middle if zero is None else 0)
    scales = _stored(lo, scale, suffix.replace("codes", "scales"), held(scale.type.dtype), layout)
    full = (*rows, last // block)
    if wide:
        scales = lo.emit("Expand", scales, lo.const(layout(np.empty(full, np.bool_)).shape))

    def spread(array: np.ndarray) -> np.ndarray:
        return layout(np.broadcast_to(array, full))

    zeros = None if zero is None else _stored(lo, zero, suffix, stored, spread if wide else layout)
    return lo.emit("DequantizeLinear", codes, scales, zeros, axis=axis, block_size=block)


def _stored(lo: Lowering, value: Const, suffix: str, dtype: DType, layout: Layout, minus: int = 0) -> str:
    """The initializer of a weight laid out anew, less `minus`, in another element type."""
    dims = tuple(layout(np.empty(value.type.shape, np.bool_)).shape)
    type_ = TensorType(dtype, dims)

    def make(array: np.ndarray) -> np.ndarray:
        wide = array if dtype.is_float else array.astype(np.int16) - minus
        return np.ascontiguousarray(layout(wide)).astype(dtype.numpy)

    return lo.stored((value.weight, suffix, type_, minus), f"{value.name}.{suffix}", lambda: lo.derive(value.weight, type_, make))


@rule(Embedding)
def embedding(op: Embedding, lo: Lowering) -> str | None:
    """Rows of packed codes are picked first and decoded after: the table is never decoded whole."""
    dq = op.w.op
    if not isinstance(dq, Dequantize) or not isinstance(dq.packed, Const) or held(dq.dtype) != held(op.result.type.dtype):
        return None
    fmt, at = format_named(dq.format), ids(lo, op)
    picked = lo.emit("Gather", stored_bytes(lo, dq.packed, stored_bits(fmt)), at, axis=0)
    found = values(lo, fmt, picked, work_type(dq), centred=dq.zero is None)
    step, zero = steps(lo, dq), None if dq.zero is None else lo(dq.zero)
    if dq.scale.type.dims[0] == dq.packed.type.dims[0]:
        step = lo.emit("Gather", step, at, axis=0)
        zero = None if zero is None else lo.emit("Gather", zero, at, axis=0)
    return scaled(lo, dq, found, op.result.type.dims, step, zero)


def scaled(lo: Lowering, op: Dequantize, found: str, dims: tuple[Dim, ...], step: str, zero: str | None) -> str:
    """Values [..., m, per byte] of `dims` less zero [..., groups], times step [..., groups], in the held type of `op.dtype`."""
    work = work_type(op)
    *rows, last = dims
    groups, per = op.scale.type.dims[-1], 8 // stored_bits(format_named(op.format)) if isinstance(op.packed, Const) else 1
    full = groups * op.group
    bytes_ = (last + per - 1) // per
    split: tuple[Dim, ...] = (*rows, groups, op.group)
    shape: tuple[Dim, ...] = (*rows, bytes_, per)
    if full != bytes_ * per:
        flat = reshaped(lo, found, shape, (*rows, bytes_ * per))
        # A negative pad takes away what fills the last byte.
        found, shape = lo.emit("Pad", flat, lo.shape([0] * (2 * len(rows) + 1) + [full - bytes_ * per])), (*rows, full)
    found = reshaped(lo, found, shape, split)
    at_end = lo.const([-1])
    if zero is not None:
        found = lo.emit("Sub", found, lo.cast(lo.emit("Unsqueeze", zero, at_end), u8, work))
    y = reshaped(lo, lo.emit("Mul", found, lo.emit("Unsqueeze", step, at_end)), split, (*rows, full))
    if full != last:
        y = sliced(lo, y, len(rows), 0, last)
    return lo.cast(y, work, held(op.dtype))
