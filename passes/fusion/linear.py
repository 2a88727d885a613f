"""Rules that compute linears of one input as one: queries, keys and values; gate and up projection."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from ingot.ir.module import Builder
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.layout import Concat, Reshape, Split, Transpose
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import LayerNorm, RmsNorm
from ingot.ir.ops.pointwise import Cast, Mul, Unary
from ingot.ir.ops.quant import Dequantize
from ingot.ir.ops.rope import Rope
from ingot.ir.pattern import Elsewhere, Match, NoMatch, P, kind_of, scalar_of
from ingot.ir.rewrite import Rule
from ingot.ir.value import Const, Value
from ingot.passes.cleanup.fold_constants import folded


class QueryKeyValue(Rule):
    """The linears that make queries, keys and values from one input are one linear and a split."""

    pattern = P(Attention, bind="attention")

    def check(self, m: Match) -> None:
        op = m["attention"]
        sources = [_source(value) for value in (op.q, op.k, op.v)]
        if isinstance(sources[0].op, Split) and len({s.op for s in sources}) == 1:
            raise Elsewhere("they are parts of one tensor already", sources[0])
        for start, source in zip((op.q, op.k, op.v), sources):
            if not isinstance(source.op, Linear):
                raise NoMatch(f"{start!r} comes from {kind_of(source)}, not from a linear of its own", source)
        m.extra["linears"] = linears = [s.op for s in sources if isinstance(s.op, Linear)]
        _joinable(linears)

    def build(self, m: Match, b: Builder) -> Value:
        _join(b, m["linears"], "qkv")
        return m.op.result


class GateUp(Rule):
    """The two linears behind act(gate) * up are one linear and a split."""

    pattern = P(Mul, bind="product")

    def check(self, m: Match) -> None:
        x, y = m["product"].operands
        for gate, up in ((x, y), (y, x)):
            if isinstance(gate.op, Unary) and isinstance(gate.op.x.op, Linear) and isinstance(up.op, Linear):
                m.extra["linears"] = linears = [gate.op.x.op, up.op]
                _joinable(linears)
                return
        raise Elsewhere("it is no product of an activated linear and a linear", m.op.result)

    def build(self, m: Match, b: Builder) -> Value:
        _join(b, m["linears"], "gate_up")
        return m.op.result


def _source(value: Value) -> Value:
    """What a query, key or value was before heads, norms, rotation and cache: the result of a linear, it is hoped."""
    while True:
        match op := value.op:
            case Reshape() | Transpose() | Rope() | RmsNorm() | LayerNorm() | Cast():
                value = op.x
            case CacheWrite():
                value = op.new
            case Mul() if scalar_of(op.y) is not None:
                value = op.x
            case _:
                return value


def _joinable(linears: Sequence[Linear]) -> None:
    """Raises NoMatch unless the linears are different, read one input, and their weights are alike."""
    first = linears[0]
    for other in linears[1:]:
        if other.x is not first.x:
            raise NoMatch(f"{other.result!r} and {first.result!r} read different inputs", other.x)
        if (other.bias is None) != (first.bias is None):
            raise NoMatch("only some of the linears have a bias", other.result)
        if other.result.type.dtype != first.result.type.dtype:
            raise NoMatch("the linears differ in element type", other.result)
    if len(set(linears)) < len(linears):
        raise NoMatch("two of them are one linear", first.result)
    _alike([x.w for x in linears])
    if first.bias is not None:
        _alike([x.bias for x in linears if x.bias is not None])


def _alike(values: Sequence[Value]) -> None:
    """Raises NoMatch unless the values are weights, or dequantised alike, and can be joined along their first axis."""
    first = values[0]
    for value in values:
        if value.type.with_dims(*value.type.dims[1:]) != first.type.with_dims(*first.type.dims[1:]):
            raise NoMatch(f"weights of types {first.type} and {value.type} cannot be joined", value)
        if isinstance(value, Const):
            continue
        if not isinstance(value.op, Dequantize):
            raise NoMatch("its weight is computed in the graph", value)
        if not isinstance(first.op, Dequantize) or value.op.attrs != first.op.attrs:
            raise NoMatch("the weights are quantised differently", value)
        if (value.op.zero is None) != (first.op.zero is None):
            raise NoMatch("only some of the weights have zero points", value)
        if value.op.tensor_scale is not None or value.op.scale.type.dims[0] != value.type.dims[0]:
            raise NoMatch("its scales belong to the weight as a whole", value)
    if any(isinstance(v, Const) for v in values) and not all(isinstance(v, Const) for v in values):
        raise NoMatch("only some of the weights are quantised", first)


def _join(b: Builder, linears: Sequence[Linear], label: str) -> None:
    """One linear and a split in the place of the first of several."""
    order = {op: i for i, op in enumerate(b.func.ops)}
    first = min(linears, key=order.__getitem__)
    at = Builder(b.func, before=first)
    bias = _joined(at, [x.bias for x in linears if x.bias is not None], label) if first.bias is not None else None
    y = at(Linear(first.x, _joined(at, [x.w for x in linears], label), bias), label)
    sizes = tuple(x.result.type.dims[-1] for x in linears)
    for linear, part in zip(linears, at.add(Split(y, sizes)).results, strict=True):
        b.func.replace(linear.result, part)


def _joined(b: Builder, values: Sequence[Value], label: str) -> Value:
    """Weights joined along their first axis, quantised ones part by part."""
    ops = [v.op for v in values if isinstance(v.op, Dequantize)]
    if not ops:
        return folded(b, Concat(tuple(values), 0), name=_name(values, label), made_by="fuse")
    zeros = [op.zero for op in ops if op.zero is not None]
    return b(ops[0].clone(packed=_joined(b, [op.packed for op in ops], label), scale=_joined(b, [op.scale for op in ops], label),
                          zero=_joined(b, zeros, label) if zeros else None))


def _name(values: Sequence[Value], label: str) -> str:
    """`layers.0.attn.qkv.weight` for the parts `layers.0.attn.q_proj.weight`, ..."""
    names = [v.name.split(".") for v in values if isinstance(v, Const)]
    head, tail = _common(names), _common([n[:0:-1] for n in names])[::-1]
    return ".".join([*head[:min(map(len, names)) - len(tail) - 1], label, *tail])


def _common(names: Sequence[Sequence[str]]) -> list[str]:
    """The parts all names begin with."""
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*names))
    return [parts[0] for parts in shared]


RULES_QKV: tuple[Rule, ...] = (QueryKeyValue(),)
RULES_MLP: tuple[Rule, ...] = (GateUp(),)
