"""Quantised weights laid out for kernels: 32-bit words of codes, and their steps as narrow as they are stored.

A word holds codes of one block only, which is a group, or several where a group is too small to fill four words (16 bytes, what
a thread reads at once). Code s of word j of a block of b elements is the element s * b / per + j, with per = 32 / bits. So a
thread that reads four words needs one step for a run of codes, and what it multiplies them by lies in runs. Three-bit codes
take four bits. Steps of one byte are read four to a word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingot.ir.formats import Integer, format_named, grouped, steps
from ingot.ir.formats.grid import Minifloat

QUAD = 4
"""Words a thread reads at once."""


@dataclass(frozen=True)
class Form:
    """What a kernel wants of a quantised weight.

    part: words i32[n, k / per]; steps f32[n, groups], or i32[n, groups / 4] of bytes; zeros f32[n, groups] (the code that stands
    for zero); tensor f32[1] (what byte steps are multiplied by); table f32[levels] (what each code stands for). Groups are those
    of whole blocks. bytes: element type of steps that stay bytes, f8e4m3 or f8e8m0; empty where they are f32. sources: the
    outlined func's parameters it is made of: packed, scale, zero, tensor_scale, offset; -1 where there is none.
    """

    part: str
    format: str
    group: int
    sources: tuple[int, ...]
    bytes: str = ""

    @property
    def kind(self) -> str:
        """Its element type, as in a Triton signature."""
        return "i32" if self.part == "words" or (self.part == "steps" and self.bytes) else "fp32"

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """The shape of the array for a weight of so many rows and columns."""
        block = block_size(self.format, self.group)
        blocks = -(-columns // block)
        if self.part == "words":
            return rows, blocks * block * stored_bits(self.format) // 32
        if self.part in ("table", "tensor"):
            return (format_named(self.format).levels if self.part == "table" else 1,)
        groups = blocks * (block // self.group)
        return rows, -(-groups // 4) if self.part == "steps" and self.bytes else groups

    def make(self, packed: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None,
             tensor_scale: np.ndarray | None = None, offset: np.ndarray | None = None) -> np.ndarray:
        """The array, from the operands of `dequantize`."""
        if self.part == "words":
            return words(packed, self.format, self.group)
        if self.part == "table":
            table: np.ndarray = np.nan_to_num(format_named(self.format).table()).astype(np.float32)
            return table
        if self.part == "tensor":
            return np.asarray(1 if tensor_scale is None else tensor_scale, np.float32).reshape(1)
        rows, width = self.shape(*packed.shape)
        if self.part == "steps" and self.bytes:
            return _widened(_bytes(scale), rows, 4 * width).view(np.int32)
        array = zero if self.part == "zeros" else steps(scale, tensor_scale, offset)
        assert array is not None
        return _widened(array.astype(np.float32), rows, width)


def _widened(array: np.ndarray, rows: int, width: int) -> np.ndarray:
    """As many rows (where all share one) and columns (0 where there was none)."""
    wide = np.zeros((rows, width), array.dtype)
    wide[:, :array.shape[1]] = array
    return wide


def stored_bits(format: str) -> int:
    """Bits a code takes in a word."""
    bits = format_named(format).bits
    return 4 if bits == 3 else bits


def is_table(format: str) -> bool:
    """Whether codes are looked up; integers and floats are computed."""
    return not isinstance(format_named(format), Integer | Minifloat)


def fits_words(format: str, group: int) -> bool:
    """Whether whole words make up a group, or whole groups a block."""
    return block_size(format, group) % (32 // stored_bits(format)) == 0


def block_size(format: str, group: int) -> int:
    """Elements of a block: a group, or the elements of four words where whole groups make them up."""
    quad = QUAD * (32 // stored_bits(format))
    return quad if group < quad and quad % group == 0 and group % QUAD == 0 else group


def words(codes: np.ndarray, format: str, group: int) -> np.ndarray:
    """Codes [n, k] (any 8-bit array) as i32[n, blocks * block / per]; what a short last block lacks is code 0."""
    bits, block = stored_bits(format), block_size(format, group)
    per = 32 // bits
    raw = grouped(np.ascontiguousarray(_bytes(codes)), block)
    runs = raw.reshape(*raw.shape[:-1], per, block // per).astype(np.uint32)
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
