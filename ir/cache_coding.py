"""How keys and values are coded in an int8 cache: `round(x / step)` clamped to a byte, and `code * step` when read."""

from __future__ import annotations

from ingot.ir.module import Builder
from ingot.ir.ops.attention import CacheWrite
from ingot.ir.ops.pointwise import Cast, Clamp, Div, Mul, Round
from ingot.ir.pattern import NoMatch, P, V, match
from ingot.ir.types import DType, i8
from ingot.ir.value import Const, Value

_CODES = P(Cast, P(Clamp, P(Round, P(Div, V("x"), V("step"))), least=-128.0, greatest=127.0))


def encode(b: Builder, x: Value, step: Value) -> Value:
    """Codes i8 of a float value; `step` broadcasts to it."""
    return b(Cast(b(Clamp(b(Round(b(Div(x, step)))), -128.0, 127.0)), i8))


def decode(b: Builder, codes: Value, step: Value, dtype: DType) -> Value:
    """The floats that codes stand for."""
    return b(Mul(b(Cast(codes, dtype)), step))


def cached(value: Value) -> tuple[CacheWrite, Value, Const | None]:
    """The cache behind keys or values, what is written to it (before coding), and the step of its codes (None for floats).

    Raises NoMatch where `value` is not read from a cache, or is coded in another way.
    """
    read = value.op
    if isinstance(read, CacheWrite):
        return read, read.new, None
    if not isinstance(read, Mul) or not isinstance(read.y, Const) or not isinstance(read.x.op, Cast):
        raise NoMatch("keys and values do not come from a cache", value)
    write = read.x.op.x.op
    if not isinstance(write, CacheWrite) or write.cache.type.dtype != i8 or write.new.op is None:
        raise NoMatch("keys and values do not come from an int8 cache", value)
    code = match(_CODES, write.new.op)
    if code["step"] is not read.y:
        raise NoMatch("the int8 cache is read with another step than it is written with", value)
    new: Value = code["x"]
    return write, new, read.y
