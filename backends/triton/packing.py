"""Quantised weights laid out for kernels: 32-bit words of codes, one f32 step per group.

A word holds codes of one group only: code s of word j of a group of g is the element s * g / per + j, with per = 32 / bits.
So a thread that reads four words of a group of 32 four-bit codes (16 bytes) needs one step, and what it multiplies them by
lies in runs. Three-bit codes take four bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingot.ir.formats import Integer, format_named, grouped, steps


@dataclass(frozen=True)
class Form:
    """What a kernel wants of a quantised weight.

    part: words i32[n, k / per], steps f32[n, groups], zeros f32[n, groups] (the code that stands for zero) or table
    f32[levels] (what each code stands for). sources: the outlined func's parameters it is made of: packed, scale, zero,
    tensor_scale, offset; -1 where there is none.
    """

    part: str
    format: str
    group: int
    sources: tuple[int, ...]

    def make(self, packed: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None,
             tensor_scale: np.ndarray | None = None, offset: np.ndarray | None = None) -> np.ndarray:
        """The array, from the operands of `dequantize`."""
        if self.part == "words":
            return words(packed, self.format, self.group)
        if self.part == "table":
            table: np.ndarray = np.nan_to_num(format_named(self.format).table()).astype(np.float32)
            return table
        rows, columns = packed.shape[0], -(-packed.shape[1] // self.group)
        array = zero if self.part == "zeros" else steps(scale, tensor_scale, offset)
        assert array is not None
        return np.ascontiguousarray(np.broadcast_to(array.astype(np.float32), (rows, columns)))


def stored_bits(format: str) -> int:
    """Bits a code takes in a word."""
    bits = format_named(format).bits
    return 4 if bits == 3 else bits


def is_table(format: str) -> bool:
    """Whether codes are looked up; integers are computed."""
    return not isinstance(format_named(format), Integer)


def fits_words(format: str, group: int) -> bool:
    """Whether whole words make up a group."""
    return group % (32 // stored_bits(format)) == 0


def words(codes: np.ndarray, format: str, group: int) -> np.ndarray:
    """Codes [n, k] (any 8-bit array) as i32[n, groups * group / per]; what a short last group lacks is code 0."""
    bits = stored_bits(format)
    per = 32 // bits
    raw = grouped(np.ascontiguousarray(_bytes(codes)), group)
    runs = raw.reshape(*raw.shape[:-1], per, group // per).astype(np.uint32)
    shifts = (np.arange(per, dtype=np.uint32) * np.uint32(bits))[:, None]
    packed: np.ndarray = np.bitwise_or.reduce(runs << shifts, axis=-2)
    return packed.reshape(codes.shape[0], -1).view(np.int32)


def _bytes(codes: np.ndarray) -> np.ndarray:
    """The bit patterns of codes, one byte each."""
    if codes.dtype == np.uint8:
        return codes
    if codes.dtype.itemsize == 1 and codes.dtype.kind != "i" and codes.dtype.name.startswith("float"):
        return codes.view(np.uint8)
    return codes.astype(np.uint8)
