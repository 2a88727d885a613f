"""Products of one row with a weight: bound by reading the weight, so every program reads whole rows of it."""

from __future__ import annotations

from ingot.backends.triton.contraction import Epilogue
from ingot.backends.triton.flat import widening
from ingot.backends.triton.kernel import Grid, Kernel, function
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.roots import Opened, opened
from ingot.backends.triton.term import Term
from ingot.backends.triton.words import Packed, decoded, element, packed_weight, read_words, within
from ingot.ir.dims import Dim
from ingot.ir.types import f32

LONGEST = 1024
"""Elements (or words) of a weight's row read at once."""


def gemv_kernel(outlined: Outlined, epilogue: Epilogue, *, name: str, header: str) -> Kernel:
    """The kernel that computes BLOCK_N outputs of one row at a time, in f32 on the general cores."""
    made = opened(outlined)
    packed = packed_weight(made, outlined, epilogue.contraction.op)
    _Row(made, epilogue, packed).write()
    body = made.pull.source.lines()
    pointers = made.pointers("\n".join(body), *(packed.pointers.values() if packed else ()))
    sizes = tuple(made.pull.sizes)
    depth = packed.words if packed else epilogue.contraction.depth
    along = min(LONGEST // (2 if packed else 1), 1 << (depth - 1).bit_length()) if isinstance(depth, int) else LONGEST
    constants = {"BLOCK_N": max(1, 4096 // along) if along < LONGEST else 4, "BLOCK_K": along, "WIDE": 0}
    text = function(name, header=header, pointers=pointers, sizes=sizes, constants=constants, body=widening(sizes) + body)
    grid = Grid((((epilogue.columns, "BLOCK_N"),), ((epilogue.contraction.rows, None),)))
    choices = tuple({"BLOCK_N": n, "BLOCK_K": k, "num_warps": w} for n in (1, 2, 4, 8, 16)
                    for k in (along, max(along // 2, 1)) for w in (2, 4, 8))
    return Kernel(name, text, pointers, sizes, constants, grid, {"num_warps": 4}, choices)


class _Row:
    """The lines of a product with one row."""

    def __init__(self, made: Opened, epilogue: Epilogue, packed: Packed | None) -> None:
        self.made, self.epilogue, self.packed = made, epilogue, packed
        self.pull, self.line = made.pull, made.pull.source.line
        self.contraction = epilogue.contraction

    def write(self) -> None:
        pull, line = self.pull, self.line
        for name in ("m", "n", "k", "start", "part", "code", "x", *(f"acc{i}" for i in range(4)), *(f"sum{i}" for i in range(4))):
            pull.source.names.take(name)
        line("n = device.program(0, WIDE) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]")
        line(f"n_inside = n < {pull.dim(self.epilogue.columns).text}")
        n = pull.axis("n", "n", self.epilogue.columns, "n_inside")
        line("m = device.program(1, WIDE)")
        m = pull.axis("m", "m", self.contraction.rows, None)
        accs = {shift: f"acc{i}" for i, shift in enumerate(self.epilogue.shifts)}
        for acc in accs.values():
            line(f"{acc} = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)")
        depth: Dim = self.packed.words if self.packed else self.contraction.depth
        with pull.block(f"for start in range(0, {pull.dim(depth).text}, BLOCK_K):"):
            line("k = start + tl.arange(0, BLOCK_K)[None, :]")
            line(f"k_inside = k < {pull.dim(depth).text}")
            k = pull.axis("k", "k", depth, "k_inside")
            if self.packed is None:
                self._plain(m, n, k, accs)
            else:
                self._packed(self.packed, m, n, k, accs)
        y = self.contraction.op.result
        for shift, acc in accs.items():
            total = pull.source.define("y", f"tl.sum({acc}, axis=1, keep_dims=True)")
            pull.give(y, self.contraction.out(pull, 0, m, n + shift), Term(total, f32, frozenset({"n"}), atomic=True))
        for root in self.made.roots:
            self.made.store(root, self.epilogue.index(pull, root, 0, m, n))

    def _plain(self, m: Dim, n: Dim, k: Dim, accs: dict[int, str]) -> None:
        pull = self.pull
        value, index = self.contraction.left(pull, 0, m, k)
        x = pull.at(value, index).to(f32)
        self.line(f"x = {x.text if x.padded else f'tl.where(k_inside, {x.text}, 0.0)'}")
        for shift, acc in accs.items():
            w = pull.at(*self.contraction.right(pull, 0, k, n + shift)).to(f32)
            self.line(f"{acc} += {w.operand} * x")

    def _packed(self, packed: Packed, m: Dim, n: Dim, k: Dim, accs: dict[int, str]) -> None:
        """Codes times x summed within a word, then the step once: all codes of a word share it."""
        pull, line = self.pull, self.line
        read = {shift: read_words(pull, packed, n + shift, k, "n_inside & k_inside") for shift in accs}
        sums = {shift: acc.replace("acc", "sum") for shift, acc in accs.items()}
        for name in sums.values():
            line(f"{name} = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)")
        with pull.block(f"for part in tl.static_range({packed.per}):"):
            at = element(pull, packed, k, pull.axis("part", "part", packed.per, None))
            value, index = self.contraction.left(pull, 0, m, at)
            line(f"x = {pull.at(value, index, within(pull, packed, at)).to(f32).text}")
            for shift, name in sums.items():
                line(f"code = {decoded(packed, read[shift])}")
                line(f"{name} += ({read[shift].number}) * x")
        for shift, acc in accs.items():
            line(f"{acc} += {sums[shift]} * {read[shift].step}")
