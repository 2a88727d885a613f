"""dce: dead code elimination."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.ir.module import Module
from ingot.passes.base import Context, Pass


@dataclass(frozen=True)
class Dce(Pass):
    """Erases ops none of whose results is used, and weights nothing reads."""

    name = "dce"
    may_match_nothing = True

    def run(self, module: Module, ctx: Context) -> int:
        weights = len(module.consts)
        ops = sum(func.drop_dead() for func in module.funcs.values())
        return ops + weights - len(module.consts)
