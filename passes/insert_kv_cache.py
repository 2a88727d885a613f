"""insert-kv-cache: gives a causal decoder key/value caches, so that a step costs one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ingot.errors import PassError
from ingot.ir.dims import sym
from ingot.ir.module import Builder, Func, Module
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.creation import Arange
from ingot.ir.types import TensorType, i64
from ingot.ir.value import Value
from ingot.passes.base import Context, Pass
from ingot.passes.sequence import follow_sequence


@dataclass(frozen=True)
class InsertKvCache(Pass):
    """Puts a cache of T positions under every causal attention.

    New parameters `kc0, vc0, kc1, ...` [B, key heads, T, features], returned updated (and reusing the parameter's
    memory); `pos` [B, S] says where each token stands. The axis maps prove that nothing else looks along the sequence;
    a model that is not a causal decoder is refused with the offending value.
    """

    name = "insert-kv-cache"
    contract: ClassVar[Literal["exact", "lossy", "cache"]] = "cache"
    establishes = ("cached",)
    not_after = {"cached": "the model has a KV cache already"}  # noqa: RUF012

    def run(self, module: Module, ctx: Context) -> int:
        func = module.main
        found = follow_sequence(func)
        if not found.attentions:
            raise PassError("there is no causal attention to cache", hint="run recognize first, or compile without a cache")
        pos = _positions(func, found.aranges)
        least, greatest = module.dims[str(found.length)]
        module.set_dim("T", least, greatest)
        new: list[Value] = []
        for i, op in enumerate(found.attentions):
            new += _cache(func, op, pos, i)
        first = len(func.returns)
        func.set_returns([*func.returns, *new])
        for index, value in enumerate(new, first):
            write = value.op
            assert isinstance(write, CacheWrite)
            func.reuse[index] = write.cache
        func.drop_dead()
        return len(found.attentions)


def _positions(func: Func, aranges: list[Arange]) -> Value:
    """The parameter `pos`; whatever counted positions along the sequence reads it instead."""
    ids = func.param("ids")
    existing = [p for p in func.params if p.hint == "pos"]
    pos = existing[0] if existing else func.add_param("pos", TensorType(i64, ids.type.dims))
    for arange in aranges:
        for user in arange.result.users:
            if user.name != "reshape" or user.result.type.dims != (1, *arange.result.type.dims):
                raise PassError(f"positions are counted by {arange!r} and used by {user.name} in a way that cannot follow a cache",
                                where=user.loc)
            value = pos
            if arange.dtype != i64:
                from ingot.ir.ops.pointwise import Cast

                value = Builder(func, before=user)(Cast(pos, arange.dtype))
            rewire(func, user.result, value)
    func.retype()
    return pos


def rewire(func: Func, old: Value, new: Value) -> None:
    """Let users of `old` take `new` although its type differs; the caller retypes the func afterwards."""
    for user in old.users:
        for name, value in user.operand_fields:
            if value is old:
                func.set_operand(user, name, new)
            elif isinstance(value, tuple) and old in value:
                raise PassError(f"{user.name} takes {old!r} in a list, which cannot change its type", where=user.loc)


def _cache(func: Func, op: Attention, pos: Value, index: int) -> list[Value]:
    b = Builder(func, before=op)
    written: list[Value] = []
    for value, name in ((op.k, "kc"), (op.v, "vc")):
        batch, heads, _, features = value.type.dims
        cache = func.add_param(f"{name}{index}", value.type.with_dims(batch, heads, sym("T"), features))
        written.append(b(CacheWrite(cache, value, pos), hint=f"{name}{index}_new"))
    cached = b(Attention(op.q, written[0], written[1], pos, op.mask, op.bias, op.sinks, **op.attrs))
    func.replace(op.result, cached)
    return written
