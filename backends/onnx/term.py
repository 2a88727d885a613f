"""ONNX values in scalar expressions: operators on a `Term` emit nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ingot.ir.types import DType, bool_

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering


class Term:
    """An ONNX value of element type `dtype`; the other operand may be a Term of the same type or a Python number."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, lo: Lowering, name: str, dtype: DType) -> None:
        self.lo = lo
        self.name = name
        self.dtype = dtype

    def like(self, other: Any) -> Term:
        """`other` as a Term: a number becomes a constant of this one's type."""
        return other if isinstance(other, Term) else Term(self.lo, self.lo.const(other, self.dtype), self.dtype)

    def apply(self, op_type: str, *others: Any, dtype: DType | None = None, **attrs: Any) -> Term:
        """`op_type` of this term and others; the result has this one's type unless `dtype` says otherwise."""
        names = [self.name, *(self.like(o).name for o in others)]
        return Term(self.lo, self.lo.emit(op_type, *names, **attrs), dtype or self.dtype)

    def cast(self, dtype: DType) -> Term:
        return Term(self.lo, self.lo.cast(self.name, self.dtype, dtype), dtype)

    def __add__(self, other: Any) -> Term:
        return self.apply("Add", other)

    def __radd__(self, other: Any) -> Term:
        return self.like(other).apply("Add", self)

    def __sub__(self, other: Any) -> Term:
        return self.apply("Sub", other)

    def __rsub__(self, other: Any) -> Term:
        return self.like(other).apply("Sub", self)

    def __mul__(self, other: Any) -> Term:
        return self.apply("Mul", other)

    def __rmul__(self, other: Any) -> Term:
        return self.like(other).apply("Mul", self)

    def __truediv__(self, other: Any) -> Term:
        return self.apply("Div", other)

    def __rtruediv__(self, other: Any) -> Term:
        return self.like(other).apply("Div", self)

    def __neg__(self) -> Term:
        return self.apply("Neg")

    def __eq__(self, other: object) -> Term:  # type: ignore[override]
        return self.apply("Equal", other, dtype=bool_)

    def __ne__(self, other: object) -> Term:  # type: ignore[override]
        return (self == other).apply("Not")

    def __lt__(self, other: Any) -> Term:
        return self.apply("Less", other, dtype=bool_)

    def __le__(self, other: Any) -> Term:
        return self.apply("LessOrEqual", other, dtype=bool_)

    def __gt__(self, other: Any) -> Term:
        return self.apply("Greater", other, dtype=bool_)

    def __ge__(self, other: Any) -> Term:
        return self.apply("GreaterOrEqual", other, dtype=bool_)


def _both(x: Any, y: Any) -> tuple[Term, Term]:
    x = x if isinstance(x, Term) else y.like(x)
    return x, x.like(y)


class OnnxPrimitives:
    """`o` for `Pointwise.scalar` over Terms."""

    def __getattr__(self, name: str) -> Any:
        op_type = _UNARY.get(name)
        if op_type is None:
            raise AttributeError(name)
        return lambda x: x.apply(op_type)

    def rsqrt(self, x: Term) -> Term:
        return x.apply("Sqrt").apply("Reciprocal")

    def isnan(self, x: Term) -> Term:
        return x.apply("IsNaN", dtype=bool_)

    def maximum(self, x: Any, y: Any) -> Term:
        a, b = _both(x, y)
        return a.apply("Max", b)

    def minimum(self, x: Any, y: Any) -> Term:
        a, b = _both(x, y)
        return a.apply("Min", b)

    def pow(self, x: Any, y: Any) -> Term:
        a, b = _both(x, y)
        return a.apply("Pow", b)

    def where(self, c: Term, x: Any, y: Any) -> Term:
        a, b = _both(x, y)
        return Term(c.lo, c.lo.emit("Where", c.name, a.name, b.name), a.dtype)

    def logical_not(self, x: Term) -> Term:
        return x.cast(bool_).apply("Not")

    def logical_and(self, x: Term, y: Term) -> Term:
        return x.cast(bool_).apply("And", y.cast(bool_))

    def logical_or(self, x: Term, y: Term) -> Term:
        return x.cast(bool_).apply("Or", y.cast(bool_))

    def mod(self, x: Any, y: Any) -> Term:
        """With the sign of the divisor; ONNX's Mod has that for integers, for floats only C's fmod."""
        a, b = _both(x, y)
        if a.dtype.is_integer:
            return a.apply("Mod", b)
        rest = a.apply("Mod", b, fmod=1)
        return self.where(rest * b < 0, rest + b, rest)

    def floordiv(self, x: Any, y: Any) -> Term:
        """Rounded down; ONNX's Div rounds integers towards zero."""
        a, b = _both(x, y)
        exact = (a - self.mod(a, b)) / b
        return exact if a.dtype.is_integer else exact.apply("Round")


_UNARY = {"exp": "Exp", "log": "Log", "sqrt": "Sqrt", "sin": "Sin", "cos": "Cos", "tanh": "Tanh", "erf": "Erf",
          "sigmoid": "Sigmoid", "softplus": "Softplus", "abs": "Abs", "sign": "Sign", "floor": "Floor", "ceil": "Ceil",
          "round": "Round"}

ONNX = OnnxPrimitives()
