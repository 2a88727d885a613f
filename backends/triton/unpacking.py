"""Weights in codes decoded into memory, where so many rows meet them that decoding in every tile would take longer."""

from __future__ import annotations

from ingot.backends.triton.index import quotient
from ingot.backends.triton.kernel import Grid, Kernel, Pointer, function
from ingot.backends.triton.roots import Opened
from ingot.backends.triton.term import spelled, stored
from ingot.backends.triton.words import Packed, Words, element
from ingot.ir.dims import Dim
from ingot.ir.types import DType

BLOCK_N, BLOCK_K = 16, 64
"""Rows of the weight, and words of a row, that a program decodes."""


def decoded_pointer(kind: DType) -> Pointer:
    """The decoded weight [n, k]: memory between two kernels of a group."""
    return Pointer("decoded_ptr", stored(kind), "temp", 0)


def unpacking_kernel(made: Opened, packed: Packed, rows: Dim, kind: DType, *, name: str, header: str,
                     codes: bool = False) -> Kernel:
    """The kernel that writes a weight of so many rows in an element type, or its codes. made: a kernel begun, of which only this
    is used."""
    pull, line = made.pull, made.pull.source.line
    target = decoded_pointer(kind)
    for word in ("n", "k", "start", "group", "code", "tensor", target.name):
        pull.source.names.take(word)
    line("n = device.program(0, WIDE) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]")
    line(f"n_inside = n < {pull.dim(rows).text}")
    line("k = device.program(1, WIDE) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]")
    line(f"k_inside = k < {packed.words}")
    n, k = pull.axis("n", "n", rows, "n_inside"), pull.axis("k", "k", packed.words, "k_inside")
    words = Words(pull, packed, {0: n}, word=k, block=quotient(k, packed.run, pull.bounds), mask="n_inside & k_inside")

    def store(part: Dim, w: str) -> None:
        at = element(pull, packed, k, part)
        inside = f" & ({pull.dim(at).operand} < {packed.columns})" if packed.columns % packed.block else ""
        line(f"w = {w}")
        line(f"tl.store({target.name} + {pull.dim(n * packed.columns + at).text}, w, mask=n_inside & k_inside{inside})")

    if codes:
        with words.codes("", packed.per) as (part, text):
            store(part, words.code(0, text))
    else:
        with words.group() as (steps, zeros, first, count), words.codes(first, count) as (part, text):
            store(part, f"({words.number(0, text, zeros)} * ({steps[0]}{words.scale(text)})).to({spelled(kind)})")
    body, sizes = pull.source.lines(), tuple(pull.sizes)
    pointers = (*packed.pointers.values(), target)
    constants = {"BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K, "WIDE": 0}
    text = function(name, header=header, pointers=pointers, sizes=sizes, constants=constants, body=body)
    return Kernel(name, text, pointers, sizes, constants, Grid((((rows, "BLOCK_N"),), ((packed.words, "BLOCK_K"),))))
