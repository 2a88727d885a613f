"""What linear and matmul have in common: rows, columns and a depth that is summed over, with epilogues behind."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.backends.triton.errors import NoKernel
from ingot.backends.triton.index import simplified, unflattened
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.pull import Index, Pull
from ingot.backends.triton.roots import Root, opened
from ingot.ir.dims import Dim, product
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.types import DType, bf16, f16, f32
from ingot.ir.value import Value

MOST_SHIFTS = 3


@dataclass(frozen=True)
class Contraction:
    """y[z, m, n] = sum over k of left[z, m, k] * right[z, k, n]. batch: dims of z, outermost first."""

    op: Linear | MatMul
    batch: tuple[Dim, ...]
    rows: Dim
    columns: Dim
    depth: Dim

    @property
    def count(self) -> Dim:
        """How many products."""
        return product(self.batch)

    @property
    def dtype(self) -> DType:
        """What the operands are multiplied in."""
        x, w = (v.type.dtype for v in self.op.operands[:2])
        if any(not t.is_float or t.bits > 32 for t in (x, w)):
            raise NoKernel(f"a product of {x} and {w} has no kernel")
        return x if x == w and x in (bf16, f16) else f32

    def left(self, pull: Pull, z: Dim, m: Dim, k: Dim) -> tuple[Value, Index]:
        dims = self.op.x.type.dims
        if isinstance(self.op, Linear):
            return self.op.x, (*unflattened(m, dims[:-1], pull.bounds), k)
        return self.op.x, (*self._lead(pull, z, len(dims) - 2), m, k)

    def right(self, pull: Pull, z: Dim, k: Dim, n: Dim) -> tuple[Value, Index]:
        if isinstance(self.op, Linear):
            return self.op.w, (n, k)
        return self.op.y, (*self._lead(pull, z, self.op.y.type.rank - 2), k, n)

    def out(self, pull: Pull, z: Dim, m: Dim, n: Dim) -> Index:
        if isinstance(self.op, Linear):
            return (*unflattened(m, self.op.x.type.dims[:-1], pull.bounds), n)
        return (*unflattened(z, self.batch, pull.bounds), m, n)

    def _lead(self, pull: Pull, z: Dim, rank: int) -> Index:
        index = unflattened(z, self.batch, pull.bounds)
        return index[len(index) - rank:] if rank else ()


def contraction_of(op: Linear | MatMul) -> Contraction:
    """Rows, columns and depth of an op."""
    if isinstance(op, Linear):
        return Contraction(op, (), product(op.x.type.dims[:-1]), op.w.type.dims[0], op.w.type.dims[1])
    *batch, m, n = op.result.type.dims
    return Contraction(op, tuple(batch), m, n, op.x.type.dims[-1])


@dataclass(frozen=True)
class Epilogue:
    """What follows a contraction: which columns of y an output column needs, as distances, and where outputs lie.

    columns: of the outputs. shifts: an output at column n is made of y at n + shift, for each.
    """

    contraction: Contraction
    columns: Dim
    shifts: tuple[int, ...]

    def index(self, pull: Pull, root: Root, z: Dim, m: Dim, n: Dim) -> Index:
        """The index of an output at batch z, row m and column n."""
        row = z * self.contraction.rows + m
        dims = root.computed.type.dims
        if dims and dims[-1] == self.columns:
            return (*unflattened(row, dims[:-1], pull.bounds), n)
        return unflattened(simplified(row * self.columns + n, pull.bounds), dims, pull.bounds)


def epilogue_of(outlined: Outlined, contraction: Contraction) -> Epilogue:
    """Learns what the outputs need by writing them once for nobody. Raises NoKernel where it is not columns at distances."""
    made = opened(outlined)
    pull = made.pull
    total = contraction.count * contraction.rows
    sizes = {_columns(root.computed, total, contraction.columns) for root in made.roots}
    if len(sizes) != 1:
        raise NoKernel("the outputs differ in columns")
    columns = sizes.pop()
    z: Dim = pull.axis("z", "z", contraction.count, None) if contraction.count != 1 else 0
    m, n = pull.axis("m", "m", contraction.rows, None), pull.axis("n", "n", columns, None)
    y = contraction.op.result
    pull.recorded[y] = []
    found = Epilogue(contraction, columns, ())
    for root in made.roots:
        made.store(root, found.index(pull, root, z, m, n))
    plain = pull._normal(y, contraction.out(pull, z, m, n))
    shifts: dict[int, None] = {}
    for index in pull.recorded[y]:
        shift = index[-1] - plain[-1]
        if index[:-1] != plain[:-1] or not isinstance(shift, int):
            raise NoKernel("the product is wanted in another order than it is made")
        shifts[shift] = None
    if not shifts or len(shifts) > MOST_SHIFTS:
        raise NoKernel("too many parts of the product are wanted at once")
    return Epilogue(contraction, columns, tuple(sorted(shifts)))


def _columns(value: Value, rows: Dim, columns: Dim) -> Dim:
    """The columns of an output that has these rows."""
    if value.type.size == rows * columns:
        return columns
    dims = value.type.dims
    if not dims or product(dims[:-1]) != rows:
        raise NoKernel("an output has other rows than the product")
    return dims[-1]
