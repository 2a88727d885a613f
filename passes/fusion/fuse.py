"""fuse: ops that a kernel computes better together."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.errors import NothingMatched
from ingot.ir.module import Module
from ingot.ir.rewrite import Rule
from ingot.passes.base import Context, Pass, option
from ingot.passes.fusion import linear, norm


@dataclass(frozen=True)
class Fuse(Pass):
    """Joins ops into larger ones; without options, all of these. A fusion asked for that fits nowhere is an error."""

    norm: bool = option(False, doc="a residual sum and the norm after it")
    qkv: bool = option(False, doc="the linears of queries, keys and values, quantised or not")
    mlp: bool = option(False, doc="the gate and up linears of a gated MLP, quantised or not")

    name = "fuse"
    establishes = ("fused",)
    may_match_nothing = True

    def run(self, module: Module, ctx: Context) -> int:
        rules: dict[str, tuple[Rule, ...]] = {"norm": norm.RULES, "qkv": linear.RULES_QKV, "mlp": linear.RULES_MLP}
        asked = [name for name in rules if getattr(self, name)]
        found: dict[str, int] = {}
        for name in asked or rules:
            found[name] = ctx.rewrite(module, rules[name])
        ctx.details.update(found)
        for name in asked:
            if not found[name]:
                raise NothingMatched(f"fuse{{{name}}}")
        return sum(found.values())
