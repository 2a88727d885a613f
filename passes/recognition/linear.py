"""Rules that find linear layers written as matrix products, sums and reshapes."""

from __future__ import annotations

from ingot.ir.dims import Dim, product
from ingot.ir.module import Builder
from ingot.ir.ops.layout import Reshape, Transpose
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.norm import LayerNorm, RmsNorm
from ingot.ir.ops.pointwise import Add, Cast, Pointwise
from ingot.ir.pattern import Elsewhere, Match, NoMatch, P, V
from ingot.ir.rewrite import Rule
from ingot.ir.value import Value
from ingot.passes.cleanup.fold_constants import folded, from_weights

Dims = tuple[Dim, ...]


class ProductWithWeight(Rule):
    """x @ w for a weight w [in, out] is a linear with the weight transposed."""

    pattern = P(MatMul, V("x"), V("w"))

    def check(self, m: Match) -> None:
        if not from_weights(m["w"]):
            raise Elsewhere("the right factor is no weight", m["w"])
        if m["w"].type.rank != 2:
            raise NoMatch(f"the weight has rank {m['w'].type.rank}", m["w"])

    def build(self, m: Match, b: Builder) -> Value:
        w = m["w"]
        if isinstance(w.op, Transpose):
            return b(Linear(m["x"], w.op.x))
        return b(Linear(m["x"], folded(b, Transpose(w, (1, 0)), name=f"{w.hint}.transpose", made_by="recognize")))


class LinearBias(Rule):
    """A linear without bias, plus a weight [out]."""

    pattern = P(Add, P(Linear, bind="linear"), V("bias"))

    def check(self, m: Match) -> None:
        linear, bias = m["linear"], m["bias"]
        if not from_weights(bias):
            raise Elsewhere("the summand is no weight", bias)
        if linear.bias is not None:
            raise NoMatch("the linear has a bias already", linear.bias)
        if bias.type.dims != linear.w.type.dims[:1]:
            raise NoMatch(f"the summand {bias.type} is no vector over the output features", bias)
        if linear.result.n_uses > 1:
            raise NoMatch("the linear without bias is read elsewhere", linear.result)
        if linear.result.type != m.op.result.type:
            raise NoMatch("the sum has another element type", bias)

    def build(self, m: Match, b: Builder) -> Value:
        return b(Linear(m["linear"].x, m["linear"].w, m["bias"]))


class MergedAxes(Rule):
    """A layer over leading axes that were merged is the layer over them as they were, merged afterwards."""

    pattern = P((Linear, RmsNorm, LayerNorm, Pointwise, Cast))

    def check(self, m: Match) -> None:
        op = m.op
        inputs = op.operands if isinstance(op, Pointwise) else op.operands[:1]
        wide = [v for v in inputs if v.type.rank > 1]
        leading = {_merged_from(v) for v in wide}
        if len(leading) != 1 or None in leading:
            raise Elsewhere("its inputs are not all reshaped from the same axes", op.operands[0])
        if isinstance(op, Pointwise) and any(v.type.dims != op.result.type.dims for v in wide):
            raise NoMatch("it broadcasts", op.operands[0])
        m.extra.update(wide=wide, leading=leading.pop())

    def build(self, m: Match, b: Builder) -> Value:
        apart: dict[Value, Value] = {}
        for value in m["wide"]:
            source, dims = value.op.x, (*m["leading"], value.type.dims[1])
            apart[value] = source if source.type.dims == dims else b(Reshape(source, dims))
        return b(Reshape(b(m.op.clone(apart)), m.op.result.type.dims))


def _merged_from(value: Value) -> Dims | None:
    """The several leading axes a reshape to [n, d] merged into n."""
    op = value.op
    if not isinstance(op, Reshape) or value.type.rank != 2:
        return None
    for k in range(2, op.x.type.rank):
        if product(op.x.type.dims[:k]) == value.type.dims[0]:
            return op.x.type.dims[:k]
    return None


RULES: tuple[Rule, ...] = (ProductWithWeight(), LinearBias(), MergedAxes())
