"""Rules that find attention written out as products and a softmax, its masks, and repeated key heads."""

from __future__ import annotations

from dataclasses import dataclass, field

from ingot.ir.dims import Dim
from ingot.ir.module import Builder
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.creation import Scalar
from ingot.ir.ops.layout import Expand, Reshape, Transpose
from ingot.ir.ops.matmul import MatMul
from ingot.ir.ops.pointwise import Add, Cast, Mul, Tanh, Where
from ingot.ir.ops.reduce import Softmax
from ingot.ir.pattern import Match, NoMatch, P, Through, V, scalar_of
from ingot.ir.rewrite import Rule
from ingot.ir.types import f32
from ingot.ir.value import Value
from ingot.passes.attention_mask import SHUT, Visibility, read_mask, terms
from ingot.passes.simplify_pointwise import number

Dims = tuple[Dim, ...]


@dataclass
class Bias:
    """A summand of the scores: `value`, or zero where `hidden` is a condition (`negated`: where it does not hold).

    merged: the [b, h] its first axis must be split into, or ().
    """

    value: Value
    factor: float = 1.0
    shut: float | None = None
    negated: bool = False
    merged: Dims = ()


@dataclass
class Scores:
    """softcap * tanh(scale * q @ kt / softcap) + biases."""

    product: MatMul
    merged: Dims = ()
    scale: float = 1.0
    softcap: float | None = None
    biases: list[Bias] = field(default_factory=list)


class WrittenAttention(Rule):
    """softmax(scale * q @ k^T + bias) @ v with casts, caps and masks in between, the heads an axis or merged with the batch."""

    pattern = P(MatMul, Through(P(Softmax, V("scores"), bind="softmax"), (Cast, Reshape)), V("v"), bind="outer")

    def check(self, m: Match) -> None:
        softmax, v = m["softmax"], m["v"]
        dims = softmax.result.type.dims
        if softmax.axis % len(dims) != len(dims) - 1:
            raise NoMatch("the softmax is not over the last axis", softmax.result)
        merged: Dims = ()
        probabilities = m["outer"].x.type
        if probabilities.dims != dims:
            if len(dims) != 4 or probabilities.dims != (dims[0] * dims[1], *dims[2:]):
                raise NoMatch("the probabilities are reshaped", m["outer"].x)
            merged = dims[:2]
        elif len(dims) == 3:
            merged = (dims[0], 1)
        elif len(dims) != 4:
            raise NoMatch(f"the scores have {len(dims)} axes", softmax.result)
        m.extra["merged"] = merged
        m.extra["read"] = read = _scores(m["scores"], () if len(dims) == 4 else merged)
        q, kt = (_shape(x, read.merged) for x in (read.product.x, read.product.y))
        values = _shape(v, merged)
        if q[0] != kt[0] or values[:2] != kt[:2] or values[2] != kt[3]:
            raise NoMatch("queries, keys and values do not have the shapes of attention", v)
        if not (isinstance(q[1], int) and isinstance(kt[1], int) and q[1] % kt[1] == 0):
            raise NoMatch("the heads do not fit together", read.product.y)

    def build(self, m: Match, b: Builder) -> Value:
        read: Scores = m["read"]
        q = _split(b, read.product.x, read.merged)
        k = _keys(b, read.product.y, read.merged)
        v = _split(b, m["v"], m["merged"])
        bias: Value | None = None
        for item in read.biases:
            value = _bias(b, item)
            bias = value if bias is None else b(Add(bias, value))
        y = b(Attention(q, k, v, bias=bias, scale=read.scale, softcap=read.softcap))
        result = m.op.result.type
        if y.type.dtype != result.dtype:
            y = b(Cast(y, result.dtype))
        return y if y.type == result else b(Reshape(y, result.dims))


class MaskedBias(Rule):
    """A bias that only hides keys, by position or padding, is said by attributes and a mask."""

    pattern = P(Attention, bind="attention", pos=None)

    def check(self, m: Match) -> None:
        op = m["attention"]
        if op.bias is None:
            raise NoMatch("there is no bias", op.result)
        if op.mask is not None:
            raise NoMatch("there is a mask already", op.mask)
        seen = Visibility()
        if op.causal:
            seen.limit(ahead=1)
        if op.window is not None:
            seen.limit(back=op.window, ahead=None if op.causal else op.window)
        rest: list[Value] = []
        miss: NoMatch | None = None
        for term in terms(op.bias):
            found = Visibility()
            try:
                read_mask(term, found)
            except NoMatch as reason:
                miss = reason
                rest.append(term)
                continue
            seen.limit(ahead=found.ahead, back=found.back)
            seen.padding += found.padding
        if miss is not None and not len(rest) < len(list(terms(op.bias))):
            raise miss
        causal, window = seen.attributes
        if (causal or window is not None) and op.q.type.dims[2] != op.k.type.dims[2]:
            raise NoMatch("queries and keys differ in number, so positions cannot be told from indices", op.k)
        if len(seen.padding) > 1 or any(p.type.dims[1:] != (op.k.type.dims[2],) for p in seen.padding):
            raise NoMatch("there are several padding masks", seen.padding[0])
        m.extra.update(causal=causal, window=window, rest=rest, mask=seen.padding[0] if seen.padding else None)

    def build(self, m: Match, b: Builder) -> Value:
        bias: Value | None = None
        for term in m["rest"]:
            bias = term if bias is None else b(Add(bias, term))
        return b(m["attention"].clone(bias=bias, causal=m["causal"], window=m["window"], mask=m["mask"]))


class ExpandedBias(Rule):
    """A bias need not be expanded: attention broadcasts it."""

    pattern = P(Attention, bind="attention")

    def check(self, m: Match) -> None:
        bias = m["attention"].bias
        if bias is None or not isinstance(bias.op, Expand):
            raise NoMatch("its bias is not expanded", bias)

    def build(self, m: Match, b: Builder) -> Value:
        return b(m["attention"].clone(bias=m["attention"].bias.op.x))


class RepeatedHeads(Rule):
    """Key and value heads repeated to the number of query heads: attention shares them by itself."""

    pattern = P(Attention, bind="attention")

    def check(self, m: Match) -> None:
        op = m["attention"]
        keys, values = _repeated(op.k), _repeated(op.v)
        if keys is None or values is None or keys[1] != values[1]:
            raise NoMatch("key and value heads are not repeated alike", op.k)
        m.extra["kv"] = keys, values

    def build(self, m: Match, b: Builder) -> Value:
        k, v = (value if value.type.rank == 4 else b(Reshape(value, dims)) for value, dims in m["kv"])
        return b(m["attention"].clone(k=k, v=v))


class ScaledQuery(Rule):
    """Queries (or keys) multiplied by a number just before attention: part of its scale."""

    pattern = P(Attention, bind="attention")

    def check(self, m: Match) -> None:
        op = m["attention"]
        for name in ("q", "k"):
            chain, value = [], getattr(op, name)
            while isinstance(value.op, Transpose | Reshape) and value.n_uses == 1:
                chain.append(value.op)
                value = value.op.x
            if isinstance(value.op, Mul) and value.n_uses == 1 and value.op.x.type == value.type:
                factor = scalar_of(value.op.y)
                if factor is not None:
                    m.extra.update(name=name, chain=chain[::-1], x=value.op.x, factor=factor)
                    return
        raise NoMatch("neither queries nor keys are scaled", op.q)

    def build(self, m: Match, b: Builder) -> Value:
        value = m["x"]
        for step in m["chain"]:
            value = b(step.clone({step.x: value}))
        op = m["attention"]
        return b(op.clone(**{m["name"]: value, "scale": op.scale * m["factor"]}))


def _scores(value: Value, merged: Dims) -> Scores:
    """Reads scores back to the product of queries and keys. Raises NoMatch saying where it stops."""
    op = value.op
    match op:
        case MatMul():
            return Scores(op, merged)
        case Cast() if op.x.type.dtype.is_float:
            return _scores(op.x, merged)
        case Reshape() if op.x.type.rank == 3 and len(op.shape) == 4 and op.x.type.dims[1:] == op.shape[2:] and not merged:
            return _scores(op.x, op.shape[:2])
        case Mul() if isinstance(op.x.op, Tanh) and (cap := scalar_of(op.y)) is not None:
            read = _scores(op.x.op.x, merged)
            if read.biases or read.softcap is not None or cap <= 0:
                raise NoMatch("a bias is added before the soft cap", value)
            read.scale, read.softcap = read.scale * cap, cap
            return read
        case Mul() if (factor := scalar_of(op.y)) is not None and factor > 0:
            read = _scores(op.x, merged)
            if read.softcap is not None:
                raise NoMatch("capped scores are scaled", value)
            read.scale *= factor
            for bias in read.biases:
                bias.factor *= factor
            return read
        case Where():
            for scores, shut, negated in ((op.x, op.y, False), (op.y, op.x, True)):
                low = scalar_of(shut)
                if low is not None and low <= SHUT:
                    read = _scores(scores, merged)
                    read.biases.append(Bias(op.cond, shut=low, negated=negated, merged=read.merged if merged else ()))
                    return read
        case Add():
            try:
                read, bias = _scores(op.x, merged), op.y
            except NoMatch:
                read, bias = _scores(op.y, merged), op.x
            read.biases.append(Bias(bias, merged=merged))
            return read
    raise NoMatch("no product of queries and keys: " + (f"found {op.name}" if op else "found an input"), value)


def _shape(x: Value, merged: Dims) -> Dims:
    """The dims of x with its first axis split into `merged`. Raises NoMatch when it cannot be."""
    dims = x.type.dims
    if not merged:
        if len(dims) != 4:
            raise NoMatch(f"{x.type} has no axis of heads", x)
        return dims
    if len(dims) != 3 or dims[0] != merged[0] * merged[1]:
        raise NoMatch(f"{x.type} is not [batch * heads, ...]", x)
    return (*merged, *dims[1:])


def _split(b: Builder, x: Value, merged: Dims) -> Value:
    return b(Reshape(x, _shape(x, merged))) if merged else x


def _keys(b: Builder, kt: Value, merged: Dims) -> Value:
    """Keys [b, g, t, d] from their transpose."""
    if not merged:
        return b(Transpose(kt, (0, 1, 3, 2)))
    turn = kt.op
    k = turn.x if isinstance(turn, Transpose) and turn.perm == (0, 2, 1) else b(Transpose(kt, (0, 2, 1)))
    return _split(b, k, merged)


def _bias(b: Builder, item: Bias) -> Value:
    value = item.value
    if item.merged and value.type.rank == 3:
        split = item.merged if value.type.dims[0] == item.merged[0] * item.merged[1] else (1, 1)
        value = b(Reshape(value, (*split, *value.type.dims[1:])))
    if item.shut is not None:
        zero, shut = b(Scalar(0.0, f32)), b(Scalar(item.shut, f32))
        value = b(Where(value, shut, zero) if item.negated else Where(value, zero, shut))
    return value if item.factor == 1 else b(Mul(value, number(b, item.factor, value.type)))


def _repeated(value: Value) -> tuple[Value, Dims] | None:
    """Heads before they were repeated, and their dims [b, g, t, d]."""
    op = value.op
    if isinstance(op, Expand) and op.x.type.rank == 4 and op.x.type.dims == (op.shape[0], 1, *op.shape[2:]):
        return op.x, op.x.type.dims
    if not isinstance(op, Reshape) or not isinstance(op.x.op, Expand):
        return None
    wide, source = op.x.op.shape, op.x.op.x
    if len(wide) != 5 or source.type.dims != (*wide[:2], 1, *wide[3:]):
        return None
    return (source, (*wide[:2], *wide[3:])) if value.type.dims == (wide[0], wide[1] * wide[2], *wide[3:]) else None


RULES: tuple[Rule, ...] = (WrittenAttention(), MaskedBias(), ExpandedBias(), RepeatedHeads(), ScaledQuery())
