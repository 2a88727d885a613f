"""Element types of the IR in ONNX, and what onnxruntime on the CPU computes them in."""

from __future__ import annotations

from onnx import TensorProto

from ingot.ir.types import DType, TensorType, f32, i32, i64, u8

_ONNX: dict[str, int] = {
    "f64": TensorProto.DOUBLE, "f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16,
    "f8e4m3": TensorProto.FLOAT8E4M3FN, "f8e5m2": TensorProto.FLOAT8E5M2, "f8e8m0": TensorProto.FLOAT8E8M0,
    "f4e2m1": TensorProto.FLOAT4E2M1,
    "i64": TensorProto.INT64, "i32": TensorProto.INT32, "i16": TensorProto.INT16, "i8": TensorProto.INT8,
    "i4": TensorProto.INT4, "i2": TensorProto.INT2, "u32": TensorProto.UINT32, "u8": TensorProto.UINT8,
    "u4": TensorProto.UINT4, "u2": TensorProto.UINT2, "bool": TensorProto.BOOL,
}
PACKED = {"i4": 4, "u4": 4, "i2": 2, "u2": 2, "f4e2m1": 4}
"""Bits of the element types that ONNX packs several to a byte."""


def onnx_dtype(dtype: DType) -> int:
    """The TensorProto data type of an element type (u3 has none)."""
    return _ONNX[dtype.name]


def held(dtype: DType) -> DType:
    """The type in which values of a declared type live in the graph.

    onnxruntime's CPU kernels know no bf16 and few f16, so both are computed in f32; sub-byte codes live in a byte each.
    """
    if dtype.name in ("f16", "bf16", "f4e2m1"):
        return f32
    return u8 if dtype.name in ("u3", "u4", "u2") else i32 if dtype.name in ("i4", "i2") else dtype


def worked(dtype: DType) -> DType:
    """The type in which arithmetic on values of a declared type is done: kernels for short integers are rare."""
    dtype = held(dtype)
    if dtype.is_float:
        return f32 if dtype.bits == 8 else dtype
    return dtype if dtype in (i32, i64) else i64 if dtype.name == "u32" else i32


def held_type(type: TensorType) -> TensorType:
    return type.with_dtype(held(type.dtype))
