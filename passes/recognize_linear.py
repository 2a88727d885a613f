"""Rules that find linear layers written as matrix products, sums and reshapes."""

from __future__ import annotations

from ingot.ir.module import Builder
from ingot.ir.ops.layout import Reshape, Transpose
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.pointwise import Add
from ingot.ir.pattern import Match, NoMatch, P, V
from ingot.ir.rewrite import Rule
from ingot.ir.value import Value
from ingot.passes.fold_constants import folded, from_weights


class ProductWithWeight(Rule):
    """x @ w for a weight w [in, out] is a linear with the weight transposed."""

    pattern = P(MatMul, V("x"), V("w"))

    def check(self, m: Match) -> None:
        if m["w"].type.rank != 2:
            raise NoMatch(f"the right factor has rank {m['w'].type.rank}", m["w"])
        if not from_weights(m["w"]):
            raise NoMatch("the right factor is no weight", m["w"])

    def build(self, m: Match, b: Builder) -> Value:
        w = m["w"]
        if isinstance(w.op, Transpose):
            return b(Linear(m["x"], w.op.x))
        return b(Linear(m["x"], folded(b, Transpose(w, (1, 0)), name=f"{w.hint}.transpose", made_by="recognize")))


class LinearBias(Rule):
    """A linear without bias, plus a weight [out]."""

    pattern = P(Add, P(Linear, bind="linear", bias=None), V("bias"))

    def check(self, m: Match) -> None:
        linear, bias = m["linear"], m["bias"]
        if bias.type.dims != linear.w.type.dims[:1] or not from_weights(bias):
            raise NoMatch(f"the summand {bias.type} is no weight over the output features", bias)
        if linear.result.n_uses > 1:
            raise NoMatch("the linear without bias is read elsewhere", linear.result)
        if linear.result.type != m.op.result.type:
            raise NoMatch("the sum has another element type", bias)

    def build(self, m: Match, b: Builder) -> Value:
        return b(Linear(m["linear"].x, m["linear"].w, m["bias"]))


class LinearOfReshape(Rule):
    """A linear over leading axes that were merged is the linear over them as they were, merged afterwards."""

    pattern = P(Linear, bind="linear")

    def check(self, m: Match) -> None:
        linear = m["linear"]
        merge = linear.x.op
        if not isinstance(merge, Reshape):
            raise NoMatch("its input is not reshaped", linear.x)
        if merge.x.type.rank <= linear.x.type.rank or merge.x.type.dims[-1:] != linear.x.type.dims[-1:]:
            raise NoMatch("the reshape does more than merge leading axes", linear.x)

    def build(self, m: Match, b: Builder) -> Value:
        linear = m["linear"]
        return b(Reshape(b(linear.clone(x=linear.x.op.x)), m.op.result.type.dims))


class LinearBetweenReshapes(Rule):
    """A linear over rows that were flattened before it and are unflattened after it is one over the unflattened rows."""

    pattern = P(Reshape, P(Linear, bind="linear"))

    def check(self, m: Match) -> None:
        linear, shape = m["linear"], m.op.result.type.dims
        if not isinstance(linear.x.op, Reshape):
            raise NoMatch("its input is not reshaped", linear.x)
        if len(shape) <= linear.x.type.rank or shape[-1] != linear.result.type.dims[-1] or linear.result.n_uses > 1:
            raise NoMatch("the reshape after it does more than split leading axes", m.op.result)

    def build(self, m: Match, b: Builder) -> Value:
        linear = m["linear"]
        rows = (*m.op.result.type.dims[:-1], linear.x.type.dims[-1])
        return b(linear.clone(x=b(Reshape(linear.x.op.x, rows))))


RULES: tuple[Rule, ...] = (ProductWithWeight(), LinearBias(), LinearOfReshape(), LinearBetweenReshapes())
