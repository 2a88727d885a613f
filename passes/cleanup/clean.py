"""clean: the clean-up passes together."""

from __future__ import annotations

from dataclasses import dataclass

from ingot.ir.module import Module
from ingot.passes.base import Context, Pass
from ingot.passes.cleanup.canonicalize import Canonicalize
from ingot.passes.cleanup.cse import Cse
from ingot.passes.cleanup.dce import Dce
from ingot.passes.cleanup.fold_constants import FoldConstants

STAGES: tuple[Pass, ...] = (Canonicalize(), FoldConstants(), Cse(), Dce())
ROUNDS = 8


@dataclass(frozen=True)
class Clean(Pass):
    """Runs canonicalize, fold-constants, cse and dce until nothing changes any more."""

    name = "clean"
    may_match_nothing = True

    def run(self, module: Module, ctx: Context) -> int:
        sites = 0
        for _ in range(ROUNDS):
            epoch = module.epoch
            sites += sum(stage.run(module, ctx) for stage in STAGES)
            if module.epoch == epoch:
                break
        return sites
