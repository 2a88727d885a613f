"""Products of one row with a weight: bound by reading the weight, so every program reads whole rows of it."""

from __future__ import annotations

from ingot.backends.triton.contraction import Epilogue
from ingot.backends.triton.flat import widening
from ingot.backends.triton.index import quotient, remainder
from ingot.backends.triton.kernel import Grid, Kernel, function
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.packing import is_table
from ingot.backends.triton.roots import Opened, opened
from ingot.backends.triton.term import Term
from ingot.backends.triton.words import Packed, Words, packed_weight, within
from ingot.ir.dims import Dim
from ingot.ir.types import f32

LONGEST = 1024
"""Elements of a weight's row read at once."""
QUADS = 128
"""The same in sets of words that a thread reads at once, where the weight is packed."""
REGISTERS = 128
"""Most registers of a thread where codes have 8 bits: told no bound, the assembler spills on Blackwell."""
PROGRAMS = 256
"""So many programs there are to be, where the columns are enough for it: each of a chip's processors has some."""


def gemv_kernel(outlined: Outlined, epilogue: Epilogue, *, name: str, header: str) -> Kernel:
    """The kernel that computes BLOCK_N outputs of one row at a time, in f32 on the general cores."""
    made = opened(outlined)
    packed = packed_weight(made, outlined, epilogue.contraction.op)
    _Row(made, epilogue, packed).write()
    body = made.pull.source.lines()
    pointers = made.pointers("\n".join(body), *(packed.pointers.values() if packed else ()))
    sizes = tuple(made.pull.sizes)
    depth = packed.words // packed.quad if packed else epilogue.contraction.depth
    longest = QUADS if packed else LONGEST
    along = min(longest, 1 << (depth - 1).bit_length()) if isinstance(depth, int) else longest
    whole = longest // along  # rows of which every thread reads 16 bytes
    # With two parts of a packed product, as many rows in all; fewer where codes are looked up, which takes more registers.
    rows = whole * ((4 if is_table(packed.form.format) else 8) // len(epilogue.shifts) if packed else 4)
    columns = epilogue.columns
    share = columns // PROGRAMS if isinstance(columns, int) else rows
    constants = {"BLOCK_N": 1 << (max(1, whole, min(rows, share)).bit_length() - 1), "BLOCK_K": along, "WIDE": 0}
    text = function(name, header=header, pointers=pointers, sizes=sizes, constants=constants, body=widening(sizes) + body)
    grid = Grid((((epilogue.columns, "BLOCK_N"),), ((epilogue.contraction.rows, None),)))
    choices = tuple({"BLOCK_N": n, "BLOCK_K": along, "num_warps": w} for n, w in ((1, 4), (2, 4), (4, 4), (8, 4), (16, 4), (8, 8),
                                                                                 (16, 8), (4, 2)))
    options = {"num_warps": 4} | ({"maxnreg": REGISTERS} if packed and packed.bits == 8 else {})
    return Kernel(name, text, pointers, sizes, constants, grid, options, choices)


class _Row:
    """The lines of a product with one row."""

    def __init__(self, made: Opened, epilogue: Epilogue, packed: Packed | None) -> None:
        self.made, self.epilogue, self.packed = made, epilogue, packed
        self.pull, self.line = made.pull, made.pull.source.line
        self.contraction = epilogue.contraction

    def write(self) -> None:
        pull, line = self.pull, self.line
        numbered = [f"{name}{i}" for name in ("acc", "sum") for i in range(4)]
        for name in ("m", "n", "k", "start", "i", "group", "code", "x", "tensor", *numbered):
            pull.source.names.take(name)
        places = "[None, :, None]" if self.packed else "[:, None]"
        line(f"n = device.program(0, WIDE) * BLOCK_N + tl.arange(0, BLOCK_N){places}")
        line(f"n_inside = n < {pull.dim(self.epilogue.columns).text}")
        n = pull.axis("n", "n", self.epilogue.columns, "n_inside")
        line("m = device.program(1, WIDE)")
        m = pull.axis("m", "m", self.contraction.rows, None)
        accs = {shift: f"acc{i}" for i, shift in enumerate(self.epilogue.shifts)}
        totals = self._plain(m, n, accs) if self.packed is None else self._packed(self.packed, m, n, accs)
        y = self.contraction.op.result
        for shift, total in totals.items():
            named = pull.source.define("y", total)
            pull.give(y, self.contraction.out(pull, 0, m, n + shift), Term(named, f32, frozenset({"n"}), atomic=True))
        for root in self.made.roots:
            self.made.store(root, self.epilogue.index(pull, root, 0, m, n))

    def _plain(self, m: Dim, n: Dim, accs: dict[int, str]) -> dict[int, str]:
        pull, line = self.pull, self.line
        depth = pull.dim(self.contraction.depth).text
        for acc in accs.values():
            line(f"{acc} = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)")
        with pull.block(f"for start in range(0, {depth}, BLOCK_K):"):
            line("k = start + tl.arange(0, BLOCK_K)[None, :]")
            line(f"k_inside = k < {depth}")
            k = pull.axis("k", "k", self.contraction.depth, "k_inside")
            value, index = self.contraction.left(pull, 0, m, k)
            x = pull.at(value, index).to(f32)
            line(f"x = {x.text if x.padded else f'tl.where(k_inside, {x.text}, 0.0)'}")
            for shift, acc in accs.items():
                w = pull.at(*self.contraction.right(pull, 0, k, n + shift)).to(f32)
                line(f"{acc} += {w.operand} * x")
        return {shift: f"tl.sum({acc}, axis=1, keep_dims=True)" for shift, acc in accs.items()}

    def _packed(self, packed: Packed, m: Dim, n: Dim, accs: dict[int, str]) -> dict[int, str]:
        """Codes times x summed within the words of a thread, then the step once: all of them share it.

        k counts sets of words, i the words of a set: a tile has three axes, so that a step is read once for a set. k comes
        first, for Triton lays neighbouring threads along the first of the axes that are not contiguous.
        """
        pull, line = self.pull, self.line
        sets, size, run = packed.words // packed.quad, packed.quad, packed.run // packed.quad
        line(f"i = tl.arange(0, {size})[None, None, :]")
        i = pull.axis("i", "i", size, None)
        for acc in accs.values():
            line(f"{acc} = tl.zeros([BLOCK_K, BLOCK_N, 1], tl.float32)")
        with pull.block(f"for start in range(0, {sets}, BLOCK_K):"):
            line("k = start + tl.arange(0, BLOCK_K)[:, None, None]")
            line(f"k_inside = k < {sets}")
            k = pull.axis("k", "k", sets, "k_inside")
            block = quotient(k, run, pull.bounds)
            words = Words(pull, packed, {shift: n + shift for shift in accs}, word=k * size + i, block=block,
                          mask="n_inside & k_inside")
            sums = {shift: acc.replace("acc", "sum") for shift, acc in accs.items()}
            with words.group() as (steps, zeros, first, count):
                for name in sums.values():
                    line(f"{name} = tl.zeros([BLOCK_K, BLOCK_N, {size}], tl.float32)")
                with words.codes(first, count) as (part, text):
                    at = block * packed.block + part * packed.run + remainder(k, run, pull.bounds) * size + i
                    value, index = self.contraction.left(pull, 0, m, at)
                    x = pull.at(value, index, within(pull, packed, at)).to(f32)
                    line(f"x = {x.operand}{words.scale(text)}")
                    for shift, name in sums.items():
                        line(f"{name} += {words.number(shift, text, zeros, bits='device.held()')} * x")
                for shift, acc in accs.items():
                    line(f"{acc} += tl.sum({sums[shift]}, axis=2, keep_dims=True) * {steps[shift]}")
        return {shift: f"tl.sum({acc}, axis=0, keep_dims=True)" for shift, acc in accs.items()}
