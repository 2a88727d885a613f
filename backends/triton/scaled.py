"""Products of MXFP8 with MXFP4 for many rows: `tl.dot_scaled` takes codes and powers of two as they are.

It wants a weight's codes two to a byte along k, while in memory they lie in words that suit decoding (see `packing`). So the
words are laid out anew first, which reads and writes a quarter of what the decoded weight would take in bf16.
"""

from __future__ import annotations

from ingot.backends.triton.coded import SHARE, Scaled
from ingot.backends.triton.contraction import Epilogue
from ingot.backends.triton.index import quotient
from ingot.backends.triton.kernel import Grid, Kernel, function
from ingot.backends.triton.pull import Guard, Index
from ingot.backends.triton.roots import Opened
from ingot.backends.triton.tiled import Tiled
from ingot.backends.triton.unpacking import decoded_pointer
from ingot.backends.triton.words import Packed
from ingot.ir.dims import Dim
from ingot.ir.types import f8e4m3, u8

BLOCK_N, BLOCK_K = 16, 64
"""Rows of the weight, and blocks of a row, that a program lays out anew."""
WORDS = 4
"""Words of a block, before and after."""


def repacking_kernel(made: Opened, packed: Packed, rows: Dim, *, name: str, header: str) -> Kernel:
    """The kernel that writes the codes of a weight of so many rows as u8[rows, k / 2], the first of two in the lower bits. made:
    a kernel begun, of which only this is used.

    Code s of word j of a block is its element 4 * s + j, and becomes code 4 * (s % 2) + j of word s // 2.
    """
    pull, line = made.pull, made.pull.source.line
    target = decoded_pointer(u8)
    words = [f"word{j}" for j in range(WORDS)]
    for word in ("n", "k", "part", "packed", *words, target.name):
        pull.source.names.take(word)
    blocks = packed.words // WORDS
    line("n = device.program(0, WIDE) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]")
    line("k = device.program(1, WIDE) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]")
    line(f"inside = (n < {pull.dim(rows).text}) & (k < {blocks})")
    n, k = pull.axis("n", "n", rows, None), pull.axis("k", "k", blocks, None)
    first = pull.dim((n * blocks + k) * WORDS).text
    for j, word in enumerate(words):
        line(f"{word} = tl.load({packed.pointers['words'].name} + {first} + {j}, mask=inside, other=0)")
    with pull.block(f"for part in tl.static_range({WORDS}):"):
        line("packed = tl.zeros_like(word0)")
        for j, word in enumerate(words):
            line(f"packed |= (({word} >> (8 * part)) & 15) << {4 * j}")
            line(f"packed |= (({word} >> (8 * part + 4)) & 15) << {4 * j + 16}")
        line(f"tl.store({target.name}.to(tl.pointer_type(tl.int32)) + {first} + part, packed, mask=inside)")
    pointers, sizes = (packed.pointers["words"], target), tuple(pull.sizes)
    constants = {"BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K, "WIDE": 0}
    text = function(name, header=header, pointers=pointers, sizes=sizes, constants=constants, body=pull.source.lines())
    return Kernel(name, text, pointers, sizes, constants, Grid((((rows, "BLOCK_N"),), ((blocks, "BLOCK_K"),))))


class ScaledTiled(Tiled):
    """The lines of a tiled product of codes under powers of two, the weight's as `repacking_kernel` left them."""

    def __init__(self, made: Opened, epilogue: Epilogue, packed: Packed, scaled: Scaled) -> None:
        super().__init__(made, epilogue, packed, decoded=True, coded=None, splits=1)
        self.weight, self.scaled = packed, scaled

    def write(self) -> None:
        for name in ("n_down", "share", "w_at", "w_scale"):
            self.source.names.take(name)
        super().write()

    def _loop(self, z: Dim, m: Dim, n: Dim, accs: dict[int, str]) -> None:
        pull, line = self.pull, self.source.line
        columns, depth = pull.dim(self.epilogue.columns).text, self.weight.columns
        scales = f"{self.weight.pointers['steps'].name}.to(tl.pointer_type(tl.uint8))"
        pitch = 4 * self.weight.columns_of("steps")
        line("n_down = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]")
        down = pull.axis("n_down", "n_down", self.epilogue.columns, None)
        with pull.block(f"for start in range(0, {depth}, BLOCK_K):"):
            k = self._axis("k", "tl.arange(0, BLOCK_K)[None, :]", depth)
            line(f"share = start // {SHARE} + tl.arange(0, BLOCK_K // {SHARE})[None, :]")
            line(f"share_inside = share < {depth // SHARE}")
            share = pull.axis("share", "share", depth // SHARE, "share_inside")
            line("k_down = start // 2 + tl.arange(0, BLOCK_K // 2)[:, None]")
            pair = pull.axis("k_down", "k_down", depth // 2, None)
            x = pull.at(self.scaled.codes, (*self._row(m), quotient(k, SHARE, pull.bounds), k % SHARE)).to(f8e4m3)
            for i, (shift, acc) in enumerate(accs.items()):
                # For Blackwell Triton 3.6 fails where products share a tile of scales: each loads its own, in other words.
                own = (Guard(f"(share > -{i})", frozenset({"share"})),) if i else ()
                x_scale = pull.at(self.scaled.scale, (*self._row(m), share, 0), own)
                at, of = pull.dim((n + shift) * (depth // 2) + pair).text, pull.dim((down + shift) * pitch + share).text
                line(f"w_at = tl.load({decoded_pointer(u8).name} + {at}, mask=n_inside & (k_down < {depth // 2}), other=0)")
                line(f"w_scale = tl.load({scales} + {of}, mask=(n_down < {columns}) & share_inside, other=0)")
                line(f"{acc} = device.scaled_dot({x.text}, {x_scale.text}, w_at, w_scale, {acc})")

    def _row(self, m: Dim) -> Index:
        return self.contraction.left(self.pull, 0, m, 0)[1][:-1]
