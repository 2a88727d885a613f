"""Reads attention scores back to the product of queries and keys, with the scales, caps and masks on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from ingot.ir.dims import Dim
from ingot.ir.ops.layout import Reshape
from ingot.ir.ops.matmul import MatMul
from ingot.ir.ops.pointwise import Add, Cast, Maximum, Mul, Tanh, Where
from ingot.ir.pattern import NoMatch, scalar_of
from ingot.ir.value import Value
from ingot.passes.recognition.attention_mask import SHUT

Dims = tuple[Dim, ...]


@dataclass
class Bias:
    """A summand of the scores: `value`, or `shut` where `value` is false (where it is true, when `negated`) and else zero."""

    value: Value
    factor: float = 1.0
    shut: float | None = None
    negated: bool = False


@dataclass
class Scores:
    """softcap * tanh(scale * q @ kt / softcap) + biases.

    heads: the [b, h] that tensors of rank 3 on the way, [b * h, ...], are split into; () when none were met.
    """

    product: MatMul
    heads: Dims = ()
    scale: float = 1.0
    softcap: float | None = None
    biases: list[Bias] = field(default_factory=list)


def read_scores(value: Value) -> Scores:
    """Reads scores back to the product of queries and keys. Raises NoMatch saying where it stops."""
    op = value.op
    match op:
        case MatMul():
            return Scores(op)
        case Cast() if op.x.type.dtype.is_float:
            return read_scores(op.x)
        case Reshape():
            read = read_scores(op.x)
            regroup(read, op.x, value)
            return read
        case Maximum() if (low := scalar_of(op.y)) is not None and low <= SHUT:
            return read_scores(op.x)
        case Mul() if isinstance(op.x.op, Tanh) and (cap := scalar_of(op.y)) is not None:
            read = read_scores(op.x.op.x)
            if read.biases or read.softcap is not None or cap <= 0:
                raise NoMatch("a bias is added before the soft cap", value)
            read.scale, read.softcap = read.scale * cap, cap
            return read
        case Mul() if (factor := scalar_of(op.y)) is not None and factor > 0:
            read = read_scores(op.x)
            if read.softcap is not None:
                raise NoMatch("capped scores are scaled", value)
            read.scale *= factor
            for item in read.biases:
                item.factor *= factor
            return read
        case Where():
            for scores, shut, negated in ((op.x, op.y, False), (op.y, op.x, True)):
                low = scalar_of(shut)
                if low is not None and low <= SHUT:
                    read = read_scores(scores)
                    read.biases.append(Bias(op.cond, shut=low, negated=negated))
                    return read
        case Add():
            try:
                read, bias = read_scores(op.x), op.y
            except NoMatch:
                read, bias = read_scores(op.y), op.x
            read.biases.append(Bias(bias))
            return read
    raise NoMatch("no product of queries and keys: " + (f"found {op.name}" if op else "found an input"), value)


def regroup(read: Scores, before: Value, after: Value) -> None:
    """Learn the heads from a reshape [b * h, s, t] <-> [b, h, s, t]. Raises NoMatch for another one."""
    if before.type.dims == after.type.dims:
        return
    merged, split = sorted((before.type.dims, after.type.dims), key=len)
    if (len(merged), len(split)) != (3, 4) or merged != (split[0] * split[1], *split[2:]):
        raise NoMatch("the scores are reshaped otherwise than from merged to single heads", after)
    if read.heads not in ((), split[:2]):
        raise NoMatch("the scores are reshaped twice", after)
    read.heads = split[:2]


def heads_apart(x: Value, heads: Dims) -> Dims:
    """The dims of x, its first axis split into heads when it has rank 3. Raises NoMatch when it cannot be."""
    dims = x.type.dims
    if len(dims) == 4:
        return dims
    if len(dims) != 3 or not heads or dims[0] != heads[0] * heads[1]:
        raise NoMatch(f"{x.type} is neither [b, h, ...] nor [b * h, ...]", x)
    return (*heads, *dims[1:])
