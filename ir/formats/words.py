"""Codes in 32-bit words, as the checkpoints of other tools store them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.ir.formats.packing import pack_bits, unpack_bits

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight codes comes first, second, ... in a word of AWQ's layout for 4 bits (AutoAWQ, `GEMM`)."""


def words_for(n: int, bits: int) -> int:
    """How many words n codes fill."""
    return -(-n * bits // 32)


def pack_words(codes: np.ndarray, bits: int, *, order: Sequence[int] | None = None) -> np.ndarray:
    """Codes [..., n] (u8) as words i32 [..., ceil(n * bits / 32)], the first code in the lowest bits of the first word.

    A code may lie across two words (3 bits). order: which of as many codes comes first, second, ... in each word.
    """
    if order is not None:
        codes = codes.reshape(*codes.shape[:-1], -1, len(order))[..., list(order)].reshape(codes.shape)
    packed = pack_bits(codes, bits)
    short = -packed.shape[-1] % 4
    if short:
        packed = np.concatenate([packed, np.zeros((*packed.shape[:-1], short), np.uint8)], -1)
    return np.ascontiguousarray(packed).view("<i4")


def unpack_words(words: np.ndarray, bits: int, n: int, *, order: Sequence[int] | None = None) -> np.ndarray:
    """The first n codes (u8) of each row of `pack_words`."""
    codes = unpack_bits(np.ascontiguousarray(words).view(np.uint8), bits, n)
    if order is None:
        return codes
    back = np.argsort(order)
    found: np.ndarray = codes.reshape(*codes.shape[:-1], -1, len(order))[..., back].reshape(codes.shape)
    return found
