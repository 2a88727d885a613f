"""How values are coded as integers, in a cache or in front of a linear: `round(x / step)` clamped to the codes' range, `code *
step` when read.
"""

from __future__ import annotations

from ingot.ir.module import Builder
from ingot.ir.ops.attention import CacheWrite
from ingot.ir.ops.creation import Scalar
from ingot.ir.ops.pointwise import Abs, Cast, Clamp, Div, Mul, Round
from ingot.ir.ops.reduce import Max
from ingot.ir.pattern import NoMatch, P, S, V, match
from ingot.ir.types import DType, i4, i8
from ingot.ir.value import Const, Value

LEAST = 1e-30
"""What a greatest magnitude is taken for at the least, so that a step is never zero."""


CODES = (i4, i8)
"""The types of codes."""


def greatest(codes: DType) -> int:
    """The greatest code of a signed integer type; the least is one below its negative."""
    return int(2 ** (codes.bits - 1) - 1)


def _coded(codes: DType) -> P:
    most = float(greatest(codes))
    return P(Cast, P(Clamp, P(Round, P(Div, V("x"), V("step"))), least=-most - 1, greatest=most))


def _token_step(codes: DType) -> P:
    return P(Mul, P(Clamp, P(Max, P(Abs, V("x"))), least=LEAST), S(equals=1 / greatest(codes)))


def encode(b: Builder, x: Value, step: Value, codes: DType = i8) -> Value:
    """Codes of a float value; `step` broadcasts to it."""
    most = float(greatest(codes))
    return b(Cast(b(Clamp(b(Round(b(Div(x, step)))), -most - 1, most)), codes))


def decode(b: Builder, codes: Value, step: Value, dtype: DType) -> Value:
    """The floats that codes stand for."""
    return b(Mul(b(Cast(codes, dtype)), step))


def token_step(b: Builder, x: Value, codes: DType = i8) -> Value:
    """The step, [..., 1], by which the greatest magnitude in the last axis of x becomes the greatest code."""
    peak = b(Max(b(Abs(x)), axis=(-1,), keep=True))
    return b(Mul(b(Clamp(peak, LEAST)), b(Scalar(1 / greatest(codes), x.type.dtype))))


def rounded(value: Value) -> tuple[Value, Const | None]:
    """What was coded in int8 and is read again as `value`, and the step of its codes; None for that of `token_step`.

    Raises NoMatch where it is coded in another way.
    """
    read = value.op
    if not isinstance(read, Mul) or not isinstance(read.x.op, Cast) or read.x.op.x.type.dtype != i8 or read.x.op.x.op is None:
        raise NoMatch("not read from int8 codes", value)
    x, step = _source(read.x.op.x, read.y), read.y
    if isinstance(step, Const) and step.type.rank <= 1:
        return x, step
    if step.op is None or match(_token_step(i8), step.op)["x"] is not x or step.type.dims != (*x.type.dims[:-1], 1):
        raise NoMatch("neither one step for all nor one for each token", value)
    return x, None


def cached(value: Value) -> tuple[CacheWrite, Value, Const | None]:
    """The cache behind keys or values, what is written to it (before coding), and the step of its codes (None for floats).

    Raises NoMatch where `value` is not read from a cache, or is coded in another way: by steps that are cached themselves, say.
    """
    read = value.op
    if isinstance(read, CacheWrite):
        return read, read.new, None
    if not isinstance(read, Mul) or not isinstance(read.y, Const) or not isinstance(read.x.op, Cast):
        raise NoMatch("keys and values do not come from a cache", value)
    write = read.x.op.x.op
    if not isinstance(write, CacheWrite) or write.cache.type.dtype not in CODES:
        raise NoMatch("keys and values do not come from a cache of int8 or int4", value)
    return write, _source(write.new, read.y), read.y


def _source(codes: Value, step: Value) -> Value:
    """What was coded; NoMatch where it was not with the step that the codes are read with."""
    if codes.op is None or codes.type.dtype not in CODES:
        raise NoMatch("not codes", codes)
    found = match(_coded(codes.type.dtype), codes.op)
    if found["step"] is not step:
        raise NoMatch("read with another step than it is coded with", codes)
    x: Value = found["x"]
    return x

