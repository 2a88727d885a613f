"""Weights as handles: nothing is read before `materialize`, and every handle says where its numbers come from."""

from __future__ import annotations

import json
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ingot.errors import CheckpointError, IRError
from ingot.ir.types import DType, TensorType, bf16, bool_, dtype_of, f8e4m3, f8e5m2, f16, f32, f64, i8, i16, i32, i64, u8

SAFETENSORS_DTYPES: dict[str, DType] = {
    "F64": f64, "F32": f32, "F16": f16, "BF16": bf16, "F8_E4M3": f8e4m3, "F8_E5M2": f8e5m2,
    "I64": i64, "I32": i32, "I16": i16, "I8": i8, "U8": u8, "BOOL": bool_,
}


LONGEST_HEADER, MOST_AXES = 100_000_000, 32
"""Of a safetensors file, as its own library limits the first; more axes than torch or numpy have are a mistake."""


class Weight(ABC):
    """A handle on a constant tensor of integer dims."""

    type: TensorType

    @abstractmethod
    def materialize(self) -> np.ndarray:
        """The array: shape as in `type`, numpy dtype `type.dtype.numpy`. Callers must not write to it."""

    def wide(self) -> np.ndarray:
        """The array with floats of more than 8 bits as float64, the precision exact passes are judged in."""
        return _float64(self.materialize(), self.type)

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the numbers come from, as it stands in a dump."""

    @property
    def nbytes(self) -> int:
        """Bytes of the packed tensor in an artifact; sub-byte rows (last axis) start on whole bytes."""
        *rows, last = self.type.shape or (1,)
        return math.prod(rows) * ((last * self.type.dtype.bits + 7) // 8)


def call(name: str, /, **fields: object) -> str:
    """`name(key="value", n=1)` as origins are printed."""
    return f"{name}({', '.join(f'{k}={json.dumps(v)}' for k, v in fields.items() if v is not None)})"


@dataclass(frozen=True)
class FileWeight(Weight):
    """A tensor inside a safetensors file, read through a memory map."""

    path: Path
    key: str
    type: TensorType

    def materialize(self) -> np.ndarray:
        array = self.read()
        bad = first_not_finite(array)
        if bad is not None:
            number = float(array[bad])
            warnings.warn(f"{self.path.name}: {self.key} is {number} at {list(bad)}, and maybe elsewhere", stacklevel=2)
        return array

    def read(self) -> np.ndarray:
        """The array as `materialize` gives it, without a look at its numbers."""
        entry = header(self.path).get(self.key)
        if entry is None or entry.type != self.type:
            found = "is not in this file" if entry is None else f"has type {entry.type} in this file, not {self.type}"
            raise CheckpointError(f"tensor {self.key} {found}", where=str(self.path),
                                  hint="the checkpoint was changed after it was imported")
        start, stop = entry.span
        return _mapped(self.path, start, stop).view(self.type.dtype.numpy).reshape(self.type.shape)

    @property
    def origin(self) -> str:
        return call("safetensors", file=self.path.name, key=self.key)


_EXPONENT = {"f32": (np.uint32, 0x7F800000), "f16": (np.uint16, 0x7C00), "bf16": (np.uint16, 0x7F80)}


def first_not_finite(array: np.ndarray) -> tuple[int, ...] | None:
    """Index of the first NaN or infinity of an f32, f16 or bf16 array, from the bits alone; None where there is none."""
    name = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(array.dtype.name)
    if name is None:
        return None
    kind, mask = _EXPONENT[name]
    flat = np.ascontiguousarray(array).reshape(-1).view(kind)
    step = 1 << 20
    for start in range(0, flat.size, step):
        bad = (flat[start:start + step] & kind(mask)) == mask
        if bad.any():
            return tuple(int(i) for i in np.unravel_index(start + int(bad.argmax()), array.shape))
    return None


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors header; `span` is its byte range in the file."""

    type: TensorType
    span: tuple[int, int]


def header(path: Path) -> Mapping[str, Entry]:
    """The tensors of a safetensors file, from its header alone.

    Raises CheckpointError for a truncated file, a broken header, or an element type ingot does not know.
    """
    return _header(path, _stamp(path))


@lru_cache(maxsize=256)
def _header(path: Path, stamp: Stamp) -> Mapping[str, Entry]:
    size = stamp[0]
    try:
        with path.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if length > LONGEST_HEADER and length <= size - 8:
                raise CheckpointError(f"this is not a safetensors file (a header of {length:,} bytes)", where=str(path))
            if size < 8 or length > size - 8:
                raise CheckpointError(f"the file ends inside its header ({size} bytes)", where=str(path),
                                      hint="download it again; nothing was written")
            table = json.loads(f.read(length))
    except OSError as error:
        raise _unreadable(path, error) from None
    except (ValueError, RecursionError):
        raise CheckpointError("this is not a safetensors file (unreadable header)", where=str(path)) from None
    if not isinstance(table, dict):
        raise CheckpointError("this is not a safetensors file (malformed header)", where=str(path))
    return {key: _entry(path, key, item, 8 + length, size) for key, item in table.items() if key != "__metadata__"}


def _entry(path: Path, key: str, item: Any, begin: int, size: int) -> Entry:
    """One entry of a header whose data starts at byte `begin` of a file of `size` bytes."""
    try:
        name, shape, (first, last) = str(item["dtype"]), tuple(item["shape"]), item["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, first, last)) or len(shape) > MOST_AXES:
            raise TypeError
        if math.prod(n for n in shape if n) >= 1 << 59:  # numpy counts an axis of no elements as one
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"this is not a safetensors file (malformed entry {key})", where=str(path)) from None
    if name not in SAFETENSORS_DTYPES:
        raise CheckpointError(f"tensor {key} has element type {name}, which is not supported", where=str(path))
    type_ = TensorType(SAFETENSORS_DTYPES[name], shape)
    start, stop = begin + first, begin + last
    if stop > size:
        raise CheckpointError(f"truncated: {key} ends at byte {stop:,} but the file has {size:,}", where=str(path),
                              hint="download it again; nothing was written")
    if stop - start != math.prod(shape) * type_.dtype.bits // 8:
        raise CheckpointError(f"the header gives {key} {stop - start} bytes, its shape needs another number", where=str(path))
    return Entry(type_, (start, stop))


Stamp = tuple[int, int, int]
"""Size, modification time (ns) and inode: a file written anew is read anew."""


def _stamp(path: Path) -> Stamp:
    try:
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    if isinstance(error, FileNotFoundError):
        return CheckpointError("no such file", where=str(path), hint="the checkpoint is incomplete: fetch this file")
    return CheckpointError(f"cannot be read: {error.strerror or error}", where=str(path))


def _mapped(path: Path, start: int, stop: int) -> np.ndarray:
    """Some bytes of a file. A map of their own, so that their pages leave memory with the array."""
    if start == stop:
        return np.zeros(0, np.uint8)
    try:
        return np.memmap(path, dtype=np.uint8, mode="r", offset=start, shape=(stop - start,))
    except OSError as error:
        raise _unreadable(path, error) from None


@dataclass(frozen=True, eq=False)
class ArrayWeight(Weight):
    """A tensor held in memory: small constants, buffers of a traced module.

    dtype: the element type, where several are held as one numpy dtype (u3 codes lie in uint8 arrays).
    """

    array: np.ndarray
    source: str | None = None
    dtype: DType | None = None

    @cached_property
    def type(self) -> TensorType:  # type: ignore[override]
        if self.dtype is not None and self.dtype.numpy != self.array.dtype:
            raise IRError(f"{self.dtype} is held as {self.dtype.numpy}, the array is {self.array.dtype}")
        return TensorType(self.dtype or dtype_of(self.array.dtype), tuple(self.array.shape))

    def materialize(self) -> np.ndarray:
        return self.array

    @property
    def origin(self) -> str:
        if self.source is not None:
            return self.source
        if self.array.size <= 64:
            return f"dense({dense_text(self.array)})"
        return call("memory")


@dataclass(frozen=True, eq=False)
class DerivedWeight(Weight):
    """`fn` of other weights' arrays, computed when asked for.

    fn: pure; takes the inputs' arrays in order. source names the pass and the key it was made from.
    exact: fn is plain arithmetic that gives float64 for float64, so that `wide` rounds nowhere; otherwise fn makes the
    declared element type itself. reads: weights that fn reads itself, for those who ask what the numbers are made from.
    """

    type: TensorType
    fn: Callable[..., np.ndarray]
    inputs: tuple[Weight, ...]
    source: str
    exact: bool = False
    reads: tuple[Weight, ...] = ()

    def materialize(self) -> np.ndarray:
        array = np.asarray(self.fn(*(w.materialize() for w in self.inputs)))
        if self.exact:
            array = array.astype(self.type.dtype.numpy, copy=False)
        expected = tuple(self.type.dims)
        if array.shape != expected or array.dtype != self.type.dtype.numpy:
            raise IRError(f"{self.source} made {array.dtype}{list(array.shape)}, declared {self.type}")
        return array

    def wide(self) -> np.ndarray:
        if not self.exact:
            return super().wide()
        return _float64(np.asarray(self.fn(*(w.wide() for w in self.inputs))), self.type)

    @property
    def origin(self) -> str:
        return self.source


def _float64(array: np.ndarray, type: TensorType) -> np.ndarray:
    return array.astype(np.float64, copy=False) if type.dtype.is_float and type.dtype.bits > 8 else array


def derived(name: str, fn: Callable[..., np.ndarray], *inputs: Weight, type: TensorType, key: str,
            exact: bool = False) -> DerivedWeight:
    """A DerivedWeight whose origin prints as `computed(pass=name, key=key)`."""
    return DerivedWeight(type, fn, inputs, call("computed", **{"pass": name, "key": key}), exact)


class _Together:
    """Arrays computed in one go: kept from the first request until each was handed out once."""

    def __init__(self, fn: Callable[..., tuple[np.ndarray, ...]], inputs: tuple[Weight, ...], parts: int) -> None:
        self.fn = fn
        self.inputs = inputs
        self.parts = parts
        self.ready: dict[int, np.ndarray] = {}

    def take(self, index: int) -> np.ndarray:
        if index not in self.ready:
            made = self.fn(*(w.materialize() for w in self.inputs))
            self.ready = dict(zip(range(self.parts), made, strict=True))
        return self.ready.pop(index)


def derived_together(name: str, fn: Callable[..., tuple[np.ndarray, ...]], *inputs: Weight, types: Mapping[str, TensorType],
                     key: str) -> dict[str, Weight]:
    """Several weights that one computation yields (codes and scales, say), by part. `fn` returns them in that order.

    Each prints as `computed(pass=name, key=key.part)`."""
    together = _Together(fn, inputs, len(types))

    def part(index: int) -> Callable[[], np.ndarray]:
        return lambda: together.take(index)

    return {p: DerivedWeight(type, part(i), (), call("computed", **{"pass": name, "key": f"{key}.{p}"}), reads=inputs)
            for i, (p, type) in enumerate(types.items())}


@dataclass(frozen=True)
class UnknownWeight(Weight):
    """A weight known by type and origin only, as read from a dump, which never carries tensor bytes."""

    type: TensorType
    source: str

    def materialize(self) -> np.ndarray:
        raise IRError(f"the numbers of {self.source} are not in the dump",
                      hint="give the checkpoint or the artifact instead of the .ir text, or use it only to rewrite text")

    @property
    def origin(self) -> str:
        return self.source


def dense_text(array: np.ndarray) -> str:
    """Nested lists of a small array, floats by repr."""
    if array.ndim:
        return f"[{', '.join(dense_text(row) for row in array)}]"
    value = array.item()
    if isinstance(value, float):
        return _shortest(value, array.dtype)
    return ("true" if value else "false") if isinstance(value, bool) else repr(value)


def _shortest(value: float, dtype: np.dtype) -> str:
    """The shortest decimal that rounds to `value` in a float type: 0.1 for the float32 nearest to it."""
    for digits in range(1, 17):
        text = repr(float(f"{value:.{digits}g}"))
        with np.errstate(over="ignore"):
            if float(np.float64(text).astype(dtype)) == value:
                return text
    return repr(value)
