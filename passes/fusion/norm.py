"""Rules that join a residual sum and the norm that reads it."""

from __future__ import annotations

from ingot.ir.module import Builder
from ingot.ir.op import Op
from ingot.ir.ops.norm import LayerNorm, RmsNorm, SkipLayerNorm, SkipRmsNorm
from ingot.ir.ops.pointwise import Add
from ingot.ir.pattern import Match, NoMatch, P, kind_of
from ingot.ir.rewrite import Rule
from ingot.ir.value import Const, Value


class ResidualNorm(Rule):
    """norm(x + skip), with the sum read by others too, is one op with two results."""

    pattern = P((RmsNorm, LayerNorm), bind="norm")

    def check(self, m: Match) -> None:
        norm = m["norm"]
        total = norm.x.op
        if not isinstance(total, Add):
            raise NoMatch(f"its input comes from {kind_of(norm.x)}, not from a sum", norm.x)
        if not total.x.type == total.y.type == norm.x.type:
            raise NoMatch(f"the sum broadcasts or casts: {total.x.type} and {total.y.type}", norm.x)
        for name, value in norm.operand_fields[1:]:
            if value is not None and not isinstance(value, Const):
                raise NoMatch(f"its {name} is computed in the graph (fold-constants makes it a weight)", value)

    def build(self, m: Match, b: Builder) -> Value:
        norm: RmsNorm | LayerNorm = m["norm"]
        total = norm.x.op
        assert isinstance(total, Add)
        fused: Op
        if isinstance(norm, LayerNorm):
            fused = SkipLayerNorm(total.x, total.y, norm.w, norm.bias, norm.eps)
        else:
            fused = SkipRmsNorm(total.x, total.y, norm.w, norm.eps)
        fused.loc = norm.loc
        # In the place of the sum, whose other readers may stand before the norm.
        b.func.insert(fused, before=total)
        normed, summed = fused.results
        b.func.replace(total.result, summed)
        return normed


RULES: tuple[Rule, ...] = (ResidualNorm(),)
