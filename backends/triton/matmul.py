"""Products on tensor cores: tiles of rows and columns, whatever is read in front and stored behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ingot.backends.triton.coded import Coded, Scaled, coded_product, scaled_product
from ingot.backends.triton.contraction import Contraction, Epilogue, contraction_of, epilogue_of
from ingot.backends.triton.flat import widening
from ingot.backends.triton.gemv import gemv_kernel
from ingot.backends.triton.kernel import Grid, Kernel, Temp, Variant, function
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.pull import Buffer
from ingot.backends.triton.roots import opened
from ingot.backends.triton.scaled import ScaledTiled, repacking_kernel
from ingot.backends.triton.split import PARTS, joining_kernel, parts_of, splits_of
from ingot.backends.triton.tiled import Tiled
from ingot.backends.triton.unpacking import decoded_pointer, unpacking_kernel
from ingot.backends.triton.words import Packed, packed_weight
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.types import f32, u8


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


NARROW = Tiles(Tile(16, 32, 128, 4, 4), Tile(64, 32, 64, 4, 4), Tile(128, 128, 64, 8, 3))
WIDE = Tiles(Tile(16, 32, 64, 4, 2), Tile(32, 32, 32, 4, 2), Tile(32, 64, 32, 4, 2))
CODED = Tiles(Tile(16, 32, 32, 4, 4), Tile(64, 32, 32, 4, 3), Tile(64, 64, 32, 4, 2))
PACKED = Tiles(Tile(16, 32, 32, 4, 4), Tile(64, 32, 32, 8, 3), Tile(64, 64, 16, 8, 2))
SCALED = Tile(128, 128, 64, 8, 3)
"""For 16-bit floats, f32, codes with codes, weights in codes with floats; and for many rows of codes under powers of two.
None spills on the chips of benchmarks/kernels."""
REGISTERS = 255
"""Most registers of a thread where weights are in codes: all that 8 warps may have. Told no bound, the assembler would rather
spill a few bytes than let fewer programs share a processor, though the memory they want lets no more of them in."""
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
    coded = coded_product(op, packed)
    tiles = CODED if coded else PACKED if packed else NARROW if contraction.dtype != f32 else WIDE
    variants += _tiled(outlined, epilogue, packed, tiles, coded, name=name, header=header)
    if isinstance(rows, int):
        return (next(v for v in variants if v.fits({})),)
    return tuple(variants)


def _tiled(outlined: Outlined, epilogue: Epilogue, packed: Packed | None, tiles: Tiles, coded: Coded | None, *, name: str,
           header: str) -> Iterator[Variant]:
    """A few rows, some, many; of codes by codes, or of floats."""
    contraction, rows = epilogue.contraction, epilogue.contraction.rows
    mark = "_codes" if coded else ""
    for suffix, tile, most in (("_few", tiles.few, FEW_ROWS), ("_some", tiles.some, SOME_ROWS),
                               ("", tiles.many, MANY_ROWS if packed else None)):
        own = f"{name}{mark}{suffix}"
        upto = ((rows, most),) if most else ()
        splits = _splits(contraction, tile, packed) if most and most <= SOME_ROWS else 1
        if splits > 1:
            part = tiled_kernel(outlined, epilogue, tile, name=f"{own}_split", header=header, coded=coded, splits=splits)
            join = joining_kernel(outlined, epilogue, splits=splits, name=f"{own}_join", header=header)
            yield Variant((part, join), (parts_of(splits, rows, contraction.columns),), upto)
        else:
            yield Variant((tiled_kernel(outlined, epilogue, tile, name=own, header=header, coded=coded),), (), upto)
    scaled = scaled_product(contraction.op, packed)
    if scaled:
        yield _scaled(outlined, epilogue, scaled, name=name, header=header)
    elif packed:
        yield _decoded_first(outlined, epilogue, name=f"{name}{mark}", header=header, coded=coded)


def _splits(contraction: Contraction, tile: Tile, packed: Packed | None) -> int:
    """Programs that share the depth of a product of few rows."""
    depth = packed.words if packed else contraction.depth
    if contraction.count != 1 or not isinstance(contraction.columns, int) or not isinstance(depth, int):
        return 1
    return splits_of(-(-contraction.columns // tile.columns), depth // tile.depth)


def _decoded_first(outlined: Outlined, epilogue: Epilogue, *, name: str, header: str, coded: Coded | None) -> Variant:
    """The weight decoded into memory, or its codes laid out row by row, then a product like any other."""
    op = epilogue.contraction.op
    kind = coded.kind if coded else epilogue.contraction.dtype
    made = opened(outlined)
    own = packed_weight(made, outlined, op)
    assert own is not None
    dims = op.operands[1].type.dims
    unpack = unpacking_kernel(made, own, dims[0], kind, name=f"{name}_unpack", header=header, codes=coded is not None)
    tile = (NARROW if kind != f32 else WIDE).many
    product = tiled_kernel(outlined, epilogue, tile, name=f"{name}_many", header=header, coded=coded, decoded=True)
    return Variant((unpack, product), (Temp(dims, kind),))


def _scaled(outlined: Outlined, epilogue: Epilogue, scaled: Scaled, *, name: str, header: str) -> Variant:
    """The weight's codes laid out two to a byte, then a product of codes under powers of two."""
    made, op = opened(outlined), epilogue.contraction.op
    own = packed_weight(made, outlined, op)
    assert own is not None
    n, k = op.operands[1].type.shape
    repack = repacking_kernel(made, own, n, name=f"{name}_repack", header=header)
    product = tiled_kernel(outlined, epilogue, SCALED, name=f"{name}_scaled", header=header, decoded=True, scaled=scaled)
    return Variant((repack, product), (Temp((n, k // 2), u8),))


def tiled_kernel(outlined: Outlined, epilogue: Epilogue, tile: Tile, *, name: str, header: str, decoded: bool = False,
                 coded: Coded | None = None, scaled: Scaled | None = None, splits: int = 1) -> Kernel:
    """The kernel that computes a tile of every output with `tl.dot`; see `Tiled`. Of one of `splits`, what follows is left to
    `joining_kernel`."""
    made = opened(outlined)
    contraction = epilogue.contraction
    if splits > 1:
        epilogue = Epilogue(contraction, contraction.columns, (0,))
    packed = packed_weight(made, outlined, contraction.op)
    more = tuple(packed.pointers.values()) if packed else ()
    if decoded:
        weight, kind = contraction.op.operands[1], coded.kind if coded else u8 if scaled else contraction.dtype
        pointer = decoded_pointer(kind)
        more = (*more, pointer)
        made.pull.source.names.take(pointer.name)
        made.pull.buffers[weight] = Buffer(pointer.name, weight.type.dims, kind)
    columns, depth = tile.columns, tile.depth
    if len(epilogue.shifts) > 1:
        columns //= 2 if tile.rows * tile.columns >= 64 * 64 else 1
        depth = depth if packed is None or coded or decoded else max(16, depth // 2)
    if scaled and packed:
        ScaledTiled(made, epilogue, packed, scaled).write()
    else:
        Tiled(made, epilogue, packed, decoded=decoded, coded=coded, splits=splits).write()
    body = made.pull.source.lines()
    pointers, sizes = made.pointers("\n".join(body), *more, PARTS), tuple(made.pull.sizes)
    constants = {"BLOCK_M": tile.rows, "BLOCK_N": columns, "BLOCK_K": depth, "BAND": 8, "WIDE": 0}
    if splits > 1:
        pointers = tuple(p for p in pointers if p.role != "out")
        constants["SPLITS"] = splits
    text = function(name, header=header, pointers=pointers, sizes=sizes, constants=constants, body=widening(sizes) + body)
    grid = Grid((((contraction.rows, "BLOCK_M"), (epilogue.columns, "BLOCK_N")),
                 ((splits if splits > 1 else contraction.count, None),)))
    few = tile.rows <= SOME_ROWS and tile.columns < 64
    options = {"num_warps": tile.warps, "num_stages": tile.stages} | ({"maxnreg": REGISTERS} if packed else {})
    return Kernel(name, text, pointers, sizes, constants, grid, options,
                  choices=_FEW if few else _SCALED[len(epilogue.shifts) > 1:] if scaled else _MANY)


_FEW = tuple({"BLOCK_N": n, "BLOCK_K": k, "num_stages": s} for n, k, s in (
    (16, 128, 5), (16, 64, 5), (32, 64, 5), (32, 64, 3), (32, 32, 6), (64, 128, 3), (64, 64, 4)))
_MANY = ({"BLOCK_M": 128, "BLOCK_N": 256, "num_warps": 8}, {"BLOCK_M": 64, "BLOCK_N": 128, "num_warps": 4},
         {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 4, "num_stages": 4}, {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4})
_SCALED = ({"BLOCK_K": 128, "BLOCK_N": 256}, {"BLOCK_K": 128}, {"BLOCK_K": 256}, {"BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4},
           {"BLOCK_M": 64, "num_warps": 4})
"""The first does not fit into Blackwell's memory for sums with two parts of a product."""
