"""Codes as bytes, and elements of an axis in groups."""

from __future__ import annotations

import numpy as np


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
