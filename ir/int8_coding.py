"""How values are coded in int8, in a cache or in front of a linear: `round(x / step)` clamped to a byte, `code * step` when read.
"""

from __future__ import annotations

from ingot.ir.module import Builder
from ingot.ir.ops.attention import CacheWrite
from ingot.ir.ops.creation import Scalar
from ingot.ir.ops.pointwise import Abs, Cast, Clamp, Div, Mul, Round
from ingot.ir.ops.reduce import Max
from ingot.ir.pattern import NoMatch, P, S, V, match
from ingot.ir.types import DType, i8
from ingot.ir.value import Const, Value

_CODES = P(Cast, P(Clamp, P(Round, P(Div, V("x"), V("step"))), least=-128.0, greatest=127.0))

LEAST = 1e-30
"""What a greatest magnitude is taken for at the least, so that a step is never zero."""
_TOKEN_STEP = P(Mul, P(Clamp, P(Max, P(Abs, V("x"))), least=LEAST), S(equals=1 / 127))


def encode(b: Builder, x: Value, step: Value) -> Value:
    """Codes i8 of a float value; `step` broadcasts to it."""
    return b(Cast(b(Clamp(b(Round(b(Div(x, step)))), -128.0, 127.0)), i8))


def decode(b: Builder, codes: Value, step: Value, dtype: DType) -> Value:
    """The floats that codes stand for."""
    return b(Mul(b(Cast(codes, dtype)), step))


def token_step(b: Builder, x: Value) -> Value:
    """The step, [..., 1], by which the greatest magnitude in the last axis of x becomes 127."""
    peak = b(Max(b(Abs(x)), axis=(-1,), keep=True))
    return b(Mul(b(Clamp(peak, LEAST)), b(Scalar(1 / 127, x.type.dtype))))


def rounded(value: Value) -> tuple[Value, Const | None]:
    """What was coded in int8 and is read again as `value`, and the step of its codes; None for that of `token_step`.

    Raises NoMatch where it is coded in another way.
    """
    read = value.op
    if not isinstance(read, Mul) or not isinstance(read.x.op, Cast) or read.x.op.x.op is None:
        raise NoMatch("not read from int8 codes", value)
    code = match(_CODES, read.x.op.x.op)
    x, step = code["x"], code["step"]
    if step is not read.y:
        raise NoMatch("read with another step than it is coded with", value)
    if isinstance(step, Const) and step.type.rank <= 1:
        return x, step
    if step.op is None or match(_TOKEN_STEP, step.op)["x"] is not x or step.type.dims != (*x.type.dims[:-1], 1):
        raise NoMatch("neither one step for all nor one for each token", value)
    return x, None


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
