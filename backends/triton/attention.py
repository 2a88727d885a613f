"""Attention: an online softmax over blocks of keys (FlashAttention-2, Dao 2023, algorithm 1), and its split form for decoding
(Flash-Decoding, Dao et al. 2023): several programs share the keys of one query, and a second kernel joins their parts.

The rows of a program are the query heads of one key head (Ainslie et al. 2023) times the query positions, so that grouped
heads fill a tile even when one token is decoded. Where positions are given, only keys up to the last one seen are read.
"""

from __future__ import annotations

from ingot.backends.triton.errors import NoKernel
from ingot.backends.triton.flat import widening
from ingot.backends.triton.index import quotient, remainder, unflattened
from ingot.backends.triton.kernel import Grid, Kernel, Pointer, Temp, Variant, function
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.pull import Index
from ingot.backends.triton.pull_pointwise import aligned
from ingot.backends.triton.roots import Opened, opened
from ingot.backends.triton.term import Term, spelled
from ingot.ir.dims import Dim
from ingot.ir.ops.attention import Attention
from ingot.ir.types import bf16, f16, f32

SPLITS: tuple[tuple[int, int], ...] = ((16, 64), (64, 16), (256, 4))
"""Programs that share the keys of one query when few are decoded, by the most key heads of all sequences: some hundred programs
are at work, of which a chip runs several at once on each of its processors. Beyond, there is work enough."""
SPLIT_ROWS = 64
"""Most rows per key head for which keys are split."""


def attention_variants(outlined: Outlined, op: Attention, *, name: str, header: str) -> tuple[Variant, ...]:
    """Split over keys for a few queries, in one pass for many."""
    heads, groups = op.heads
    rows, all_groups = op.q.type.dims[2] * (heads // groups), op.q.type.dims[0] * groups
    variants = []
    for most, splits in SPLITS:
        parts = Temp((all_groups, splits, rows, _integer(op.v.type.dims[3])), f32)
        sums = Temp((all_groups, splits, rows, 2), f32)
        split = _Attention(outlined, op, splits=splits).kernel(f"{name}_split", header)
        join = _joining(outlined, op, f"{name}_join", header, splits=splits)
        variants.append(Variant((split, join), (parts, sums), ((rows, SPLIT_ROWS), (all_groups, most))))
    return *variants, Variant((_Attention(outlined, op, splits=0).kernel(name, header),))


def _integer(dim: Dim) -> int:
    if not isinstance(dim, int):
        raise NoKernel("attention over a head size known only at run time")
    return dim


def _power(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


class _Rows:
    """What both kernels share: which rows of which heads a program has."""

    def __init__(self, outlined: Outlined, op: Attention) -> None:
        self.op = op
        self.made: Opened = opened(outlined)
        self.pull, self.source = self.made.pull, self.made.pull.source
        self.line = self.source.line
        heads, self.groups = op.heads
        self.repeat = heads // self.groups
        self.steps = op.q.type.dims[2]
        self.count = self.steps * self.repeat
        self.width = _integer(op.v.type.dims[3])
        for word in ("row", "head", "d", "e", "t", "t_down", "d_down", "start", "top", "total", "acc", "split", "first", "last",
                     "scores", "weights", "seen", "fade", "higher", "y"):
            self.source.names.take(word)

    def begin(self) -> None:
        pull, line = self.pull, self.line
        line("row = device.program(0, WIDE) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]")
        line(f"row_inside = row < {pull.dim(self.count).text}")
        line("head = device.program(1, WIDE)")
        line("e = tl.arange(0, BLOCK_E)[None, :]")
        line(f"e_inside = e < {self.width}")
        self.row = pull.axis("row", "row", self.count, "row_inside")
        self.head = pull.axis("head", "head", self.op.q.type.dims[0] * self.groups, None)
        self.e = pull.axis("e", "e", self.width, "e_inside")
        self.b, self.g = unflattened(self.head, (self.op.q.type.dims[0], self.groups), pull.bounds)
        self.h = self.g * self.repeat + quotient(self.row, self.steps, pull.bounds)
        self.s = remainder(self.row, self.steps, pull.bounds)

    def part(self, split: str) -> str:
        """Where the partial results of a row lie, counted in rows."""
        count = self.pull.dim(self.count).operand
        return f"(head * SPLITS + {split}) * {count} + row"

    def finish(self) -> None:
        """From `acc`, `total` and `top` to what is stored."""
        pull, line = self.pull, self.line
        if self.op.sinks is not None:
            sink = pull.at(self.op.sinks, (self.h,)).to(f32).text
            line(f"higher = tl.maximum(top, {sink})")
            line("fade = tl.exp(top - higher)")
            line(f"total = total * fade + tl.exp({sink} - higher)")
            line("acc = acc * fade")
        line("y = acc / tl.where(total == 0.0, 1.0, total)")
        index: Index = (self.b, self.h, self.s, self.e)
        pull.give(self.op.result, index, Term("y", f32, frozenset({"row", "e", "head"}), atomic=True))
        for root in self.made.roots:
            if root.computed.type.dims != self.op.result.type.dims:
                raise NoKernel("what follows attention has another shape")
            self.made.store(root, index)

    def built(self, name: str, header: str, *, more: tuple[Pointer, ...], stores: bool, constants: dict[str, int],
              options: dict[str, int], splits: int, choices: tuple[dict[str, int], ...] = ()) -> Kernel:
        body = self.source.lines()
        pointers = self.made.pointers("\n".join(body), *more)
        if not stores:
            pointers = tuple(p for p in pointers if p.role != "out")
        sizes = tuple(self.pull.sizes)
        shared = {"SPLITS": splits} if splits else {}
        constants = {"BLOCK_M": 16, **constants, "BLOCK_E": _power(self.width), **shared, "WIDE": 0}
        text = function(name, header=header, pointers=pointers, sizes=sizes, constants=constants, body=widening(sizes) + body)
        heads: Dim = self.op.q.type.dims[0] * self.groups
        axes: tuple[tuple[tuple[Dim, str | None], ...], ...] = (((self.count, "BLOCK_M"),), ((heads, None),))
        return Kernel(name, text, pointers, sizes, constants, Grid((*axes, ((splits, None),)) if splits and not stores else axes),
                      options, choices)


_SPLIT = tuple({"BLOCK_T": t, "num_warps": w} for t in (32, 64, 128) for w in (2, 4))
_WHOLE = tuple({"BLOCK_M": m, "BLOCK_T": t, "num_warps": w}
               for m, t, w in ((64, 64, 4), (128, 64, 8), (128, 128, 8), (64, 128, 8), (64, 32, 4)))
PARTS = (Pointer("parts_ptr", "fp32", "temp", 0), Pointer("sums_ptr", "fp32", "temp", 1))


class _Attention(_Rows):
    """The kernel over keys."""

    def __init__(self, outlined: Outlined, op: Attention, *, splits: int) -> None:
        super().__init__(outlined, op)
        self.splits = splits
        if op.q.type.dtype.bits > 32:
            raise NoKernel(f"attention in {op.q.type.dtype}")
        self.kind = op.q.type.dtype if op.q.type.dtype in (bf16, f16) else f32
        self.depth = _integer(op.q.type.dims[3])
        self.page = next(iter(outlined.paged.values()), 0)

    def kernel(self, name: str, header: str) -> Kernel:
        pull, line = self.pull, self.line
        self.begin()
        line("d = tl.arange(0, BLOCK_D)[None, :]")
        line(f"d_inside = d < {self.depth}")
        line("d_down = tl.arange(0, BLOCK_D)[:, None]")
        line(f"d_down_inside = d_down < {self.depth}")
        d = pull.axis("d", "d", self.depth, "d_inside")
        down = pull.axis("d_down", "d_down", self.depth, "d_down_inside")
        q = pull.at(self.op.q, (self.b, self.h, self.s, d)).to(self.kind)
        query = q.text if q.padded else f"tl.where(row_inside & d_inside, {q.text}, 0.0).to({spelled(self.kind)})"
        line(f"query = {query}")
        self._bounds()
        line('top = tl.full([BLOCK_M, 1], float("-inf"), tl.float32)')
        line("total = tl.zeros([BLOCK_M, 1], tl.float32)")
        line("acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)")
        with pull.block("for start in range(first, last, BLOCK_T):"):
            self._block(down)
        if self.splits:
            at = self.part("split")
            line("split = device.program(2, WIDE)")
            line(f"tl.store(parts_ptr + ({at}) * {self.width} + e, acc, mask=row_inside & e_inside)")
            line(f"tl.store(sums_ptr + ({at}) * 2, top, mask=row_inside)")
            line(f"tl.store(sums_ptr + ({at}) * 2 + 1, total, mask=row_inside)")
        else:
            self.finish()
        wide = self.kind == f32 or max(self.depth, self.width) > 128
        rows = 16 if self.splits else 32 if wide else 64
        # A block of keys lies in one page.
        most = self.page or 128
        constants = {"BLOCK_M": rows, "BLOCK_T": min(32 if wide else 64, most), "BLOCK_D": _power(self.depth)}
        return self.built(name, header, more=PARTS if self.splits else (), stores=not self.splits, splits=self.splits,
                          constants=constants,
                          # The rotation of a large tile of queries, drawn in, wants registers: twice the threads have them.
                          options={"num_warps": 4 if wide or self.splits else 8, "num_stages": 2},
                          choices=() if wide else tuple(c for c in (_SPLIT if self.splits else _WHOLE) if c["BLOCK_T"] <= most))

    def _bounds(self) -> None:
        """The range of keys anyone here may see: positions say so, where they are known."""
        pull, line, op = self.pull, self.line, self.op
        keys = pull.dim(op.k.type.dims[2])
        at = pull.dim(self.s) if op.pos is None else pull.at(op.pos, (0 if op.pos.type.dims[0] == 1 else self.b, self.s))
        line(f"at = ({at.text}).to(tl.int32)" if op.pos is not None else f"at = {at.text}")
        line("first = 0")
        line(f"last = {keys.text} + 0 * head")
        if op.causal:
            line("last = tl.minimum(last, tl.max(tl.where(row_inside, at, -1)) + 1).to(tl.int32)")
        elif op.window is not None:
            line(f"last = tl.minimum(last, tl.max(tl.where(row_inside, at, -1)) + {op.window}).to(tl.int32)")
        if op.window is not None:
            line(f"first = tl.maximum(tl.min(tl.where(row_inside, at, 2147483647)) - {op.window - 1}, 0).to(tl.int32)")
            if self.page:
                line("first = first // BLOCK_T * BLOCK_T")
        if self.splits:
            line("width = tl.cdiv(tl.cdiv(last - first, SPLITS), BLOCK_T) * BLOCK_T")
            line("first = first + tl.program_id(2) * width")
            line("last = tl.minimum(last, first + width)")

    def _block(self, down: Dim) -> None:
        """One block of keys."""
        pull, line, op = self.pull, self.line, self.op
        keys = op.k.type.dims[2]
        start = pull.axis("start", "start", keys, None) if self.page else None
        line("t = start + tl.arange(0, BLOCK_T)[None, :]")
        line("t_inside = t < last")
        line("t_down = start + tl.arange(0, BLOCK_T)[:, None]")
        line("t_down_inside = t_down < last")
        t = pull.axis("t", "t", keys, "t_inside", start=start)
        t_down = pull.axis("t_down", "t_down", keys, "t_down_inside", start=start)
        k = self._tile_of(pull.at(op.k, (self.b, self.g, t, down)), "t_inside & d_down_inside")
        precise = ', input_precision="ieee"' if self.kind == f32 else ""
        line(f"scores = tl.dot(query, {k}, out_dtype=tl.float32{precise}) * {op.scale!r}")
        if op.softcap is not None:
            line(f"scores = device.tanh(scores * {1 / op.softcap!r}) * {op.softcap!r}")
        if op.bias is not None:
            bias = pull.at(op.bias, aligned((self.b, self.h, self.s, t), op.bias)).to(f32)
            line(f"scores += {bias.text}")
        seen = ["t_inside"]
        if op.causal:
            seen.append("(t <= at)")
        if op.window is not None:
            seen.append(f"(at - t < {op.window})")
            if not op.causal:
                seen.append(f"(t - at < {op.window})")
        if op.mask is not None:
            mask = pull.at(op.mask, (0 if op.mask.type.dims[0] == 1 else self.b, t))
            seen.append(mask.text if mask.dtype.kind == "bool" else f"({mask.operand} != 0)")
        line(f'scores = tl.where({" & ".join(seen)}, scores, float("-inf"))')
        line("higher = tl.maximum(top, tl.max(scores, axis=1, keep_dims=True))")
        # A row that has seen nothing yet has no greatest score to take away.
        line('base = tl.where(higher == float("-inf"), 0.0, higher)')
        line("weights = tl.exp(scores - base)")
        line("fade = tl.exp(top - base)")
        line("total = total * fade + tl.sum(weights, axis=1, keep_dims=True)")
        v = self._tile_of(pull.at(op.v, (self.b, self.g, t_down, self.e)), "t_down_inside & e_inside")
        line(f"acc = tl.dot(weights.to({spelled(self.kind)}), {v}, acc * fade{precise})")
        line("top = higher")

    def _tile_of(self, term: Term, mask: str) -> str:
        text = term.to(self.kind).text
        return text if term.padded else f"tl.where({mask}, {text}, 0.0).to({spelled(self.kind)})"


def _joining(outlined: Outlined, op: Attention, name: str, header: str, *, splits: int) -> Kernel:
    """The kernel that joins the parts: each counts by how far its greatest score is below the greatest of all."""
    rows = _Rows(outlined, op)
    line = rows.line
    rows.begin()
    line('top = tl.full([BLOCK_M, 1], float("-inf"), tl.float32)')
    line("total = tl.zeros([BLOCK_M, 1], tl.float32)")
    line("acc = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)")
    with rows.pull.block("for split in range(SPLITS):"):
        at = rows.part("split")
        line(f'peak = tl.load(sums_ptr + ({at}) * 2, mask=row_inside, other=float("-inf"))')
        line(f"part_total = tl.load(sums_ptr + ({at}) * 2 + 1, mask=row_inside, other=0.0)")
        line(f"part = tl.load(parts_ptr + ({at}) * {rows.width} + e, mask=row_inside & e_inside, other=0.0)")
        line("higher = tl.maximum(top, peak)")
        line('base = tl.where(higher == float("-inf"), 0.0, higher)')
        line("total = total * tl.exp(top - base) + part_total * tl.exp(peak - base)")
        line("acc = acc * tl.exp(top - base) + part * tl.exp(peak - base)")
        line("top = higher")
    rows.finish()
    return rows.built(name, header, more=PARTS, stores=True, constants={}, options={"num_warps": 4}, splits=splits)
