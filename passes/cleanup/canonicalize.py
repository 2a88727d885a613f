"""canonicalize: one form for graphs that mean the same, so that later passes need one pattern each."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.ir.module import Module
from ingot.ir.rewrite import Rule
from ingot.passes.base import Context, Pass
from ingot.passes.cleanup import simplify_casts, simplify_layout, simplify_pointwise

RULES: tuple[Rule, ...] = simplify_layout.RULES + simplify_casts.RULES + simplify_pointwise.RULES


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Removes no-ops and chooses one form: constants on the right, products for powers, one split for adjoining slices.

    Dead ops and weights go as well.
    """

    name = "canonicalize"
    may_match_nothing = True

    def run(self, module: Module, ctx: Context) -> int:
        dead = sum(func.drop_dead() for func in module.funcs.values())
        return dead + ctx.rewrite(module, RULES)
