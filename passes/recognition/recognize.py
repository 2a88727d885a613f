"""recognize: elementwise ops, reductions and products that together are a norm, an activation, a linear, a rope, attention."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.ir.module import Module
from ingot.ir.rewrite import Rule, rewrite
from ingot.passes.base import Context, Pass, option
from ingot.passes.cleanup import canonicalize
from ingot.passes.cleanup.cse import share_ops, share_weights
from ingot.passes.recognition import activation, attention, linear, norm, rope


@dataclass(frozen=True)
class Recognize(Pass):
    """Replaces written-out layers by one op each. The graph is canonicalised first and afterwards."""

    norm: bool = option(True, doc="rms_norm and layer_norm, their weights and biases")
    activation: bool = option(True, doc="gelu in three forms, silu, softplus, hardswish")
    linear: bool = option(True, doc="products with weights and the sums after them")
    rope: bool = option(True, doc="rotary position embeddings: half or interleaved, whole or partial")
    attention: bool = option(True, doc="attention written out; masks, repeated key heads and scales as its attributes")

    name = "recognize"
    may_match_nothing = True

    def run(self, module: Module, ctx: Context) -> int:
        _tidy(module)
        sites = 0
        while found := ctx.rewrite(module, self._rules()):
            sites += found
            _tidy(module)
        return sites

    def _rules(self) -> tuple[Rule, ...]:
        return ((norm.RULES if self.norm else ())
                + (activation.RULES if self.activation else ())
                + (linear.RULES if self.linear else ())
                + (rope.RULES if self.rope else ())
                + (attention.RULES if self.attention else ()))


def _tidy(module: Module) -> None:
    """The one form the rules are written for."""
    share_weights(module)
    rewrite(module, canonicalize.RULES)
    for func in module.funcs.values():
        share_ops(func)
