"""Tiles of a product on tensor cores, line by line: whatever is read in front, floats or codes, and stored behind."""

from __future__ import annotations

from ingot.backends.triton.coded import Coded
from ingot.backends.triton.contraction import Contraction, Epilogue
from ingot.backends.triton.index import quotient
from ingot.backends.triton.pull import Index
from ingot.backends.triton.pull_pointwise import aligned
from ingot.backends.triton.roots import Opened
from ingot.backends.triton.split import PARTS
from ingot.backends.triton.term import Term, spelled
from ingot.backends.triton.words import Packed, Words, element, within
from ingot.ir.dims import Dim
from ingot.ir.types import f32, i8
from ingot.ir.value import Value


class Tiled:
    """The lines of a tiled product.

    packed: how the weight is read where it is in codes, or was: decoded says that it lies in memory as `unpacking` left it.
    coded: the left operand, where codes are multiplied. splits: programs that share the depth, each of which stores its part.
    """

    def __init__(self, made: Opened, epilogue: Epilogue, packed: Packed | None, *, decoded: bool, coded: Coded | None,
                 splits: int) -> None:
        self.made, self.epilogue, self.packed, self.splits = made, epilogue, packed, splits
        self.decoded, self.coded = decoded, coded
        self.pull, self.source = made.pull, made.pull.source
        self.contraction: Contraction = epilogue.contraction
        self.kind = coded.kind if coded else self.contraction.dtype

    def write(self) -> None:
        pull, line = self.pull, self.source.line
        rows, columns = pull.dim(self.contraction.rows), pull.dim(self.epilogue.columns)
        for name in ("m", "n", "z", "k", "k_down", "start", "group", "code", "x", "w", "tensor", *(f"acc{i}" for i in range(4)),
                     *(("split", "width", PARTS.name) if self.splits > 1 else ())):
            self.source.names.take(name)
        line(f"row_tile, column_tile = device.tile(device.program(0, WIDE), tl.cdiv({rows.text}, BLOCK_M), "
             f"tl.cdiv({columns.text}, BLOCK_N), BAND)")
        z: Dim = 0
        if self.contraction.count != 1:
            line("z = device.program(1, WIDE)")
            z = pull.axis("z", "z", self.contraction.count, None)
        line("m = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]")
        line(f"m_inside = m < {rows.text}")
        m = pull.axis("m", "m", self.contraction.rows, "m_inside")
        line("n = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]")
        line(f"n_inside = n < {columns.text}")
        n = pull.axis("n", "n", self.epilogue.columns, "n_inside")
        accs = {shift: f"acc{i}" for i, shift in enumerate(self.epilogue.shifts)}
        for acc in accs.values():
            line(f"{acc} = tl.zeros([BLOCK_M, BLOCK_N], {self.coded.total if self.coded else 'tl.float32'})")
        if self.packed is None or self.decoded:
            self._loop(z, m, n, accs)
        else:
            self._packed_loop(self.packed, z, m, n, accs)
        if self.coded is not None and self.packed is not None:
            self._step(self.coded, self.packed, m, n, accs)
        if self.splits > 1:
            line(f"tl.store(parts_ptr + (split * {rows.operand} + m) * {columns.operand} + n, acc0, mask=m_inside & n_inside)")
            return
        y = self.contraction.op.result
        for shift, acc in accs.items():
            pull.give(y, self.contraction.out(pull, z, m, n + shift), Term(acc, f32, frozenset({"m", "n"}), atomic=True))
        for root in self.made.roots:
            self.made.store(root, self.epilogue.index(pull, root, z, m, n))

    def _loop(self, z: Dim, m: Dim, n: Dim, accs: dict[int, str]) -> None:
        pull, line = self.pull, self.source.line
        depth = pull.dim(self.contraction.depth)
        with pull.block(self._along(depth)):
            k = self._axis("k", "tl.arange(0, BLOCK_K)[None, :]", self.contraction.depth)
            down = self._axis("k_down", "tl.arange(0, BLOCK_K)[:, None]", self.contraction.depth)
            x = self._operand(*self._left(z, m, k), "m", "k")
            for shift, acc in accs.items():
                w = self._operand(*self.contraction.right(pull, z, down, n + shift), "k_down", "n")
                line(f"{acc} = {self._dot(x, w, acc)}")

    def _along(self, depth: Term) -> str:
        """The head of the loop over a program's part of the depth."""
        if self.splits == 1:
            return f"for start in range(0, {depth.text}, BLOCK_K):"
        line = self.source.line
        line("split = device.program(1, WIDE)")
        line(f"width = tl.cdiv(tl.cdiv({depth.text}, BLOCK_K), SPLITS) * BLOCK_K")
        return f"for start in range(split * width, tl.minimum({depth.text}, (split + 1) * width), BLOCK_K):"

    def _axis(self, name: str, span: str, bound: Dim) -> Dim:
        self.source.line(f"{name} = start + {span}")
        self.source.line(f"{name}_inside = {name} < {self.pull.dim(bound).text}")
        return self.pull.axis(name, name, bound, f"{name}_inside")

    def _operand(self, value: object, index: object, first: str, second: str) -> str:
        """A tile of an operand in the type it is multiplied in; where it was computed, nothing stands beyond the bounds."""
        pull = self.pull
        term = pull.at(value, index)  # type: ignore[arg-type]
        text = term.to(self.kind).text
        spread = pull.anchored(text, term.axes, frozenset({first, second})) if not {first, second} <= term.axes else text
        if not term.padded or spread != text:
            spread = f"tl.where({pull.mask(frozenset({first, second}))}, {spread}, 0.0).to({spelled(self.kind)})"
        return spread

    def _dot(self, x: str, w: str, acc: str) -> str:
        precise = ', input_precision="ieee"' if self.kind == f32 else ", out_dtype=tl.int32" if self.kind == i8 else ""
        return f"tl.dot({x}, {w}, {acc}{precise})"

    def _packed_loop(self, packed: Packed, z: Dim, m: Dim, n: Dim, accs: dict[int, str]) -> None:
        """Along words: each of their codes meets its own column of the left operand."""
        pull, line = self.pull, self.source.line
        with pull.block(self._along(pull.dim(packed.words))):
            across = self._axis("k", "tl.arange(0, BLOCK_K)[None, :]", packed.words)
            down = self._axis("k_down", "tl.arange(0, BLOCK_K)[:, None]", packed.words)
            words = Words(pull, packed, {shift: n + shift for shift in accs}, word=down,
                          block=quotient(down, packed.run, pull.bounds), mask="n_inside & k_down_inside")
            if self.coded is not None:
                with words.codes("", packed.per) as (part, text):
                    x = self._across(packed, z, m, across, part)
                    for shift, acc in accs.items():
                        line(f"{acc} = {self._dot(x, words.code(shift, text), acc)}")
                return
            with words.group() as (steps, zeros, first, count), words.codes(first, count) as (part, text):
                x = self._across(packed, z, m, across, part)
                for shift, acc in accs.items():
                    number = words.number(shift, text, zeros)
                    line(f"w = ({number} * ({steps[shift]}{words.scale(text)})).to({spelled(self.kind)})")
                    line(f"{acc} = {self._dot(x, 'w', acc)}")

    def _across(self, packed: Packed, z: Dim, m: Dim, word: Dim, part: Dim) -> str:
        """The columns of the left operand that meet code `part` of words."""
        at = element(self.pull, packed, word, part)
        value, index = self._left(z, m, at)
        return self.pull.at(value, index, within(self.pull, packed, at)).to(self.kind).text

    def _left(self, z: Dim, m: Dim, k: Dim) -> tuple[Value, Index]:
        value, index = self.contraction.left(self.pull, z, m, k)
        return (self.coded.codes if self.coded else value), index

    def _step(self, coded: Coded, packed: Packed, m: Dim, n: Dim, accs: dict[int, str]) -> None:
        """The sums of products of codes, times the step of the row and that of the column."""
        pull, line = self.pull, self.source.line
        row = self.contraction.left(pull, 0, m, 0)[1]
        step = pull.at(coded.step, aligned(row, coded.step)).to(f32)
        for shift, acc in accs.items():
            at = f"{packed.pointers['steps'].name} + {pull.dim(n + shift).text}"
            of = pull.source.define("steps", f"tl.load({at}, mask=n_inside, other=0)")
            line(f"{acc} = {acc}.to(tl.float32) * ({of} * {step.operand})")
