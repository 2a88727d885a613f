"""Rules on elementwise ops: identities removed, scalars folded, one form chosen among several that mean the same."""

from __future__ import annotations

from ingot.ir.module import Builder
from ingot.ir.op import Op
from ingot.ir.ops.creation import Full, Scalar
from ingot.ir.ops.layout import Expand, Reshape
from ingot.ir.ops.pointwise import (
    Add,
    And,
    Cast,
    Clamp,
    Div,
    Equal,
    Maximum,
    Minimum,
    Mul,
    Neg,
    NotEqual,
    Or,
    Pointwise,
    Pow,
    Reciprocal,
    Relu,
    Rsqrt,
    Sqrt,
    Sub,
    Where,
)
from ingot.ir.pattern import Elsewhere, Match, NoMatch, P, S, V, scalar_of
from ingot.ir.rewrite import Rule
from ingot.ir.types import TensorType, f32, f64
from ingot.ir.value import Const, Value
from ingot.passes.cleanup.simplify_casts import literal


def number(b: Builder, value: float, like: TensorType) -> Value:
    """A scalar to compute with on tensors of type `like`, which stay of that type; not narrower than f32 when it can."""
    narrow = like.rank > 0 and like.dtype.is_float and like.dtype != f64
    dtype = f32 if narrow else like.dtype
    return b(Scalar(literal(value, dtype), dtype))


def shaped(b: Builder, value: Value, type: TensorType) -> Value:
    """`value` cast and broadcast to `type`, with no op where it already is."""
    if value.type.dtype != type.dtype:
        value = b(Cast(value, type.dtype))
    return value if value.type == type else b(Expand(value, type.dims))


_NEUTRAL: dict[type[Op], float] = {Add: 0.0, Sub: 0.0, Mul: 1.0, Div: 1.0, Pow: 1.0, And: 1.0, Or: 0.0}


class ConstantRight(Rule):
    """The constant operand of a commutative op stands on the right."""

    pattern = P((Add, Mul, Maximum, Minimum, Equal, NotEqual, And, Or), V("x"), V("y"))

    def check(self, m: Match) -> None:
        x, y = m.op.operands
        if not _constant(x):
            raise Elsewhere("the left operand is not constant", x)
        if _constant(y):
            raise NoMatch("both operands are constant (fold-constants computes them)", y)

    def build(self, m: Match, b: Builder) -> Value:
        x, y = m.op.operands
        return b(m.op.clone(x=y, y=x))


class Identity(Rule):
    """x + 0, x - 0, x * 1, x / 1, x ** 1, and with true, or with false."""

    pattern = P((Add, Sub, Mul, Div, Pow, And, Or))

    def check(self, m: Match) -> None:
        x, y = m.op.operands
        if scalar_of(y) != _NEUTRAL[type(m.op)]:
            raise Elsewhere("the operand is not neutral", y)
        if x.type.dtype != m.op.result.type.dtype:
            raise NoMatch("it changes the element type", x)

    def build(self, m: Match, b: Builder) -> Value:
        return shaped(b, m.op.operands[0], m.op.result.type)


class ScalarChain(Rule):
    """(x + a) + b = x + (a + b), (x * a) * b = x * (a * b), when nothing else reads the inner result."""

    pattern = P((Add, Mul), V("inner"), S("b"))

    def check(self, m: Match) -> None:
        inner = m["inner"].op
        if not isinstance(inner, Add | Mul) or type(inner) is not type(m.op) or scalar_of(inner.y) is None:
            raise Elsewhere("the other operand is no such op with a scalar", m["inner"])
        if inner.result.n_uses > 1:
            raise NoMatch("the inner result is read elsewhere", inner.result)
        if inner.result.type != m.op.result.type or inner.x.type != m.op.result.type:
            raise NoMatch("the types differ", inner.x)
        m.extra["x"], m.extra["a"] = inner.x, scalar_of(inner.y)

    def build(self, m: Match, b: Builder) -> Value:
        a, c = m["a"], m["b"]
        value = a + c if isinstance(m.op, Add) else a * c
        return b(type(m.op)(m["x"], number(b, value, m.op.result.type)))


class SubtractScalar(Rule):
    """x - c = x + (-c)."""

    pattern = P(Sub, V("x"), S("c"))

    def check(self, m: Match) -> None:
        if m["x"].type != m.op.result.type:
            raise NoMatch("it broadcasts or casts x", m["x"])

    def build(self, m: Match, b: Builder) -> Value:
        return b(Add(m["x"], number(b, -m["c"], m.op.result.type)))


class DivideByScalar(Rule):
    """x / c = x * (1 / c) for floats: equal within two roundings of float64."""

    pattern = P(Div, V("x"), S("c"))

    def check(self, m: Match) -> None:
        if not m["x"].type.dtype.is_float or m["x"].type != m.op.result.type:
            raise NoMatch("x is no float tensor of the result's type", m["x"])
        if not 1e-30 < abs(m["c"]) < 1e30:
            raise NoMatch("the reciprocal would leave the range of floats", m["x"])

    def build(self, m: Match, b: Builder) -> Value:
        return b(Mul(m["x"], number(b, 1.0 / m["c"], m.op.result.type)))


class Negation(Rule):
    """x * -1 and 0 - x are -x; -(-x) is x."""

    pattern = P((Mul, Sub, Neg))

    def check(self, m: Match) -> None:
        x, *rest = m.op.operands
        inner = x.op
        if isinstance(m.op, Mul) and scalar_of(rest[0]) == -1:
            m.extra["x"], m.extra["minus"] = x, True
        elif isinstance(m.op, Sub) and scalar_of(x) == 0:
            m.extra["x"], m.extra["minus"] = rest[0], True
        elif isinstance(m.op, Neg) and isinstance(inner, Neg):
            m.extra["x"], m.extra["minus"] = inner.x, False
        else:
            raise Elsewhere("no negation", x)
        if m["x"].type != m.op.result.type:
            raise NoMatch("it broadcasts or casts x", x)

    def build(self, m: Match, b: Builder) -> Value:
        x: Value = m["x"]
        return b(Neg(x)) if m["minus"] else x


class PowerOfScalar(Rule):
    """x ** c for c in 2, 3, 0.5, -0.5, -1 as products, roots and reciprocals."""

    pattern = P(Pow, V("x"), S("c"))

    def check(self, m: Match) -> None:
        if m["c"] not in (2.0, 3.0, 0.5, -0.5, -1.0):
            raise NoMatch(f"the power {m['c']} has no simpler form", m["x"])
        if m["x"].type != m.op.result.type or (m["c"] not in (2.0, 3.0) and not m["x"].type.dtype.is_float):
            raise NoMatch("it changes the type of x", m["x"])

    def build(self, m: Match, b: Builder) -> Value:
        x = m["x"]
        match m["c"]:
            case 2.0:
                return b(Mul(x, x))
            case 3.0:
                return b(Mul(b(Mul(x, x)), x))
            case 0.5:
                return b(Sqrt(x))
            case -0.5:
                return b(Rsqrt(x))
            case _:
                return b(Reciprocal(x))


class DivideByRoot(Rule):
    """x / sqrt(y) = x * rsqrt(y)."""

    pattern = P(Div, V("x"), P(Sqrt, V("y")))

    def build(self, m: Match, b: Builder) -> Value:
        root = b(Rsqrt(m["y"]))
        return root if scalar_of(m["x"]) == 1 and root.type == m.op.result.type else b(Mul(m["x"], root))


class ReciprocalOfRoot(Rule):
    """1 / sqrt(y) = rsqrt(y)."""

    pattern = P(Reciprocal, P(Sqrt, V("y")))

    def build(self, m: Match, b: Builder) -> Value:
        return b(Rsqrt(m["y"]))


class OneOver(Rule):
    """1 / x is a reciprocal."""

    pattern = P(Div, S(equals=1.0), V("x"))

    def check(self, m: Match) -> None:
        if m["x"].type != m.op.result.type or not m["x"].type.dtype.is_float:
            raise NoMatch("it broadcasts or casts x", m["x"])

    def build(self, m: Match, b: Builder) -> Value:
        return b(Reciprocal(m["x"]))


class Rectifier(Rule):
    """max(x, 0) is relu, as an op or as a clamp."""

    pattern = P((Maximum, Clamp))

    def check(self, m: Match) -> None:
        op = m.op
        zero = scalar_of(op.operands[1]) == 0 if isinstance(op, Maximum) else (
            isinstance(op, Clamp) and op.least == 0 and op.greatest is None)
        if not zero or op.operands[0].type != op.result.type:
            raise Elsewhere("the limit is not zero alone", op.operands[0])

    def build(self, m: Match, b: Builder) -> Value:
        return b(Relu(m.op.operands[0]))


class WhereConstant(Rule):
    """where with a condition that is the same everywhere, or with two equal branches."""

    pattern = P(Where, V("cond"), V("x"), V("y"))

    def check(self, m: Match) -> None:
        known = scalar_of(m["cond"])
        if known is None and m["x"] is not m["y"]:
            raise Elsewhere("the condition varies", m["cond"])
        m.extra["taken"] = m["x"] if known is None or known else m["y"]

    def build(self, m: Match, b: Builder) -> Value:
        return shaped(b, m["taken"], m.op.result.type)


class BroadcastOperand(Rule):
    """An operand need not be expanded, nor given leading axes of size one, where broadcasting does it."""

    pattern = P(Pointwise)

    def check(self, m: Match) -> None:
        expanded = {v: inner for v in m.op.operands if (inner := _unexpanded(v)) is not v}
        if not expanded:
            raise Elsewhere("no operand is expanded", m.op.operands[0])
        # One at a time: two operands may each be given the shape by the other.
        for value, inner in expanded.items():
            twin = m.op.clone({value: inner})
            if twin.results[0].type == m.op.result.type:
                m.extra["twin"] = twin
                return
        raise NoMatch("the result takes its shape from the expanded operand", next(iter(expanded)))

    def build(self, m: Match, b: Builder) -> Value:
        return b(m["twin"])


def _unexpanded(value: Value) -> Value:
    """The value before an expand, or before a reshape that only adds leading axes of size one."""
    op = value.op
    if isinstance(op, Expand):
        return op.x
    if isinstance(op, Reshape) and op.x.type.rank < value.type.rank:
        extra = value.type.rank - op.x.type.rank
        if value.type.dims[:extra] == (1,) * extra and value.type.dims[extra:] == op.x.type.dims:
            return op.x
    return value


def _constant(value: Value) -> bool:
    """Whether a value is a weight or uniform, directly or under casts and reshapes."""
    op: Op | None = value.op
    while isinstance(op, Cast | Reshape | Expand):
        value, op = op.x, op.x.op
    return isinstance(value, Const) or isinstance(op, Scalar | Full)


RULES: tuple[Rule, ...] = (
    ConstantRight(), Identity(), Negation(), ScalarChain(), SubtractScalar(), DivideByRoot(), OneOver(), DivideByScalar(),
    PowerOfScalar(), ReciprocalOfRoot(), Rectifier(), WhereConstant(), BroadcastOperand())
