"""Products of a few rows whose depth is shared by several programs (split-K), so that reading a weight of few columns still keeps
the whole chip at work: each adds up its part in memory, and a second kernel adds the parts in order. The same every time, unlike
atomics."""

from __future__ import annotations

from ingot.backends.triton.contraction import Epilogue
from ingot.backends.triton.flat import widening
from ingot.backends.triton.kernel import Grid, Kernel, Pointer, Temp, function
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.roots import opened
from ingot.backends.triton.term import Term
from ingot.ir.dims import Dim
from ingot.ir.types import f32

PROGRAMS = 384
"""So many programs keep a chip of some 130 processors at work."""
LEAST = 4
"""Fewest tiles in depth that a program is worth starting for."""
MOST = 8
"""Most programs along the depth: the parts are written and read once more."""
PARTS = Pointer("parts_ptr", "fp32", "temp", 0)
BLOCK = 256


def splits_of(tiles: int, steps: int) -> int:
    """Programs that share the depth of a product, where its columns make so many tiles, and its depth so many steps."""
    count = 1
    while count * tiles < PROGRAMS and 2 * count <= min(MOST, steps // LEAST):
        count *= 2
    return count


def parts_of(splits: int, rows: Dim, columns: Dim) -> Temp:
    """The memory between the two kernels."""
    return Temp((splits, rows, columns), f32)


def joining_kernel(outlined: Outlined, epilogue: Epilogue, *, splits: int, name: str, header: str) -> Kernel:
    """The kernel that adds the parts of every element of the product, with whatever follows behind."""
    made = opened(outlined)
    pull, line = made.pull, made.pull.source.line
    contraction = epilogue.contraction
    for word in ("m", "n", "split", PARTS.name, *(f"acc{i}" for i in range(len(epilogue.shifts)))):
        pull.source.names.take(word)
    line("n = device.program(0, WIDE) * BLOCK_N + tl.arange(0, BLOCK_N)")
    line(f"n_inside = n < {pull.dim(epilogue.columns).text}")
    line("m = device.program(1, WIDE)")
    n, m = pull.axis("n", "n", epilogue.columns, "n_inside"), pull.axis("m", "m", contraction.rows, None)
    rows, columns = pull.dim(contraction.rows).operand, pull.dim(contraction.columns).operand
    for i, shift in enumerate(epilogue.shifts):
        line(f"acc{i} = tl.zeros([BLOCK_N], tl.float32)")
        with pull.block("for split in tl.static_range(SPLITS):"):
            line(f"acc{i} += tl.load(parts_ptr + (split * {rows} + m) * {columns} + {pull.dim(n + shift).text}, mask=n_inside, "
                 "other=0)")
        pull.give(contraction.op.result, contraction.out(pull, 0, m, n + shift),
                  Term(f"acc{i}", f32, frozenset({"n"}), atomic=True))
    for root in made.roots:
        made.store(root, epilogue.index(pull, root, 0, m, n))
    body = pull.source.lines()
    pointers, sizes = made.pointers("\n".join(body), PARTS), tuple(pull.sizes)
    constants = {"BLOCK_N": BLOCK, "SPLITS": splits, "WIDE": 0}
    text = function(name, header=header, pointers=pointers, sizes=sizes, constants=constants, body=widening(sizes) + body)
    return Kernel(name, text, pointers, sizes, constants, Grid((((epilogue.columns, "BLOCK_N"),), ((contraction.rows, None),))))
