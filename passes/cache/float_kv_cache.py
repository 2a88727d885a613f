"""float-kv-cache: gives back float caches to a decoder whose keys and values are cached as codes of int8 or int4."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ingot.ir.integer_coding import cached
from ingot.ir.module import Module
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.pattern import NoMatch
from ingot.ir.value import Value
from ingot.passes.base import Context, Contract, Pass


@dataclass(frozen=True)
class FloatKvCache(Pass):
    """Takes the integer coding out of every cache; parameters keep their names and order.

    The compiler makes the graph for prompts with it: kernels for many tokens are faster on floats, and the runtime can
    code a prompt's keys and values once, when it has been read.
    """

    name = "float-kv-cache"
    contract: ClassVar[Contract] = "lossy"

    def run(self, module: Module, ctx: Context) -> int:
        func = module.main
        reads: list[tuple[Value, CacheWrite]] = []
        for op in func.ops:
            if not isinstance(op, Attention):
                continue
            for read in (op.k, op.v):
                try:
                    write, new, step = cached(read)
                except NoMatch:
                    continue
                if step is not None:
                    func.set_param_type(write.cache, new.type.with_dims(*write.cache.type.dims))
                    func.set_operand(write, "new", new)
                    reads.append((read, write))
        func.retype()
        for read, write in reads:
            func.replace(read, write.result)
        func.drop_dead()
        return len(reads)
