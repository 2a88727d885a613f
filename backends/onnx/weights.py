"""The weights file of an artifact: tensors one after the other, each materialised once, written and dropped."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from onnx import TensorProto

from ingot.backends.onnx.dtypes import PACKED, onnx_dtype
from ingot.ir.formats import pack_bits
from ingot.ir.types import DType, TensorType
from ingot.ir.weights import ArrayWeight, Weight

INLINE = 1024
"""Tensors of fewer bytes are stored in the graph itself, where shape inference can read them."""

CONSTANT = "constant"
"""Origin of the constants a lowering makes, which may be infinite on purpose."""

_LINE = 64


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in the weights file: `length` bytes from `offset`; sha256 in hex when it was asked for."""

    name: str
    type: TensorType
    offset: int
    length: int
    origin: str
    sha256: str | None = None


class WeightFile:
    """An open weights file. Tensors start on a cache line (64 bytes).

    A tensor added again under the same name, type and origin, by a second graph of the module, is not written twice.
    warn: called with a sentence for each tensor with NaN or infinite elements. sha256: whether digests are computed.
    """

    def __init__(self, path: Path, *, warn: Callable[[str], None] | None = None, sha256: bool = False) -> None:
        self.path = path
        self.tensors: dict[str, StoredTensor] = {}
        self._warn = warn or _warn
        self._sha256 = sha256
        self._file: BinaryIO = path.open("wb")
        self._written: dict[tuple[str, TensorType, str], StoredTensor] = {}

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def add(self, name: str, weight: Weight) -> TensorProto:
        """The initializer `name`: inline when small, else a reference to the bytes written now (or before)."""
        if weight.nbytes < INLINE:
            return TensorProto(name=name, data_type=onnx_dtype(weight.type.dtype), dims=weight.type.shape,
                               raw_data=self._bytes(name, weight).tobytes())
        stored = self.store(name, weight)
        return external(name, weight.type, self.path.name, stored.offset, stored.length)

    def store(self, name: str, weight: Weight) -> StoredTensor:
        """Writes a tensor of any size, unless it has been written before; returns where it lies."""
        source = str(id(weight.array)) if isinstance(weight, ArrayWeight) else weight.origin
        key = (name, weight.type, source)
        if key not in self._written:
            data = self._bytes(name, weight)
            offset = -(-self._file.tell() // _LINE) * _LINE
            self._file.write(bytes(offset - self._file.tell()))
            self._file.write(data.data)
            digest = hashlib.sha256(data.data).hexdigest() if self._sha256 else None
            unique, n = name, 1
            while unique in self.tensors:
                unique, n = f"{name}.{n}", n + 1
            stored = StoredTensor(unique, weight.type, offset, data.nbytes, weight.origin, digest)
            self._written[key] = self.tensors[unique] = stored
        return self._written[key]

    def _bytes(self, name: str, weight: Weight) -> np.ndarray:
        """The tensor as ONNX lays it out: row-major, little-endian, sub-byte elements packed over the whole tensor."""
        array = weight.materialize()
        if weight.type.dtype.is_float and weight.origin != CONSTANT:
            self._check(name, array)
        return packed(array, weight.type.dtype)

    def _check(self, name: str, array: np.ndarray) -> None:
        # The sum is finite almost always when all elements are, and needs no array of flags.
        with np.errstate(all="ignore"):
            if array.dtype.itemsize < 4 or not np.isfinite(np.sum(array)):
                bad = ~np.isfinite(array)
                if bad.any():
                    where = np.argwhere(bad)[0]
                    self._warn(f"weight {name} has {int(bad.sum()):,} elements that are not finite, the first is "
                               f"{array[tuple(where)]} at {where.tolist()}")


def external(name: str, type: TensorType, file: str, offset: int, length: int) -> TensorProto:
    """An initializer whose bytes lie in a file beside the graph."""
    proto = TensorProto(name=name, data_type=onnx_dtype(type.dtype), dims=type.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", file), ("offset", offset), ("length", length)):
        proto.external_data.add(key=key, value=str(value))
    return proto


def packed(array: np.ndarray, dtype: DType) -> np.ndarray:
    """The bytes (u8) of an array of element type `dtype` in an ONNX file."""
    flat = np.ascontiguousarray(array).reshape(-1)
    bits = PACKED.get(dtype.name)
    if bits is None:
        return flat.view(np.uint8)
    codes = flat.view(np.uint8) if flat.dtype.itemsize == 1 and dtype.is_float else flat.astype(np.int8).view(np.uint8)
    return pack_bits(codes & np.uint8((1 << bits) - 1), bits)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=2)
