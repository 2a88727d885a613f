"""Quantised tensors in standard operators: DequantizeLinear where it has the format, else arithmetic on codes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.dtypes import held
from ingot.backends.onnx.registry import rule
from ingot.backends.onnx.rules_layout import reshaped, sliced
from ingot.backends.onnx.rules_matmul import as_result, ids, with_bias
from ingot.ir.dims import Dim
from ingot.ir.formats import Format, format_named, pack_bits
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import DType, TensorType, i2, i4, i8, i32, u2, u4, u8
from ingot.ir.value import Const, Value

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering

_STORED = {8: (i8, u8), 4: (i4, u4), 3: (i4, u4), 2: (i2, u2)}
"""ONNX types of codes by bits: signed without zero points, unsigned with them. There is no 3-bit type."""

Layout = Callable[[np.ndarray], np.ndarray]


def is_integer(fmt: Format) -> bool:
    """Whether codes stand for `code - middle`, rather than for entries of a table."""
    return np.array_equal(fmt.table(), np.arange(fmt.levels) - fmt.middle)


@rule(Dequantize)
def dequantize(op: Dequantize, lo: Lowering) -> str:
    """By arithmetic: any format, weights or computed codes."""
    zero = None if op.zero is None else lo(op.zero)
    return decoded(lo, op, lo(op.packed), op.packed.type.dims, lo(op.scale), zero)


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
    fmt, last = format_named(op.format), op.packed.type.dims[-1]
    weights = [op.packed, op.scale, *([op.zero] if op.zero is not None else [])]
    if not all(isinstance(v, Const) for v in weights) or not is_integer(fmt) or fmt.bits not in _STORED:
        return None
    if not isinstance(last, int) or last % op.group or held(op.dtype) != held(op.scale.type.dtype):
        return None
    stored = _STORED[max(fmt.bits, least_bits)][0 if op.zero is None else 1]
    if stored.bits == 2:
        lo.require(25)
    codes = _stored(lo, op.packed, suffix, stored, layout, fmt.middle if op.zero is None else 0)
    scale = _stored(lo, op.scale, suffix.replace("codes", "scales"), held(op.scale.type.dtype), layout)
    zero = None if op.zero is None else _stored(lo, op.zero, suffix, stored, layout)
    return lo.emit("DequantizeLinear", codes, scale, zero, axis=axis, block_size=op.group)


def _stored(lo: Lowering, value: Value, suffix: str, dtype: DType, layout: Layout, minus: int = 0) -> str:
    """The initializer of a weight laid out anew, less `minus`, in another element type."""
    assert isinstance(value, Const)
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
    at = ids(lo, op)
    codes = _rows(lo, dq.packed, at)
    scale, zero = (None if v is None else lo.emit("Gather", lo(v), at, axis=0) for v in (dq.scale, dq.zero))
    assert scale is not None
    return decoded(lo, dq, codes, op.result.type.dims, scale, zero)


def _rows(lo: Lowering, table: Const, at: str) -> str:
    """Rows of a table of codes [n, k] as u8 [..., k]; stored as bytes, since Gather does not pick sub-byte elements."""
    rows, size = table.type.shape
    bits = {8: 8, 2: 2}.get(table.type.dtype.bits, 4)
    per = 8 // bits
    type_ = TensorType(u8, (rows, -(-size // per)))
    packed = lo.stored((table.weight, "bytes"), f"{table.name}.bytes", lambda: lo.derive(
        table.weight, type_, lambda a: pack_bits(a.astype(np.uint8), bits)))
    picked = lo.emit("Gather", packed, at, axis=0)
    if per == 1:
        return picked
    shifts = lo.const(np.arange(per, dtype=np.uint8) * np.uint8(bits))
    spread = lo.emit("BitShift", lo.emit("Unsqueeze", picked, lo.const([-1])), shifts, direction="RIGHT")
    codes = lo.emit("BitwiseAnd", spread, lo.const((1 << bits) - 1, u8))
    flat = _merged(lo, codes)
    return flat if size % per == 0 else lo.emit("Slice", flat, lo.const([0]), lo.const([size]), lo.const([-1]))


def _merged(lo: Lowering, name: str) -> str:
    """[..., m, n] as [..., m * n]."""
    lead = lo.emit("Shape", name, end=-2)
    return lo.emit("Reshape", name, lo.emit("Concat", lead, lo.const([-1]), axis=0))


def decoded(lo: Lowering, op: Dequantize, codes: str, dims: tuple[Dim, ...], scale: str, zero: str | None) -> str:
    """Codes (u8, of shape `dims`) as floats of the held type of `op.dtype`; scale and zero [..., groups]."""
    fmt, work = format_named(op.format), held(op.scale.type.dtype)
    *rows, last = dims
    groups = op.scale.type.dims[-1]
    full = groups * op.group
    if full != last:
        codes = lo.emit("Pad", codes, lo.shape([0] * (2 * len(rows) + 1) + [full - last]))
    split: tuple[Dim, ...] = (*rows, groups, op.group)
    codes = reshaped(lo, codes, (*rows, full), split)
    at_end = lo.const([-1])
    if zero is not None:
        offset = lo.cast(lo.emit("Unsqueeze", zero, at_end), u8, work)
        values = lo.emit("Sub", lo.cast(codes, u8, work), offset)
    elif is_integer(fmt):
        values = lo.emit("Sub", lo.cast(codes, u8, work), lo.const(fmt.middle, work))
    else:
        values = lo.emit("Gather", lo.const(fmt.table().astype(work.numpy)), lo.cast(codes, u8, i32))
    y = reshaped(lo, lo.emit("Mul", values, lo.emit("Unsqueeze", scale, at_end)), split, (*rows, full))
    if full != last:
        y = sliced(lo, y, len(rows), 0, last)
    return lo.cast(y, work, held(op.dtype))
