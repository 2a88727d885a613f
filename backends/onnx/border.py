"""How values cross a graph's border: mostly as they are held inside, but f16 as f16, and 4-bit codes two to a byte."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ingot.backends.onnx.dtypes import held, onnx_dtype
from ingot.ir.types import TensorType, f16, i4, i32, u8

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering


def port(type: TensorType) -> TensorType:
    """The type in which a value of a declared type crosses the border. Codes i4[..., 2 n] are u8[..., n], the even one low, each
    with 8 added, as GroupQueryAttention has them.
    """
    if _is_packed(type):
        return TensorType(u8, (*type.dims[:-1], _last(type) // 2))
    return type if type.dtype == f16 else type.with_dtype(held(type.dtype))


def inward(lo: Lowering, name: str, type: TensorType) -> str:
    """What comes in as `name`, as it is held."""
    if not _is_packed(type):
        return lo.cast(name, port(type).dtype, held(type.dtype))
    pairs = lo.emit("Unsqueeze", lo.emit("Cast", name, to=onnx_dtype(i32)), lo.const([-1]))
    codes = lo.emit("Mod", lo.emit("Div", pairs, _shifts(lo)), lo.const(16, i32))
    return lo.emit("Reshape", lo.emit("Sub", codes, lo.const(8, i32)), lo.const([0] * (type.rank - 1) + [_last(type)]))


def outward(lo: Lowering, name: str, type: TensorType) -> str:
    """What is held as `name`, as it goes out."""
    if not _is_packed(type):
        return lo.cast(name, held(type.dtype), port(type).dtype)
    pairs = lo.const([0] * (type.rank - 1) + [_last(type) // 2, 2])
    codes = lo.emit("Reshape", lo.emit("Add", name, lo.const(8, i32)), pairs)
    both = lo.emit("ReduceSum", lo.emit("Mul", codes, _shifts(lo)), lo.const([-1]), keepdims=0)
    return lo.emit("Cast", both, to=onnx_dtype(u8))


def brought_in(array: np.ndarray, type: TensorType) -> np.ndarray:
    """An array of a declared type as it crosses the border; see `port`."""
    if _is_packed(type):
        array = (array.astype(np.int32).reshape(*array.shape[:-1], -1, 2) + 8) @ [1, 16]
    return array.astype(port(type).dtype.numpy)


def brought_out(array: np.ndarray, type: TensorType) -> np.ndarray:
    """The array of a declared type that has crossed the border."""
    if not _is_packed(type):
        return array
    codes = array[..., None].astype(np.int32) // [1, 16] % 16 - 8
    return codes.reshape(*array.shape[:-1], -1).astype(np.int8)


def _is_packed(type: TensorType) -> bool:
    return type.dtype == i4 and _last(type) % 2 == 0


def _last(type: TensorType) -> int:
    """The size of the last axis; 1 where it is a symbol or there is none."""
    last = type.dims[-1] if type.dims else 1
    return last if isinstance(last, int) else 1


def _shifts(lo: Lowering) -> str:
    return lo.const(np.array([1, 16], np.int32))
