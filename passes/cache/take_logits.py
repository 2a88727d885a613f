"""take-logits: computes the output only at asked positions, which is all that decoding needs of a prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ingot.errors import PassError
from ingot.ir.dims import Dim, Expr, substitute, sym
from ingot.ir.module import Builder, Func, Module
from ingot.ir.op import Op
from ingot.ir.ops.layout import Pick, Reshape, Transpose
from ingot.ir.types import TensorType, i64
from ingot.ir.value import Value
from ingot.passes.base import Context, Pass
from ingot.passes.cache.sequence import SequenceMap, follow_sequence


@dataclass(frozen=True)
class TakeLogits(Pass):
    """Everything behind the last attention is computed at positions `take` [B, N] alone: output[b, n] is what it was at
    [b, take[b, n]]. Run it before insert-kv-cache."""

    name = "take-logits"
    establishes = ("take",)
    not_after = {"take": "the output is taken at chosen positions already",  # noqa: RUF012
                 "cached": "it follows the sequence through attention without a cache; put it before insert-kv-cache"}

    def run(self, module: Module, ctx: Context) -> int:
        func = module.main
        found = follow_sequence(func)
        if len(func.returns) != 1 or found.axis.get(func.returns[0]) != 1:
            raise PassError("take-logits needs one output [batch, sequence, ...]")
        batch = func.param("ids").type.dims[0]
        count = sym("N")
        module.set_dim("N", *module.dims[str(found.length)])
        take = func.add_param("take", TensorType(i64, (batch, count)))
        func.set_returns([_Tail(func, found, take, count).build()])
        func.drop_dead()
        return 1


class _Tail:
    """The ops behind the last attention, rebuilt over N positions."""

    def __init__(self, func: Func, found: SequenceMap, take: Value, count: Expr) -> None:
        self.func = func
        self.found = found
        self.take = take
        self.resize: dict[str, Dim] = {str(found.length): count}
        self.new: dict[Value, Value] = {}
        self.tail = self._behind()

    def build(self) -> Value:
        for op in list(self.func.ops):
            if op in self.tail:
                b = Builder(self.func, before=op)
                mapping = {v: self._narrow(b, v) for v in op.operands}
                twin = b.add(op.clone(mapping, **{k: self._dims(v) for k, v in op.attrs.items()}))
                self.new.update(zip(op.results, twin.results))
        output = self.func.returns[0]
        return self._narrow(Builder(self.func), output)

    def _behind(self) -> set[Op]:
        """Ops that read the last attention's result, directly or not, leaving out the layout ops right after it."""
        if not self.found.attentions:
            return set()
        last = self.found.attentions[-1].result
        while len(last.users) == 1 and isinstance(last.users[0], Reshape | Transpose) and last.users[0].result in self.found.axis:
            last = last.users[0].result
        reached = {last}
        tail: set[Op] = set()
        for op in self.func.ops:
            if any(v in reached for v in op.operands):
                tail.add(op)
                reached.update(op.results)
        return tail

    def _narrow(self, b: Builder, value: Value) -> Value:
        if value in self.new:
            return self.new[value]
        axis = self.found.axis.get(value)
        if axis is None:
            return value
        if axis == 0:
            raise PassError(f"{value!r} runs along the sequence without a batch axis")
        self.new[value] = b(Pick(value, self.take, axis=axis), hint=value.hint)
        return self.new[value]

    def _dims(self, attribute: Any) -> Any:
        if isinstance(attribute, tuple):
            return tuple(map(self._dims, attribute))
        return substitute(attribute, self.resize) if isinstance(attribute, Expr) else attribute
