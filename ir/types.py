"""Element types and tensor types."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

from ingot.errors import IRError
from ingot.ir.dims import Dim, product


@dataclass(frozen=True)
class DType:
    """An element type: `name` as in dumps, `bits` per element in storage, `kind` one of float, int, uint, bool."""

    name: str
    bits: int
    kind: str

    @cached_property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype of a materialised array (3-bit codes live in one byte each)."""
        dtype: np.dtype[Any] = np.dtype(_NUMPY[self.name])
        return dtype

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__


_NUMPY: dict[str, Any] = {
    "f64": np.float64, "f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16,
    "f8e4m3": ml_dtypes.float8_e4m3fn, "f8e5m2": ml_dtypes.float8_e5m2, "f8e8m0": ml_dtypes.float8_e8m0fnu,
    "f4e2m1": ml_dtypes.float4_e2m1fn,
    "i64": np.int64, "i32": np.int32, "i16": np.int16, "i8": np.int8, "i4": ml_dtypes.int4, "i2": ml_dtypes.int2,
    "u8": np.uint8, "u4": ml_dtypes.uint4, "u3": np.uint8, "u2": ml_dtypes.uint2, "u32": np.uint32,
    "bool": np.bool_,
}

f64, f32, f16, bf16 = DType("f64", 64, "float"), DType("f32", 32, "float"), DType("f16", 16, "float"), DType("bf16", 16, "float")
f8e4m3, f8e5m2, f8e8m0 = DType("f8e4m3", 8, "float"), DType("f8e5m2", 8, "float"), DType("f8e8m0", 8, "float")
f4e2m1 = DType("f4e2m1", 4, "float")
i64, i32, i16, i8 = DType("i64", 64, "int"), DType("i32", 32, "int"), DType("i16", 16, "int"), DType("i8", 8, "int")
i4, i2 = DType("i4", 4, "int"), DType("i2", 2, "int")
u32, u8, u4, u3, u2 = (DType("u32", 32, "uint"), DType("u8", 8, "uint"), DType("u4", 4, "uint"), DType("u3", 3, "uint"),
                       DType("u2", 2, "uint"))
bool_ = DType("bool", 8, "bool")

DTYPES: dict[str, DType] = {t.name: t for t in (
    f64, f32, f16, bf16, f8e4m3, f8e5m2, f8e8m0, f4e2m1, i64, i32, i16, i8, i4, i2, u32, u8, u4, u3, u2, bool_)}
_BY_NUMPY = {t.numpy: t for t in DTYPES.values() if t is not u3}


def dtype_of(dtype: np.dtype | type) -> DType:
    """The DType of a numpy dtype. Raises IRError when there is none."""
    found = _BY_NUMPY.get(np.dtype(dtype))
    if found is None:
        raise IRError(f"no element type for numpy {np.dtype(dtype)}")
    return found


@dataclass(frozen=True)
class TensorType:
    """An element type and a shape of dims; `f32[B, S, 64]` in dumps."""

    dtype: DType
    dims: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        """The dims of a weight, all integers. Raises IRError when one is symbolic."""
        fixed = tuple(d for d in self.dims if isinstance(d, int))
        if len(fixed) != len(self.dims):
            raise IRError(f"{self} has symbolic dims where a fixed shape is needed")
        return fixed

    @property
    def size(self) -> Dim:
        """Number of elements."""
        return product(self.dims)

    def with_dims(self, *dims: Dim) -> TensorType:
        return TensorType(self.dtype, tuple(dims))

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.dims)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.dims))}]"

    __repr__ = __str__


_FLOAT_ORDER = {"f8e8m0": 0, "f4e2m1": 0, "f8e4m3": 0, "f8e5m2": 0, "f16": 1, "bf16": 1, "f32": 2, "f64": 3}


def promote(a: TensorType, b: TensorType) -> DType:
    """Result element type of arithmetic on two operands, as in torch: a float beats an integer, an operand with
    axes beats a rank-0 one of the same kind, then the wider one; f16 with bf16 gives f32, u8 with i8 gives i16."""
    x, y = a.dtype, b.dtype
    if x == y:
        return x
    rank = {"bool": 0, "uint": 1, "int": 1, "float": 2}
    if rank[x.kind] != rank[y.kind]:
        return x if rank[x.kind] > rank[y.kind] else y
    if (a.rank == 0) != (b.rank == 0):
        return y if a.rank == 0 else x
    if x.kind != y.kind:
        signed, unsigned = (x, y) if x.kind == "int" else (y, x)
        return next((t for t in (signed, i8, i16, i32) if t.bits > unsigned.bits), i64)
    if x.is_float:
        if _FLOAT_ORDER[x.name] == _FLOAT_ORDER[y.name]:
            return f32
        return max(x, y, key=lambda t: _FLOAT_ORDER[t.name])
    return max(x, y, key=lambda t: t.bits)


def broadcast(*shapes: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The broadcast of several shapes under numpy's rules. Raises IRError when they do not fit."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = []
    for axis in range(-rank, 0):
        dims = [s[axis] for s in shapes if len(s) >= -axis]
        wide = [d for d in dims if d != 1]
        if any(d != wide[0] for d in wide[1:]):
            raise IRError("shapes do not broadcast: " + " with ".join(f"[{', '.join(map(str, s))}]" for s in shapes))
        out.append(wide[0] if wide else 1)
    return tuple(out)
