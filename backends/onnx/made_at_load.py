"""Weights in a form that onnxruntime needs and that is larger than the stored one: made when a graph is loaded.

Bytes of codes are looked up in tables: 3-bit codes become the 4-bit ones of a kernel, e2m1 becomes integers, nf4 and fp8 become
floats. So the artifact stays as small as its formats, and no more than the result is ever in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from ingot.backends.onnx.weights import CONSTANT
from ingot.errors import IRError
from ingot.ir.formats import format_named
from ingot.ir.formats.scaling import dynamic_map
from ingot.ir.types import DTYPES, TensorType, u8
from ingot.ir.weights import ArrayWeight, Weight, call

Span = Callable[[str, Weight], list[int]]
"""Stores a tensor in the artifact, unless it is there; where it lies: first byte and number of bytes."""


@dataclass(frozen=True, eq=False)
class Named:
    """A weight and what it is called in the weights file."""

    name: str
    weight: Weight


@dataclass(frozen=True, eq=False)
class Plane:
    """Some bytes of each row of packed codes, and what each of them stands for: a table [256, several]."""

    bytes: int
    table: Named


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps by which looked up values are multiplied: one for each `group` of the k values of a row.

    scale: f32[rows, groups], or u8 that index `values` f32[256]; rows is one where all rows share them. tensor_scale, offset:
    see `ingot.ir.formats.steps`. zero: bytes of zero points u8[rows, m], each of which stands for a row of `zero_table`.
    """

    k: int
    group: int
    rows: int
    scale: Named
    values: Named | None = None
    tensor_scale: Named | None = None
    offset: Named | None = None
    zero: Named | None = None
    zero_table: Named | None = None


@dataclass(frozen=True, eq=False)
class LookedUp(Weight):
    """A tensor that the runtime makes of `packed` u8[n, m]: rows of what the planes' bytes stand for, added up.

    Without `steps` that is all, in u8; with them they are cut to k floats, multiplied, and laid out as f32[k, n].
    whole: the same numbers, for a file that holds them as they are.
    """

    type: TensorType
    whole: Weight
    packed: Named
    planes: tuple[Plane, ...]
    steps: Steps | None = None

    def materialize(self) -> np.ndarray:
        return self.whole.materialize()

    @property
    def origin(self) -> str:
        return self.whole.origin

    def entry(self, offset: int, span: Span) -> dict[str, Any]:
        """What the runtime is to write at `offset`; see `ingot.runtime.lookup`."""

        def at(named: Named) -> list[int]:
            return span(named.name, named.weight)

        made: dict[str, Any] = {"offset": offset, "n": self.packed.weight.type.shape[0], "packed": at(self.packed),
                                "planes": [{"bytes": p.bytes, "table": at(p.table)} for p in self.planes]}
        if (s := self.steps) is not None:
            parts = {f.name: getattr(s, f.name) for f in fields(s) if getattr(s, f.name) is not None}
            made["steps"] = {name: at(part) if isinstance(part, Named) else part for name, part in parts.items()}
        return made


def by_byte(table: np.ndarray, bits: int) -> np.ndarray:
    """What the codes in each byte stand for, [256, codes per byte], from what each code does."""
    codes = np.arange(256)[:, None] >> np.arange(0, 8, bits) & (1 << bits) - 1
    found: np.ndarray = table[codes % len(table)]
    return found


@dataclass(frozen=True, eq=False)
class Int8Rows(Weight):
    """An initializer of the graph for many rows, i8[k, n] or its scales f32[n]: the floats of `source`, rounded to int8."""

    type: TensorType
    source: LookedUp

    def materialize(self) -> np.ndarray:
        raise IRError(f"{self.source.packed.name} is rounded to int8 when the graph is loaded")

    @property
    def origin(self) -> str:
        return call("int8", key=self.source.packed.name)


@lru_cache
def values_of(name: str, *, centred: bool = True) -> Named:
    """What the codes of a format of 2, 4 or 8 bits stand for under step 1, by byte, f32[256, codes per byte].

    centred: without zero points; else what zero points are taken from.
    """
    fmt = format_named(name)
    table = fmt.table() if centred else np.arange(fmt.levels)
    return _named(f"{name}.{'values' if centred else 'codes'}", by_byte(table.astype(np.float32), fmt.bits))


@lru_cache
def three_bits(*, centred: bool) -> tuple[Named, Named]:
    """What bytes of the lower two bits f32[256, 4], and of the upper one f32[256, 8], of int3 codes stand for: `values_of`."""
    low, high = np.arange(4, dtype=np.float32) - (4 if centred else 0), np.array([0, 4], np.float32)
    return _named(f"int3.low.{'values' if centred else 'codes'}", by_byte(low, 2)), _named("int3.high.values", by_byte(high, 1))


@lru_cache
def scale_values(dtype: str) -> Named:
    """What 8-bit scales stand for, f32[256]: floats of 8 bits, or codes of `dynamic_map`."""
    table = dynamic_map() if dtype == u8.name else np.arange(256, dtype=np.uint8).view(DTYPES[dtype].numpy).astype(np.float32)
    return _named(f"{dtype}.scales", table)


@lru_cache
def integers_of_e2m1() -> Named:
    """Twice what codes of e2m1 stand for, above 128, by byte: u8[256, 2]."""
    return _named("e2m1.integers", by_byte((128 + 2 * format_named("fp4").table()).astype(np.uint8), 4))


@lru_cache
def nibbles_of_three_bits(*, middle: bool) -> tuple[Named, Named]:
    """Pairs of 4-bit codes by bytes of the lower two bits u8[256, 2], and of the upper one u8[256, 4], of 3-bit codes.

    middle: the sum is moved so that 8 is the middle code, as 4 was.
    """
    low = by_byte(np.arange(4, dtype=np.uint8) + np.uint8(4 if middle else 0), 2)
    high = by_byte(np.array([0, 4], np.uint8), 1)
    pairs = [(each[:, ::2] | each[:, 1::2] << 4).astype(np.uint8) for each in (low, high)]
    return _named(f"u3.low{'.middle' if middle else ''}", pairs[0]), _named("u3.high", pairs[1])


def _named(name: str, table: np.ndarray) -> Named:
    table = np.ascontiguousarray(table)
    table.flags.writeable = False
    return Named(name, ArrayWeight(table, CONSTANT))
