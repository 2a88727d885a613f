"""Row kernels: every program computes some rows, reducing along them; long rows are walked in blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ingot.backends.triton.errors import NoKernel
from ingot.backends.triton.flat import widening
from ingot.backends.triton.index import flattened, unflattened
from ingot.backends.triton.kernel import Grid, Kernel, function
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.pull import Index, Pull
from ingot.backends.triton.roots import Opened, opened
from ingot.backends.triton.term import Term, literal, spelled, widened
from ingot.ir.dims import Dim, product
from ingot.ir.op import Op
from ingot.ir.ops.reduce import All_, Any_, Argmax, Argmin, ArgReduce, Max, Mean, Min, Reduce, Sum
from ingot.ir.types import DType, bool_, i32, i64

LONGEST = 8192
"""Longest row held in registers as a whole; longer ones, and those of unknown length, are walked in blocks."""
STEP = 2048
REDUCTIONS = (Sum, Mean, Max, Min, Any_, All_, Argmax, Argmin)


@dataclass(frozen=True)
class Rows:
    """How a tensor is seen as rows: the dims, which axes are walked (the row), which count rows."""

    dims: tuple[Dim, ...]
    walked: tuple[int, ...]

    @property
    def length(self) -> Dim:
        return product([self.dims[a] for a in self.walked])

    @property
    def count(self) -> Dim:
        return product([d for a, d in enumerate(self.dims) if a not in self.walked])

    def full(self, r: Dim, c: Dim, pull: Pull) -> Index:
        """The index of element c of row r."""
        kept = iter(unflattened(r, [d for a, d in enumerate(self.dims) if a not in self.walked], pull.bounds))
        along = iter(unflattened(c, [self.dims[a] for a in self.walked], pull.bounds))
        return tuple(next(along) if a in self.walked else next(kept) for a in range(len(self.dims)))


def rows_of(op: Op) -> Rows:
    """How a reduction sees its operand."""
    assert isinstance(op, Reduce | ArgReduce)
    axes = op.axis if isinstance(op.axis, tuple) else (op.axis,)
    return Rows(op.x.type.dims, tuple(sorted(a % op.x.type.rank for a in axes)))


def row_kernel(outlined: Outlined, *, name: str, header: str) -> Kernel:
    """The kernel of elementwise ops and reductions that all see the same rows. Raises NoKernel where they do not."""
    made = opened(outlined)
    reductions = [op for op in outlined.func.ops if isinstance(op, Reduce | ArgReduce)]
    if not reductions or not all(isinstance(op, REDUCTIONS) for op in reductions):
        raise NoKernel("no reduction that a kernel can do")
    seen = rows_of(reductions[0])
    if not seen.walked or any(rows_of(op) != seen for op in reductions):
        raise NoKernel("the reductions see different rows")
    length = seen.length
    whole = isinstance(length, int) and length <= LONGEST
    columns = _power(length) if isinstance(length, int) and whole else STEP
    per = max(1, min(16, 1024 // columns))
    body = _Writer(made, seen, whole=whole)
    for op in reductions:
        body.reduce(op)
    body.stores()
    lines = made.pull.source.lines()
    pointers, sizes = made.pointers("\n".join(lines)), tuple(made.pull.sizes)
    constants = {"ROWS": per, "COLS": columns, "WIDE": 0}
    text = function(name, header=header, pointers=pointers, sizes=sizes, constants=constants, body=widening(sizes) + lines)
    return Kernel(name, text, pointers, sizes, constants, Grid((((seen.count, "ROWS"),),)),
                  {"num_warps": 4 if per * columns <= 2048 else 8}, choices=tuple({"num_warps": n} for n in (2, 8, 16)))


def _power(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


class _Writer:
    """The phases of a row kernel: one per reduction, and the stores."""

    def __init__(self, made: Opened, seen: Rows, *, whole: bool) -> None:
        self.made, self.seen, self.whole = made, seen, whole
        self.pull, self.source = made.pull, made.pull.source
        self.row = self.source.names.take("row")
        inside = self.source.names.take("row_inside")
        self.source.line(f"{self.row} = device.program(0, WIDE) * ROWS + tl.arange(0, ROWS)[:, None]")
        self.r = self.pull.axis("row", self.row, seen.count, inside)
        self.source.line(f"{inside} = {self.row} < {self.pull.dim(seen.count).text}")
        self.c: Dim = 0
        if whole:
            self._columns("tl.arange(0, COLS)[None, :]")

    def _columns(self, text: str) -> None:
        variable = self.source.define("col", text)
        inside = self.source.names.take("col_inside")
        self.c = self.pull.axis("col", variable, self.seen.length, inside)
        self.source.line(f"{inside} = {variable} < {self.pull.dim(self.seen.length).text}")

    def _each(self, write: Callable[[], None]) -> None:
        """`write` for the row as a whole, or in a loop over its blocks."""
        if self.whole:
            write()
            return
        start = self.source.names.take("start")
        with self.pull.block(f"for {start} in range(0, {self.pull.dim(self.seen.length).text}, COLS):"):
            self._columns(f"{start} + tl.arange(0, COLS)[None, :]")
            write()

    @property
    def _inside(self) -> str:
        mask = self.pull.axes["col"].mask
        assert mask is not None
        return mask

    def reduce(self, op: Reduce | ArgReduce) -> None:
        if isinstance(op, ArgReduce):
            term = self._index_of(op)
        else:
            term = self._fold(op)
        axes = [i for a, i in enumerate(self.seen.full(self.r, 0, self.pull)) if op.keep or a not in self.seen.walked]
        self.pull.give(op.result, tuple(axes), self.pull.name(op.result.hint or op.name, term))

    def _fold(self, op: Reduce) -> Term:
        truth = isinstance(op, Any_ | All_)
        kind = i32 if truth else widened(op.x.type.dtype)
        if kind == bool_:
            raise NoKernel(f"{op.name} of bools")
        start, step, end = _how(op, kind)
        held: list[str] = []
        if not self.whole:
            held.append(self.source.define("acc", f"tl.full([ROWS, COLS], {start}, {spelled(kind)})"))

        def write() -> None:
            x = self.pull.at(op.x, self.seen.full(self.r, self.c, self.pull))
            x = (x if not truth else x.to(bool_)).to(kind)
            masked = f"tl.where({self._inside}, {x.text}, {start})"
            if self.whole:
                held.append(self.source.define("x", masked))
            elif step == "+":
                self.source.line(f"{held[0]} += {masked}")
            else:
                nan = ", propagate_nan=tl.PropagateNan.ALL" if kind.is_float else ""
                self.source.line(f"{held[0]} = tl.{step}({held[0]}, {masked}{nan})")

        self._each(write)
        text = f"{end}({held[0]})" if end.startswith("device") else f"{end}({held[0]}, axis=1, keep_dims=True)"
        term = Term(text, kind, frozenset({"row"}), atomic=True)
        if isinstance(op, Mean):
            count = self.pull.dim(self.seen.length)
            term = Term(f"{term.text} / {count.operand}", kind, term.axes)
        return term.to(bool_) if truth else term

    def _index_of(self, op: ArgReduce) -> Term:
        kind = widened(op.x.type.dtype)
        if kind == bool_ or not kind.is_float:
            raise NoKernel(f"{op.name} of {kind}")
        least = "-" if isinstance(op, Argmin) else ""
        held: list[str] = []
        if not self.whole:
            held.append(self.source.define("best", f'tl.full([ROWS, COLS], float("-inf"), {spelled(kind)})'))
            held.append(self.source.define("place", "tl.full([ROWS, COLS], 2147483647, tl.int32)"))

        def write() -> None:
            x = self.pull.at(op.x, self.seen.full(self.r, self.c, self.pull)).to(kind)
            column = self.pull.axes["col"].variable
            masked = f'tl.where({self._inside}, {least}{x.operand}, float("-inf"))'
            if self.whole:
                held.append(self.source.define("best", masked))
                held.append(self.source.define("place", f"tl.where({self._inside}, {column}, 2147483647)"))
            else:
                new = self.source.define("x", masked)
                better = self.source.define("better", f"device.beats({new}, {held[0]}) | "
                                                      f"(({held[1]} == 2147483647) & {self._inside})")
                self.source.line(f"{held[1]} = tl.where({better}, {column}, {held[1]})")
                self.source.line(f"{held[0]} = tl.where({better}, {new}, {held[0]})")

        self._each(write)
        return Term(f"device.first_top({held[0]}, {held[1]})", i64, frozenset({"row"}), atomic=True)

    def stores(self) -> None:
        total, count = product(self.seen.dims), self.seen.count
        wide = [root for root in self.made.roots if root.computed.type.size == total and total != count]
        narrow = [root for root in self.made.roots if root not in wide]
        for root in narrow:
            if root.computed.type.size != count:
                raise NoKernel("an output is neither a row nor a number per row")
            self.made.store(root, unflattened(self.r, root.computed.type.dims, self.pull.bounds))

        def write() -> None:
            full = self.seen.full(self.r, self.c, self.pull)
            for root in wide:
                dims = root.computed.type.dims
                index = full if dims == self.seen.dims else unflattened(flattened(full, self.seen.dims), dims, self.pull.bounds)
                self.made.store(root, index)

        if wide:
            self._each(write)


def _how(op: Reduce, kind: DType) -> tuple[str, str, str]:
    """Neutral element, how two tiles combine, how a tile ends."""
    if isinstance(op, Sum | Mean):
        return literal(0, kind), "+", "tl.sum"
    if isinstance(op, Any_):
        return "0", "maximum", "tl.max"
    if isinstance(op, All_):
        return "1", "minimum", "tl.min"
    edge = 1 << (kind.bits - 1)
    lowest, highest = (-edge, edge - 1) if kind.kind == "int" else (0, 2 * edge - 1)
    if isinstance(op, Max):
        return (literal(-math.inf, kind), "maximum", "device.top") if kind.is_float else (str(lowest), "maximum", "tl.max")
    return (literal(math.inf, kind), "minimum", "device.bottom") if kind.is_float else (str(highest), "minimum", "tl.min")
