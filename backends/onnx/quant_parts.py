"""The parts of quantised tensors in standard operators: bytes of codes, the values they stand for, and steps.

All of it is computed from initializers, so onnxruntime folds it into plain tensors when it loads the graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.dtypes import held
from ingot.backends.onnx.made_at_load import by_byte, scale_values
from ingot.ir.formats import Format, Integer, format_named, pack_bits
from ingot.ir.formats.scaling import SUPERBLOCK
from ingot.ir.ops.quant import Dequantize
from ingot.ir.types import DType, TensorType, f32, f64, i32, u8
from ingot.ir.value import Const

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering

KERNEL_GROUPS = (16, 32, 64, 128, 256)
"""Blocks that onnxruntime's kernels on packed weights take."""


def kernel_block(group: int, k: int) -> int:
    """The block in which a kernel takes rows of k codes: the group, or for whole rows what divides them; 0: there is none.

    Blocks of 128 are as fast as any. Rows that are no multiple of 16 are padded.
    """
    if group in KERNEL_GROUPS:
        return group
    return 0 if group < k else max(16, min(128, k & -k))


def work_type(op: Dequantize) -> DType:
    """What values and steps are computed in."""
    return f64 if f64 in (op.scale.type.dtype, op.dtype) else f32


def steps(lo: Lowering, op: Dequantize) -> str:
    """The steps of a dequantize, in the shape of its scale, in `work_type(op)`."""
    work, scale = work_type(op), op.scale
    if isinstance(scale, Const) and scale.type.dtype.bits == 8:
        table = scale_values(scale.type.dtype.name).weight.materialize()
        step = _looked_up(lo, table.astype(work.numpy), stored_bytes(lo, scale, 8))
    else:
        step = lo.cast(lo(scale), held(scale.type.dtype), work)
    if op.tensor_scale is not None:
        step = lo.emit("Mul", step, _per_step(lo, op, work))
    if op.offset is not None:
        step = lo.emit("Add", step, lo.cast(lo(op.offset), held(op.offset.type.dtype), work))
    return step


def _per_step(lo: Lowering, op: Dequantize, work: DType) -> str:
    """The second-level scale, in a shape that broadcasts against the scales."""
    factor = op.tensor_scale
    assert factor is not None
    name = lo.cast(lo(factor), held(factor.type.dtype), work)
    if not factor.type.rank:
        return name
    spread = lo.emit("Expand", lo.emit("Unsqueeze", name, lo.const([-1])), lo.const([1, SUPERBLOCK]))
    flat = lo.emit("Slice", lo.emit("Reshape", spread, lo.const([-1])), lo.const([0]), lo.dim(op.scale.type.size))
    return lo.emit("Reshape", flat, lo.shape(op.scale.type.dims))


def count_decoded(lo: Lowering, op: Dequantize) -> None:
    """Takes note that a weight is floats in memory, though it is stored in a format of few bits that no kernel multiplies."""
    size = op.packed.type.size
    assert isinstance(size, int)
    if isinstance(format_named(op.format), Integer):
        return  # groups of some odd size, not the format, are at fault
    lo.decoded[op.format] = lo.decoded.get(op.format, 0) + size * work_type(op).bits // 8


def stored_bits(fmt: Format) -> int:
    """Bits that a code takes in rows of bytes: what divides a byte."""
    return {2: 2, 8: 8}.get(fmt.bits, 4)


def stored_bytes(lo: Lowering, codes: Const, bits: int) -> str:
    """The initializer of codes [..., k] as bytes u8[..., ceil(k * bits / 8)], the first in the lowest bits."""
    *rows, last = codes.type.shape
    type_ = TensorType(u8, (*rows, -(-last * bits // 8)))

    def pack(array: np.ndarray) -> np.ndarray:
        raw = array.view(np.uint8) if codes.type.dtype.is_float else array.astype(np.uint8)
        return pack_bits(raw & np.uint8((1 << codes.type.dtype.bits) - 1), bits)

    return lo.stored((codes.weight, "bytes", bits, type_), f"{codes.name}.bytes", lambda: lo.derive(codes.weight, type_, pack))


def values(lo: Lowering, fmt: Format, packed: str, work: DType, *, centred: bool) -> str:
    """What bytes of codes u8[..., m] stand for under step 1, [..., m, codes per byte].

    centred: without zero points; else integer codes as they are, from which a zero point is still to be taken.
    """
    bits = stored_bits(fmt)
    each = fmt.table() if centred or not isinstance(fmt, Integer) else np.arange(fmt.levels)
    return _looked_up(lo, by_byte(each.astype(work.numpy), bits), packed)


def _looked_up(lo: Lowering, table: np.ndarray, at: str) -> str:
    return lo.emit("Gather", lo.const(table), lo.cast(at, u8, i32), axis=0)


def computed_values(lo: Lowering, op: Dequantize, work: DType) -> str:
    """What codes that the graph computes stand for under step 1, in their shape."""
    fmt, name = format_named(op.format), lo(op.packed)
    if fmt.code.is_float:
        return lo.cast(name, held(fmt.code), work)
    if not isinstance(fmt, Integer):
        return _looked_up(lo, fmt.table().astype(work.numpy), name)
    codes = lo.cast(name, u8, work)
    return codes if op.zero is not None else lo.emit("Sub", codes, lo.const(fmt.middle, work))
