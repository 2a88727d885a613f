"""The residual stream: the values that a chain of sums connects, and the weights that write to it and read from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ingot.ir.module import Func
from ingot.ir.op import Op, Return
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.layout import Expand, Pick, Reshape, Slice, Take, Transpose
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import LayerNorm, Norm, RmsNorm, SkipLayerNorm, SkipRmsNorm
from ingot.ir.ops.pointwise import Add, Cast, Div, Mul, Neg, Sub
from ingot.ir.pattern import NoMatch, scalar_of
from ingot.ir.value import Const, Value


@dataclass
class Residual:
    """One residual stream. Its last axis has `width` channels.

    values: all values of the stream. writers: linears whose result enters it. tables: weights [..., width] whose rows enter
    it, by lookup or by a sum. norms: what normalises it, each with the linears behind. readers: linears that read it as it is.
    """

    width: int
    values: set[Value] = field(default_factory=set)
    writers: list[Linear] = field(default_factory=list)
    tables: dict[Const, None] = field(default_factory=dict)
    norms: dict[Norm, list[Linear]] = field(default_factory=dict)
    readers: list[Linear] = field(default_factory=list)


def residual_streams(func: Func) -> list[Residual]:
    """The streams that begin at the lookups of a func, in order. Raises NoMatch where something else takes part in one."""
    streams: list[Residual] = []
    for op in func.ops:
        width = op.result.type.dims[-1] if isinstance(op, Embedding) else None
        if isinstance(width, int) and not any(op.results[0] in s.values for s in streams):
            streams.append(_grown(op.results[0], width))
    return streams


def _grown(seed: Value, width: int) -> Residual:
    stream = Residual(width)
    pending = [seed]
    while pending:
        value = pending.pop()
        if value in stream.values:
            continue
        stream.values.add(value)
        if value.type.dims[-1:] != (width,):
            raise NoMatch(f"{value!r} joins a stream of {width} channels", value)
        pending += _makers(stream, value)
        for user in value.users:
            pending += _uses(stream, value, user)
    return stream


def _makers(stream: Residual, value: Value) -> tuple[Value, ...]:
    """The values of the stream that `value` is made from; notes the weights."""
    op = value.op
    match op:
        case None if isinstance(value, Const):
            stream.tables[value] = None
        case Embedding() if isinstance(op.w, Const):
            stream.tables[op.w] = None
        case Linear() if isinstance(op.w, Const) and (op.bias is None or isinstance(op.bias, Const)):
            stream.writers.append(op)
        case Add() | Sub():
            return (op.x, op.y)
        case SkipRmsNorm() | SkipLayerNorm() if value is op.results[1]:
            return (op.x, op.skip)
        case _ if op is not None and (source := _moved(op)) is not None:
            return (source,)
        case _:
            what = "an input" if op is None else "a norm's result" if isinstance(op, Norm) else f"the result of {op.name}"
            raise NoMatch(f"{what} enters the residual stream", value)
    return ()


def _uses(stream: Residual, value: Value, user: Op) -> tuple[Value, ...]:
    """The values of the stream that a user makes of `value`; notes norms and readers."""
    match user:
        case Add() | Sub():
            return user.results
        case SkipRmsNorm() | SkipLayerNorm() if value in (user.x, user.skip):
            stream.norms[user] = readers_of(user.results[0])
            return (user.results[1],)
        case RmsNorm() | LayerNorm() if value is user.x:
            stream.norms[user] = readers_of(user.results[0])
            return ()
        case Linear() if value is user.x:
            stream.readers.append(user)
            return ()
        case Embedding() if value is user.w:
            return ()
        case _ if _moved(user) is value:
            return user.results
        case Return():
            raise NoMatch("the residual stream is an output", value)
        case _ if isinstance(value, Const):
            return ()
    raise NoMatch(f"{user.name} reads the residual stream", value)


def readers_of(value: Value) -> list[Linear]:
    """The linears that read a value, past ops that leave its last axis alone. Raises NoMatch when anything else does."""
    found: list[Linear] = []
    for user in value.users:
        if isinstance(user, Linear) and user.x is value and isinstance(user.w, Const):
            found.append(user)
        elif _moved(user) is value:
            found += readers_of(user.results[0])
        else:
            raise NoMatch(f"{'an output' if isinstance(user, Return) else user.name} takes the result of a norm", value)
    return found


def _moved(op: Op) -> Value | None:
    """The operand an op passes on with its last axis as it is: only rounded, negated, scaled as a whole, or moved."""
    match op:
        case Cast() | Neg():
            return op.x
        case Mul() | Div() if scalar_of(op.y) is not None:
            return op.x
        case Mul() if scalar_of(op.x) is not None:
            return op.y
        case Reshape() | Transpose() | Slice() | Expand() | Take() | Pick():
            axes = op.axis_map()
            _, ends = axes.follow(0, op.x.type.rank - 1)
            alone = ends == [(0, op.result.type.rank - 1)] and op.x.type.dims[-1] == op.result.type.dims[-1]
            return op.x if alone and not set(axes.results[0][-1]) & axes.mixed else None
    return None
