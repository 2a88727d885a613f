"""Random well-typed modules as a Hypothesis strategy.

A graph grows one step at a time: a step picks a maker (a kind of op) and values for it; a maker that cannot use the
values adds nothing. So Hypothesis shrinks a failing module by dropping steps, down to a few lines of text. Steps keep
numbers small and continuous in their inputs: an exact rewrite stays within rounding of float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from ingot.ir.copy import copy_module
from ingot.ir.dims import Dim, evaluate, sym
from ingot.ir.module import Builder, Module
from ingot.ir.ops import pointwise as p
from ingot.ir.ops import reduce as r
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.creation import Arange, Full, Scalar
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.layout import Concat, Expand, Flip, Pad, Reshape, Slice, Split, Take, Transpose, Triangle
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.norm import LayerNorm, RmsNorm
from ingot.ir.ops.rope import Rope
from ingot.ir.types import TensorType, bf16, bool_, f16, f32, f64, i64
from ingot.ir.value import Value
from ingot.ir.verify import verify
from ingot.ir.weights import ArrayWeight
from ingot.testing.reporting import report
from ingot.testing.weights import weights

B, S = sym("B"), sym("S")
FLOATS = [f32, bf16, f16, f64]
UNARY: list[type[p.Unary]] = [p.Neg, p.Abs, p.Relu, p.Sigmoid, p.Tanh, p.Silu, p.Gelu, p.Softplus, p.LeakyRelu, p.Elu,
                              p.HardSwish, p.HardSigmoid, p.Erf]
BINARY: list[type[p.Binary]] = [p.Add, p.Sub, p.Mul, p.Maximum, p.Minimum]
COMPARE: list[type[p.Binary]] = [p.Less, p.LessEqual, p.Greater, p.GreaterEqual]
SCALARS = [0.0, 1.0, -1.0, 2.0, 0.5]


class Growth:
    """A module while it grows: `values` holds what later steps may use, the newest last."""

    def __init__(self, draw: st.DrawFn, module: Module) -> None:
        self.draw = draw
        self.module = module
        self.b = Builder(module.add_func("forward"))
        self.values: list[Value] = []

    def param(self, name: str, type: TensorType) -> Value:
        """A new parameter; a number is appended to its name when it is taken."""
        taken = sum((v.hint or "").rstrip("0123456789") == name for v in self.b.func.params)
        return self.b.func.add_param(f"{name}{taken or ''}", type)

    def floats(self, *, least_rank: int = 0) -> list[Value]:
        """The float values, newest first: shrinking makes a chain of the last ones."""
        return [v for v in self.values[::-1] if v.type.dtype.is_float and v.type.rank >= least_rank]

    def pick(self, values: Sequence[Value]) -> Value:
        return self.draw(st.sampled_from(values))

    def flip(self) -> bool:
        return self.draw(st.booleans())

    def axis(self, value: Value) -> int:
        return self.draw(st.integers(0, value.type.rank - 1))

    def weight(self, type: TensorType) -> Value:
        """A new weight, or an older one of the same type."""
        old = [c for c in self.module.consts.values() if c.type == type]
        if old and self.flip():
            return self.pick(old)
        return self.b.const("w", self.draw(weights(type)))


Maker = Callable[[Growth, Value], Value | tuple[Value, ...] | None]


def unary(g: Growth, x: Value) -> Value:
    return g.b(g.draw(st.sampled_from(UNARY))(x))


def binary(g: Growth, x: Value) -> Value:
    """With a value that broadcasts, a scalar, or a weight over the last axis."""
    fitting = [y for y in g.floats() if _broadcasts(x, y)]
    kinds = ["value", "scalar", *(["weight"] if x.type.rank and isinstance(x.type.dims[-1], int) else [])]
    kind = g.draw(st.sampled_from(kinds))
    if kind == "scalar":
        y = g.b(Scalar(g.draw(st.sampled_from(SCALARS)), x.type.dtype))
    elif kind == "weight":
        y = g.weight(TensorType(x.type.dtype, x.type.dims[-1:]))
    else:
        y = g.pick(fitting)
    cls = g.draw(st.sampled_from(BINARY))
    return g.b(cls(y, x) if g.flip() else cls(x, y))


def divide(g: Growth, x: Value) -> Value:
    return g.b(p.Div(x, g.b(Scalar(g.draw(st.sampled_from([1.0, 2.0, -4.0])), x.type.dtype))))


def choose(g: Growth, x: Value) -> Value:
    """`where(x < y, x, y)`: continuous, though the condition is not."""
    y = g.pick([y for y in g.floats() if y.type == x.type])
    return g.b(p.Where(g.b(g.draw(st.sampled_from(COMPARE))(x, y)), x, y))


def clamp(g: Growth, x: Value) -> Value:
    least = g.draw(st.sampled_from([None, -1.0, 0.0]))
    return g.b(p.Clamp(x, least, g.draw(st.sampled_from([None, 0.0, 1.0, 6.0]))))


def cast(g: Growth, x: Value) -> Value:
    return g.b(p.Cast(x, g.draw(st.sampled_from(FLOATS))))


def reshape(g: Growth, x: Value) -> Value:
    """Splits an even axis, joins two, or adds or drops an axis of size one."""
    dims = x.type.dims
    axis = g.axis(x) if dims else 0
    size = dims[axis] if dims else 1
    shapes: list[tuple[Dim, ...]] = [(*dims[:axis], 1, *dims[axis:])]
    if isinstance(size, int) and size % 2 == 0 and size > 2:
        shapes.append((*dims[:axis], 2, size // 2, *dims[axis + 1:]))
    if axis + 1 < len(dims):
        shapes.append((*dims[:axis], dims[axis] * dims[axis + 1], *dims[axis + 2:]))
    if dims and size == 1:
        shapes.append((*dims[:axis], *dims[axis + 1:]))
    return g.b(Reshape(x, g.draw(st.sampled_from(shapes))))


def transpose(g: Growth, x: Value) -> Value:
    return g.b(Transpose(x, tuple(g.draw(st.permutations(range(x.type.rank))))))


def expand(g: Growth, x: Value) -> Value:
    wider: list[Dim] = [1, 2, B]
    more: list[tuple[Dim, ...]] = [(), (1,), (2,)]
    dims = tuple(g.draw(st.sampled_from(wider)) if d == 1 else d for d in x.type.dims)
    return g.b(Expand(x, (*g.draw(st.sampled_from(more)), *dims)))


def part(g: Growth, x: Value) -> Value | None:
    axis = g.axis(x)
    size = x.type.dims[axis]
    if not isinstance(size, int):
        stops: list[Dim] = [size, 1]
        return g.b(Slice(x, axis, 0, g.draw(st.sampled_from(stops))))
    start = g.draw(st.integers(0, size))
    return g.b(Slice(x, axis, start, g.draw(st.integers(start, size)), g.draw(st.integers(1, 2)))) if start < size else None


def split(g: Growth, x: Value) -> tuple[Value, ...] | None:
    axis = g.axis(x)
    size = x.type.dims[axis]
    if not isinstance(size, int) or size < 2:
        return None
    first = g.draw(st.integers(1, size - 1))
    return g.b.add(Split(x, (first, size - first), axis)).results


def concat(g: Growth, x: Value) -> Value:
    axis = g.axis(x)
    fitting = [y for y in g.floats() if y.type.dtype == x.type.dtype and y.type.rank == x.type.rank
               and all(i == axis or d == e for i, (d, e) in enumerate(zip(x.type.dims, y.type.dims)))]
    return g.b(Concat((x, g.pick(fitting)), axis))


def pad(g: Growth, x: Value) -> Value:
    pads = [0] * (2 * x.type.rank)
    pads[g.draw(st.integers(0, len(pads) - 1))] = 1
    return g.b(Pad(x, tuple(pads)))


def take(g: Growth, x: Value) -> Value | None:
    """Positions by a constant index, or all of a dynamic axis by a range."""
    axis = g.axis(x)
    size = x.type.dims[axis]
    if not isinstance(size, int):
        return g.b(Take(x, g.b(Arange(size)), axis))
    if size == 0:
        return None
    index: ArrayWeight = g.draw(weights(TensorType(i64, (2,)), least=0, most=size - 1))
    return g.b(Take(x, g.b.const("index", index), axis))


def flip(g: Growth, x: Value) -> Value:
    return g.b(Flip(x, (g.axis(x),)))


def triangle(g: Growth, x: Value) -> Value | None:
    return g.b(Triangle(x, g.draw(st.integers(-1, 1)), g.flip())) if x.type.rank >= 2 else None


def fold(g: Growth, x: Value) -> Value:
    """A reduction. Means and extremes stand only for axes that are never empty."""
    axis = g.axis(x)
    classes: list[type[r.Reduce]] = [r.Sum] if x.type.dims[axis] == 0 else [r.Sum, r.Mean, r.Max, r.Min]
    return g.b(g.draw(st.sampled_from(classes))(x, (axis,), g.flip()))


def along(g: Growth, x: Value) -> Value | None:
    axis = g.axis(x)
    classes: list[type[r.Along]] = [r.Softmax, r.LogSoftmax, r.Cumsum]
    return g.b(g.draw(st.sampled_from(classes))(x, axis)) if x.type.dims[axis] != 0 else None


def linear(g: Growth, x: Value) -> Value | None:
    last = x.type.dims[-1]
    if not isinstance(last, int):
        return None
    out = g.draw(st.sampled_from([4, 8]))
    bias = g.weight(TensorType(x.type.dtype, (out,))) if g.flip() else None
    return g.b(Linear(x, g.weight(TensorType(x.type.dtype, (out, last))), bias))


def matmul(g: Growth, x: Value) -> Value | None:
    """With the transpose of a value of the same type."""
    if x.type.rank < 2:
        return None
    y = g.pick([y for y in g.floats() if y.type == x.type])
    return g.b(MatMul(x, g.b(Transpose(y, (*range(x.type.rank - 2), x.type.rank - 1, x.type.rank - 2)))))


def norm(g: Growth, x: Value) -> Value | None:
    last = x.type.dims[-1]
    if not isinstance(last, int) or last < 2:
        return None
    w = g.weight(x.type.with_dims(last)) if g.flip() else None
    return g.b(RmsNorm(x, w, 1e-2)) if g.flip() else g.b(LayerNorm(x, w, None, 1e-2))


def attend(g: Growth, x: Value) -> Value | None:
    """Self-attention of a [b, s, 4n] value: four heads over two (or four) key heads, with or without rope."""
    if x.type.rank != 3 or not isinstance(x.type.dims[2], int) or x.type.dims[2] % 8 or x.type.dims[2] == 0:
        return None
    b, (rows, steps, width) = g.b, x.type.dims
    assert isinstance(width, int)
    size = width // 4
    kv = g.draw(st.sampled_from([4, 2]))
    heads = b(Transpose(b(Reshape(x, (rows, steps, 4, size))), (0, 2, 1, 3)))
    if g.flip():
        at = b(Reshape(b(Arange(steps)), (1, steps)))
        heads = b(Rope(heads, at, g.weight(TensorType(f32, (size // 2,)))))
    keys = heads if kv == 4 else b(Slice(heads, 1, 0, kv))
    y = b(Attention(heads, keys, keys, scale=0.5, causal=g.flip()))
    return b(Reshape(b(Transpose(y, (0, 2, 1, 3))), (rows, steps, width)))


def embed(g: Growth, x: Value) -> Value:
    """Rows of a table, by integer ids."""
    return g.b(Embedding(g.param("ids", TensorType(i64, (B, S))), g.weight(TensorType(f32, (5, 8)))))


def masked(g: Growth, x: Value) -> Value:
    """The value where a bool parameter holds, else zero."""
    shape = tuple(1 if isinstance(d, int) else d for d in x.type.dims)
    return g.b(p.Where(g.param("flag", TensorType(bool_, shape)), x, g.b(Full((1,) * x.type.rank, 0.0, x.type.dtype))))


ANY_RANK: list[Maker] = [unary, unary, binary, binary, binary, divide, choose, clamp, cast, reshape, transpose, expand]
WITH_AXES: list[Maker] = [part, split, concat, pad, take, flip, triangle, fold, along, linear, matmul, norm, attend, embed,
                          masked]
SIZE_LIMIT = 4096
"""Steps stop using a value with more elements than this at B = S = 6."""


@st.composite
def _step(draw: st.DrawFn, g: Growth) -> bool:
    """One step, or False for no more. A step is one draw, so that shrinking can drop it as a whole."""
    if not draw(st.integers(0, 9)):
        return False
    x = g.pick([v for v in g.floats() if _size(v) <= SIZE_LIMIT])
    made = draw(st.sampled_from(ANY_RANK + WITH_AXES if x.type.rank else ANY_RANK))(g, x)
    g.values += made if isinstance(made, tuple) else () if made is None else (made,)
    return True


@st.composite
def graphs(draw: st.DrawFn, *, most_steps: int = 8) -> Module:
    """Well-typed modules with dims B and S, one to three parameters, at most `most_steps` steps and three results.
    Steps may add parameters of their own (ids, flags).

    Every module passes `verify` and runs in the reference interpreter for every size in its declared range. The text of a
    failing one is printed with the failure.
    """
    module = Module("random")
    module.set_dim("B", 1, 8)
    module.set_dim("S", 1, 64)
    g = Growth(draw, module)
    others = st.sampled_from([(B, S, 8), (S, 4), (8,), (B, 1, 8), ()])
    g.values += [g.param("y", TensorType(f32, dims)) for dims in draw(st.lists(others, max_size=2))]
    g.values.append(g.param("x", TensorType(draw(st.sampled_from([f32, bf16])), (B, S, 8))))
    steps = 0
    while steps < most_steps and draw(_step(g)):
        steps += 1
    g.b.func.set_returns([g.values[-1], *draw(st.lists(st.sampled_from(g.values), max_size=2))])
    verify(module)
    twin = copy_module(module)
    report(lambda: twin)
    return module


def _broadcasts(x: Value, y: Value) -> bool:
    return all(d == e or 1 in (d, e) for d, e in zip(x.type.dims[::-1], y.type.dims[::-1]))


def _size(value: Value) -> int:
    return evaluate(value.type.size, {"B": 6, "S": 6})
