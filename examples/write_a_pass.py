"""A pass of one's own, and the test that finds what is wrong with it.

    ingot opt model.ir --passes fold-scale --plugin examples/write_a_pass.py
    pytest examples/write_a_pass.py
    python examples/write_a_pass.py        # plants a bug, and shows the module on which it is caught
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hypothesis import Phase, given, settings

from ingot.ir.module import Builder, Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.pointwise import Mul
from ingot.ir.pattern import Match, NoMatch, P, S, V, match
from ingot.ir.rewrite import Rule
from ingot.ir.value import Const, Value
from ingot.passes.base import Context, Pass
from ingot.passes.cleanup.fold_constants import folded
from ingot.testing import assert_contract, decoders


class ScaledInput(Rule):
    """linear(x * c, w, bias) is linear(x, w * c, bias)."""

    pattern = P(Linear, bind="linear")
    scaled = P(Mul, V("x"), S("c"))

    def check(self, m: Match) -> None:
        linear = m["linear"]
        if linear.x.op is None:
            raise NoMatch("its input is no product", linear.x)
        if not isinstance(linear.w, Const):
            raise NoMatch("its weight is computed in the graph", linear.w)
        m.extra["product"] = product = match(self.scaled, linear.x.op)
        if product["x"].type != linear.x.type:
            raise NoMatch("the product broadcasts or casts", linear.x)

    def build(self, m: Match, b: Builder) -> Value:
        return b(m["linear"].clone(x=m["product"]["x"], w=self.times(b, m["linear"].w, m)))

    def times(self, b: Builder, weight: Const, m: Match) -> Value:
        factor = next(v for v in m["product"].op.operands if v is not m["product"]["x"])
        return folded(b, Mul(weight, factor), name=f"{weight.name}.scaled", made_by="fold-scale")


@dataclass(frozen=True)
class FoldScale(Pass):
    """Moves a number that scales the input of a linear into its weight."""

    name = "fold-scale"
    may_match_nothing = True
    rule: ClassVar[Rule] = ScaledInput()

    def run(self, module: Module, ctx: Context) -> int:
        return ctx.rewrite(module, [self.rule])


@settings(max_examples=30, deadline=None)
@given(decoders())
def test_fold_scale(module: Module) -> None:
    assert_contract(FoldScale(), module)


class ScaledBias(ScaledInput):
    """The bug: the bias is scaled as well."""

    def build(self, m: Match, b: Builder) -> Value:
        linear = m["linear"]
        bias = None if linear.bias is None else self.times(b, linear.bias, m)
        return b(linear.clone(x=m["product"]["x"], w=self.times(b, linear.w, m), bias=bias))


class FoldScaleWrongly(FoldScale):
    """Without a name of its own no pipeline finds it."""

    rule = ScaledBias()


@settings(max_examples=50, deadline=None, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink])
@given(decoders())
def with_the_bug(module: Module) -> None:
    assert_contract(FoldScaleWrongly(), module)


if __name__ == "__main__":
    test_fold_scale()
    print("fold-scale keeps its contract")
    try:
        with_the_bug()
    except AssertionError as error:
        print("with the bug,", str(error).partition("--- before")[0])
