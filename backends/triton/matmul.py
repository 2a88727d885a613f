"""Products on tensor cores: tiles of rows and columns, whatever is read in front and stored behind."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.backends.triton.contraction import Contraction, Epilogue, contraction_of, epilogue_of
from ingot.backends.triton.flat import widening
from ingot.backends.triton.gemv import gemv_kernel
from ingot.backends.triton.index import quotient
from ingot.backends.triton.kernel import Grid, Kernel, Temp, Variant, function
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.pull import Buffer
from ingot.backends.triton.roots import Opened, opened
from ingot.backends.triton.term import Term, spelled
from ingot.backends.triton.unpacking import decoded_pointer, unpacking_kernel
from ingot.backends.triton.words import Packed, Words, element, packed_weight, within
from ingot.ir.dims import Dim
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.types import f32


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a tile, and how it is run. `depth` counts words where the weight is packed."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Tiles:
    """The tiles of a kind of product: for few rows, for some, for many."""

    few: Tile
    some: Tile
    many: Tile


NARROW = Tiles(Tile(16, 32, 128, 4, 4), Tile(64, 32, 128, 4, 3), Tile(128, 128, 64, 8, 3))
WIDE = Tiles(Tile(16, 32, 64, 4, 2), Tile(32, 32, 32, 4, 2), Tile(32, 64, 32, 4, 2))
PACKED = Tiles(Tile(16, 32, 32, 4, 4), Tile(64, 32, 32, 4, 3), Tile(64, 64, 32, 4, 2))
"""For 16-bit floats, f32, and weights in codes."""
FEW_ROWS, SOME_ROWS = 16, 64
"""Most rows for which a tile is narrow, so that few rows still keep the whole chip reading."""
MANY_ROWS = 256
"""Most rows for which every tile decodes a weight in codes for itself. Decoding once and reading what came of it takes as long
as the product of about 300 rows."""


def matmul_variants(outlined: Outlined, op: Linear | MatMul, *, name: str, header: str) -> tuple[Variant, ...]:
    """One row by a product with a vector, a few and some by narrow tiles, many by large ones."""
    contraction = contraction_of(op)
    epilogue = epilogue_of(outlined, contraction)
    rows, variants = contraction.rows, []
    if contraction.count == 1:
        kernel = gemv_kernel(outlined, epilogue, name=f"{name}_row", header=header)
        variants.append(Variant((kernel,), upto=((rows, 1),)))
    packed = packed_weight(opened(outlined), outlined, op)
    tiles = PACKED if packed else NARROW if contraction.dtype != f32 else WIDE
    for suffix, tile, most in (("_few", tiles.few, FEW_ROWS), ("_some", tiles.some, SOME_ROWS),
                               ("", tiles.many, MANY_ROWS if packed else None)):
        kernel = tiled_kernel(outlined, epilogue, tile, name=f"{name}{suffix}", header=header)
        variants.append(Variant((kernel,), upto=((rows, most),) if most else ()))
    if packed:
        variants.append(_decoded_first(outlined, epilogue, name=name, header=header))
    if isinstance(rows, int):
        return (next(v for v in variants if v.fits({})),)
    return tuple(variants)


def _decoded_first(outlined: Outlined, epilogue: Epilogue, *, name: str, header: str) -> Variant:
    """The weight decoded into memory, then a product like any other."""
    kind, op = epilogue.contraction.dtype, epilogue.contraction.op
    made = opened(outlined)
    own = packed_weight(made, outlined, op)
    assert own is not None
    dims = op.operands[1].type.dims
    unpack = unpacking_kernel(made, own, dims[0], kind, name=f"{name}_unpack", header=header)
    tile = (NARROW if kind != f32 else WIDE).many
    product = tiled_kernel(outlined, epilogue, tile, name=f"{name}_many", header=header, decoded=True)
    return Variant((unpack, product), (Temp(dims, kind),))


def tiled_kernel(outlined: Outlined, epilogue: Epilogue, tile: Tile, *, name: str, header: str, decoded: bool = False) -> Kernel:
    """The kernel that computes a tile of every output with `tl.dot`. decoded: the weight is read as `unpacking` left it."""
    made = opened(outlined)
    contraction = epilogue.contraction
    packed = None if decoded else packed_weight(made, outlined, contraction.op)
    more = tuple(packed.pointers.values()) if packed else ()
    if decoded:
        weight = contraction.op.operands[1]
        more = (decoded_pointer(contraction.dtype),)
        made.pull.source.names.take(more[0].name)
        made.pull.buffers[weight] = Buffer(more[0].name, weight.type.dims, contraction.dtype)
    columns = tile.columns // (2 if len(epilogue.shifts) > 1 and tile.rows * tile.columns > 64 * 64 else 1)
    _Tiled(made, epilogue, packed).write()
    body = made.pull.source.lines()
    pointers, sizes = made.pointers("\n".join(body), *more), tuple(made.pull.sizes)
    constants = {"BLOCK_M": tile.rows, "BLOCK_N": columns, "BLOCK_K": tile.depth, "BAND": 8, "WIDE": 0}
    text = function(name, header=header, pointers=pointers, sizes=sizes, constants=constants, body=widening(sizes) + body)
    grid = Grid((((contraction.rows, "BLOCK_M"), (epilogue.columns, "BLOCK_N")), ((contraction.count, None),)))
    few = tile.rows <= SOME_ROWS and tile.columns < 64
    return Kernel(name, text, pointers, sizes, constants, grid, {"num_warps": tile.warps, "num_stages": tile.stages},
                  choices=_FEW if few else _MANY)


_FEW = tuple({"BLOCK_N": n, "BLOCK_K": k, "num_stages": s} for n, k, s in (
    (16, 128, 5), (16, 64, 5), (32, 64, 5), (32, 64, 3), (32, 32, 6), (64, 128, 3), (64, 64, 4)))
_MANY = ({"BLOCK_M": 128, "BLOCK_N": 256, "num_warps": 8}, {"BLOCK_M": 64, "BLOCK_N": 128, "num_warps": 4},
         {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 4, "num_stages": 4}, {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4})


class _Tiled:
    """The lines of a tiled product."""

    def __init__(self, made: Opened, epilogue: Epilogue, packed: Packed | None) -> None:
        self.made, self.epilogue, self.packed = made, epilogue, packed
        self.pull, self.source = made.pull, made.pull.source
        self.contraction: Contraction = epilogue.contraction

    def write(self) -> None:
        pull, line = self.pull, self.source.line
        rows, columns = pull.dim(self.contraction.rows), pull.dim(self.epilogue.columns)
        for name in ("m", "n", "z", "k", "k_down", "start", "group", "code", "x", "w", "tensor", *(f"acc{i}" for i in range(4))):
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
            line(f"{acc} = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)")
        if self.packed is None:
            self._loop(z, m, n, accs)
        else:
            self._packed_loop(self.packed, z, m, n, accs)
        y = self.contraction.op.result
        for shift, acc in accs.items():
            pull.give(y, self.contraction.out(pull, z, m, n + shift), Term(acc, f32, frozenset({"m", "n"}), atomic=True))
        for root in self.made.roots:
            self.made.store(root, self.epilogue.index(pull, root, z, m, n))

    def _loop(self, z: Dim, m: Dim, n: Dim, accs: dict[int, str]) -> None:
        pull, line = self.pull, self.source.line
        depth = pull.dim(self.contraction.depth)
        with pull.block(f"for start in range(0, {depth.text}, BLOCK_K):"):
            k = self._axis("k", "tl.arange(0, BLOCK_K)[None, :]", self.contraction.depth)
            down = self._axis("k_down", "tl.arange(0, BLOCK_K)[:, None]", self.contraction.depth)
            x = self._operand(*self.contraction.left(pull, z, m, k), "m", "k")
            for shift, acc in accs.items():
                w = self._operand(*self.contraction.right(pull, z, down, n + shift), "k_down", "n")
                line(f"{acc} = {self._dot(x, w, acc)}")

    def _axis(self, name: str, span: str, bound: Dim) -> Dim:
        self.source.line(f"{name} = start + {span}")
        self.source.line(f"{name}_inside = {name} < {self.pull.dim(bound).text}")
        return self.pull.axis(name, name, bound, f"{name}_inside")

    def _operand(self, value: object, index: object, first: str, second: str) -> str:
        """A tile of an operand in the type it is multiplied in; where it was computed, nothing stands beyond the bounds."""
        pull = self.pull
        term = pull.at(value, index)  # type: ignore[arg-type]
        kind = self.contraction.dtype
        text = term.to(kind).text
        spread = pull.anchored(text, term.axes, frozenset({first, second})) if not {first, second} <= term.axes else text
        if not term.padded or spread != text:
            spread = f"tl.where({pull.mask(frozenset({first, second}))}, {spread}, 0.0).to({spelled(kind)})"
        return spread

    def _dot(self, x: str, w: str, acc: str) -> str:
        precise = ', input_precision="ieee"' if self.contraction.dtype == f32 else ""
        return f"tl.dot({x}, {w}, {acc}{precise})"

    def _packed_loop(self, packed: Packed, z: Dim, m: Dim, n: Dim, accs: dict[int, str]) -> None:
        """Along words: each of their codes meets its own column of the left operand."""
        pull, line = self.pull, self.source.line
        kind = spelled(self.contraction.dtype)
        with pull.block(f"for start in range(0, {packed.words}, BLOCK_K):"):
            across = self._axis("k", "tl.arange(0, BLOCK_K)[None, :]", packed.words)
            down = self._axis("k_down", "tl.arange(0, BLOCK_K)[:, None]", packed.words)
            words = Words(pull, packed, {shift: n + shift for shift in accs}, word=down,
                          block=quotient(down, packed.run, pull.bounds), mask="n_inside & k_down_inside")
            with words.group() as (steps, zeros, first, count), words.codes(first, count) as (part, text):
                at = element(pull, packed, across, part)
                value, index = self.contraction.left(pull, z, m, at)
                x = pull.at(value, index, within(pull, packed, at)).to(self.contraction.dtype).text
                for shift, acc in accs.items():
                    number = words.number(shift, text, zeros)
                    line(f"w = ({number} * ({steps[shift]}{words.scale(text)})).to({kind})")
                    line(f"{acc} = {self._dot(x, 'w', acc)}")
