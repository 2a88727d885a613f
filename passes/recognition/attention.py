"""Rules that find attention written out as products and a softmax, its masks, and repeated key heads."""

from __future__ import annotations

from ingot.ir.module import Builder
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.creation import Scalar
from ingot.ir.ops.layout import Expand, Reshape, Transpose
from ingot.ir.ops.matmul import MatMul
from ingot.ir.ops.pointwise import Add, Cast, Mul, Where
from ingot.ir.ops.reduce import Softmax
from ingot.ir.pattern import Elsewhere, Match, NoMatch, P, Through, V, scalar_of
from ingot.ir.rewrite import Rule
from ingot.ir.types import f32
from ingot.ir.value import Value
from ingot.passes.cleanup.simplify_pointwise import number
from ingot.passes.recognition.attention_mask import Visibility, read_mask, terms
from ingot.passes.recognition.attention_scores import Bias, Dims, Scores, heads_apart, read_scores, regroup


class WrittenAttention(Rule):
    """softmax(scale * q @ k^T + bias) @ v with casts, caps and masks in between, the heads an axis or merged with the batch.

    A query from which all keys are hidden by a finite bias gets zeros instead of a mean over hidden keys.
    """

    pattern = P(MatMul, Through(P(Softmax, V("scores"), bind="softmax"), (Cast, Reshape)), V("v"), bind="outer")

    def check(self, m: Match) -> None:
        softmax, v = m["softmax"], m["v"]
        if softmax.axis % softmax.x.type.rank != softmax.x.type.rank - 1:
            raise NoMatch("the softmax is not over the last axis", softmax.result)
        m.extra["read"] = read = read_scores(m["scores"])
        regroup(read, softmax.result, m["outer"].x)
        if not read.heads and read.product.result.type.rank == 3:
            read.heads = (read.product.result.type.dims[0], 1)
        q, kt = (heads_apart(x, read.heads) for x in (read.product.x, read.product.y))
        values = heads_apart(v, read.heads)
        if q[0] != kt[0] or values[:2] != kt[:2] or values[2] != kt[3]:
            raise NoMatch("queries, keys and values do not have the shapes of attention", v)
        if not (isinstance(q[1], int) and isinstance(kt[1], int) and q[1] % kt[1] == 0):
            raise NoMatch("the heads do not fit together", read.product.y)

    def build(self, m: Match, b: Builder) -> Value:
        read: Scores = m["read"]
        q = _split(b, read.product.x, read.heads)
        k = _keys(b, read.product.y, read.heads)
        v = _split(b, m["v"], read.heads)
        bias: Value | None = None
        for item in read.biases:
            value = _bias(b, item, read.heads)
            bias = value if bias is None else b(Add(bias, value))
        y = b(Attention(q, k, v, bias=bias, scale=read.scale, softcap=read.softcap))
        result = m.op.results[0].type
        if y.type.dtype != result.dtype:
            y = b(Cast(y, result.dtype))
        return y if y.type == result else b(Reshape(y, result.dims))


class MaskedBias(Rule):
    """A bias that only hides keys, by position or padding, is said by attributes and a mask."""

    pattern = P(Attention, bind="attention", pos=None)

    def check(self, m: Match) -> None:
        op = m["attention"]
        if op.bias is None:
            raise Elsewhere("there is no bias", op.result)
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
        if seen.padding and op.mask is not None:
            raise NoMatch("there is a padding mask already", seen.padding[0])
        if len(seen.padding) > 1 or any(p.type.dims[1:] != (op.k.type.dims[2],) for p in seen.padding):
            raise NoMatch("there are several padding masks", seen.padding[0])
        m.extra.update(causal=causal, window=window, rest=rest, mask=seen.padding[0] if seen.padding else op.mask)

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
            raise Elsewhere("its bias is not expanded", bias)

    def build(self, m: Match, b: Builder) -> Value:
        return b(m["attention"].clone(bias=m["attention"].bias.op.x))


class OpenMask(Rule):
    """A mask that hides nothing."""

    pattern = P(Attention, bind="attention")

    def check(self, m: Match) -> None:
        mask = m["attention"].mask
        if mask is None or not scalar_of(mask):
            raise Elsewhere("its mask is not known to be open", mask)

    def build(self, m: Match, b: Builder) -> Value:
        return b(m["attention"].clone(mask=None))


class RepeatedHeads(Rule):
    """Key and value heads repeated to the number of query heads: attention shares them by itself."""

    pattern = P(Attention, bind="attention")

    def check(self, m: Match) -> None:
        op = m["attention"]
        keys, values = _repeated(op.k), _repeated(op.v)
        if keys is None and values is None:
            raise Elsewhere("no heads are repeated", op.k)
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
        raise Elsewhere("neither queries nor keys are scaled", op.q)

    def build(self, m: Match, b: Builder) -> Value:
        value = m["x"]
        for step in m["chain"]:
            value = b(step.clone({step.x: value}))
        op = m["attention"]
        return b(op.clone(**{m["name"]: value, "scale": op.scale * m["factor"]}))


def _split(b: Builder, x: Value, heads: Dims) -> Value:
    return x if x.type.rank == 4 else b(Reshape(x, heads_apart(x, heads)))


def _keys(b: Builder, kt: Value, heads: Dims) -> Value:
    """Keys [b, g, t, d] from their transpose."""
    if kt.type.rank == 4:
        return b(Transpose(kt, (0, 1, 3, 2)))
    turn = kt.op
    k = turn.x if isinstance(turn, Transpose) and turn.perm == (0, 2, 1) else b(Transpose(kt, (0, 2, 1)))
    return _split(b, k, heads)


def _bias(b: Builder, item: Bias, heads: Dims) -> Value:
    value = item.value
    if value.type.rank == 3 and heads:
        split = heads if value.type.dims[0] == heads[0] * heads[1] else (1, 1)
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


RULES: tuple[Rule, ...] = (WrittenAttention(), MaskedBias(), ExpandedBias(), OpenMask(), RepeatedHeads(),
                           ScaledQuery())
