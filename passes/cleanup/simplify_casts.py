"""Rules on casts, and which element types hold which."""

from __future__ import annotations

from ingot.ir.module import Builder
from ingot.ir.ops.creation import Full, Scalar
from ingot.ir.ops.pointwise import Cast
from ingot.ir.pattern import Elsewhere, Match, NoMatch, P, V, scalar_of
from ingot.ir.rewrite import Rule
from ingot.ir.types import DType
from ingot.ir.value import Value


class CastOfCast(Rule):
    """A cast to a type that holds the first one, followed by another, is that other."""

    pattern = P(Cast, P(Cast, V("x"), bind="inner"))

    def check(self, m: Match) -> None:
        first, middle = m["x"].type.dtype, m["inner"].dtype
        if not holds(middle, first):
            raise NoMatch(f"{middle} does not hold every {first}", m["inner"].result)

    def build(self, m: Match, b: Builder) -> Value:
        return b(Cast(m["x"], m.op.result.type.dtype))


class CastToSame(Rule):
    """A cast to the element type a value already has."""

    pattern = P(Cast, V("x"))

    def check(self, m: Match) -> None:
        if m["x"].type != m.op.result.type:
            raise Elsewhere(f"{m['x'].type.dtype} to {m.op.result.type.dtype}", m["x"])

    def build(self, m: Match, b: Builder) -> Value:
        return m["x"]  # type: ignore[no-any-return]


class CastOfUniform(Rule):
    """A uniform tensor made in the element type it is cast to."""

    pattern = P(Cast, P((Scalar, Full)))

    def build(self, m: Match, b: Builder) -> Value:
        type_, known = m.op.result.type, scalar_of(m.op.result)
        assert known is not None
        value = literal(known, type_.dtype)
        return b(Full(type_.dims, value, type_.dtype) if type_.rank else Scalar(value, type_.dtype))


def holds(wide: DType, narrow: DType) -> bool:
    """Whether every value of element type `narrow` is one of `wide`."""
    if wide == narrow or narrow.kind == "bool":
        return True
    if narrow.is_float:
        significant = {"f64": 53, "f32": 24, "f16": 11, "bf16": 8, "f8e4m3": 4, "f8e5m2": 3}
        exponent = {"f64": 11, "f32": 8, "f16": 5, "bf16": 8, "f8e4m3": 4, "f8e5m2": 5}
        return (wide.name in significant and narrow.name in significant and significant[wide.name] >= significant[narrow.name]
                and exponent[wide.name] >= exponent[narrow.name])
    digits = narrow.bits - (narrow.kind == "int")
    if wide.is_float:
        return digits <= {"f64": 53, "f32": 24, "f16": 11, "bf16": 8}.get(wide.name, 0)
    return wide.is_integer and digits <= wide.bits - (wide.kind == "int") and (wide.kind == "int" or narrow.kind == "uint")


def literal(value: float, dtype: DType) -> int | float:
    """A number as an attribute of an op that makes tensors of `dtype`."""
    return float(value) if dtype.is_float else int(value)


RULES: tuple[Rule, ...] = (CastToSame(), CastOfCast(), CastOfUniform())
