"""The table of quantised weight formats: how codes are chosen, what they decode to, what scales they carry.

A format groups `group` consecutive elements of the last axis under one scale. Integer formats decode to
`(code - zero) * scale` with unsigned codes; `zero` is 2^(bits - 1) unless a zero point is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingot.errors import IRError
from ingot.ir.types import DType, u2, u3, u4, u8


@dataclass(frozen=True)
class Format:
    """One quantised format. code: element type of the packed tensor; bits: per code; levels: 2^bits."""

    name: str
    code: DType

    @property
    def bits(self) -> int:
        return self.code.bits

    @property
    def levels(self) -> int:
        return 1 << self.bits

    @property
    def middle(self) -> int:
        """The code that decodes to zero when no zero point is stored."""
        return 1 << (self.bits - 1)

    def encode(self, w: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
        """Nearest codes (u8) of grouped w [..., groups, group] under scale and zero [..., groups, 1]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.rint(w / np.where(scale == 0, 1, scale)) + (self.middle if zero is None else zero)
        clipped: np.ndarray = np.clip(codes, 0, self.levels - 1).astype(np.uint8)
        return clipped

    def decode(self, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None) -> np.ndarray:
        """Values of codes [..., groups, group] in the float type of `scale`."""
        offset = self.middle if zero is None else zero.astype(scale.dtype)
        values: np.ndarray = (codes.astype(scale.dtype) - offset) * scale
        return values

    def table(self) -> np.ndarray:
        """What every code decodes to under scale 1 and no zero point, f64[levels]."""
        return self.decode(np.arange(self.levels, dtype=np.uint8), np.ones(1), None)


FORMATS: dict[str, Format] = {f.name: f for f in (
    Format("int8", u8), Format("int4", u4), Format("int3", u3), Format("int2", u2))}


def format_named(name: str) -> Format:
    """Raises IRError, listing the formats, for an unknown name."""
    if name not in FORMATS:
        raise IRError(f"unknown format {name}", hint=f"formats: {', '.join(FORMATS)}")
    return FORMATS[name]


def grouped(x: np.ndarray, group: int) -> np.ndarray:
    """[..., k] as [..., ceil(k / group), group], zero-padded at the end."""
    k = x.shape[-1]
    short = -k % group
    if short:
        x = np.concatenate([x, np.zeros((*x.shape[:-1], short), x.dtype)], -1)
    return x.reshape(*x.shape[:-1], -1, group)


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [..., n] (u8) as bytes [..., ceil(n * bits / 8)], the first code in the lowest bits, rows byte-aligned."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    if bits in (2, 4):
        per = 8 // bits
        rows = grouped(codes, per)
        shifts = np.arange(per, dtype=np.uint8) * np.uint8(bits)
        packed: np.ndarray = np.bitwise_or.reduce(rows << shifts, axis=-1)
        return packed
    spread = np.unpackbits(codes[..., None], axis=-1, bitorder="little")[..., :bits]
    return np.packbits(spread.reshape(*codes.shape[:-1], -1), axis=-1, bitorder="little")


def unpack_bits(packed: np.ndarray, bits: int, n: int) -> np.ndarray:
    """The first `n` codes of each row of `pack_bits`."""
    if bits == 8:
        return packed[..., :n]
    spread = np.unpackbits(packed, axis=-1, bitorder="little")[..., :n * bits]
    weights = (1 << np.arange(bits)).astype(np.uint8)
    codes: np.ndarray = (spread.reshape(*packed.shape[:-1], n, bits) * weights).sum(-1, dtype=np.uint8)
    return codes
