"""insert-kv-cache: gives a causal decoder key/value caches, so that a step costs one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ingot.errors import IRError, PassError
from ingot.ir.dims import sym
from ingot.ir.integer_coding import decode, encode, greatest, token_step
from ingot.ir.module import Builder, Func, Module
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.creation import Arange
from ingot.ir.ops.pointwise import Cast
from ingot.ir.types import DType, TensorType, i4, i8, i64
from ingot.ir.value import Value
from ingot.ir.weights import ArrayWeight, call
from ingot.passes.base import Context, Contract, Pass, option
from ingot.passes.cache.sequence import follow_sequence
from ingot.passes.calibration.calibrate import peaks


@dataclass(frozen=True)
class InsertKvCache(Pass):
    """Puts a cache of T positions under every causal attention.

    New parameters `kc0, vc0, kc1, ...` [B, key heads, T, features], returned updated (and reusing the parameter's
    memory); `pos` [B, S] says where each token stands. The axis maps prove that nothing else looks along the sequence;
    a model that is not a causal decoder is refused with the offending value.
    """

    name = "insert-kv-cache"
    contract: ClassVar[Contract] = "cache"
    establishes = ("cached",)
    not_after = {"cached": "the model has a KV cache already"}  # noqa: RUF012

    dtype: str = option("float", doc="elements of the cache: the model's own, int8 or int4", choices=("float", "int8", "int4"))
    scale: str = option("channel", doc="steps of integer codes: channel: one per head and feature; "
                                       "tensor: one for all of a layer's keys or values; token: one per head and token, from its "
                                       "greatest element, cached beside the codes", choices=("channel", "tensor", "token"))

    def requires(self) -> tuple[str, ...]:
        """Steps for good come from the keys and values of calibration text."""
        return ("calibration",) if self.dtype != "float" and self.scale != "token" else ()

    def run(self, module: Module, ctx: Context) -> int:
        func = module.main
        found = follow_sequence(func)
        if not found.attentions:
            raise PassError("there is no causal attention to cache", hint="run recognize first, or compile without a cache")
        steps = self._steps(module, found.attentions, ctx) if self.requires() else {}
        pos = _positions(func, found.aranges)
        least, most = module.dims[str(found.length)]
        module.set_dim("T", least, most)
        writes: list[CacheWrite] = []
        for i, op in enumerate(found.attentions):
            b = Builder(func, before=op)
            k, v = (self._cached(func, b, value, f"{kind}c{i}", pos, steps.get(value), writes)
                    for value, kind in ((op.k, "k"), (op.v, "v")))
            func.replace(op.result, b(Attention(op.q, k, v, pos, op.mask, op.bias, op.sinks, **op.attrs)))
        first = len(func.returns)
        func.set_returns([*func.returns, *(w.result for w in writes)])
        func.reuse.update(enumerate((w.cache for w in writes), first))
        func.drop_dead()
        return len(found.attentions)

    @property
    def _codes(self) -> DType:
        return i4 if self.dtype == "int4" else i8

    def _steps(self, module: Module, attentions: list[Attention], ctx: Context) -> dict[Value, np.ndarray]:
        """The step of coded keys and values, [1, key heads, 1, features] or [1]: the peak on calibration text gets the greatest
        code, and what is larger is clipped. Room above it would cost all others more than clipping costs these few."""
        watched = [v for op in attentions for v in (op.k, op.v)]
        found = peaks(module, watched, ctx, keep=(1, 3))
        steps: dict[Value, np.ndarray] = {}
        for value, peak in found.items():
            if self.scale == "tensor":
                peak = peak.max().reshape(1)
            steps[value] = (np.maximum(peak, 1e-6) / greatest(self._codes)).astype(np.float32)
        ctx.details["scales"] = int(sum(s.size for s in steps.values()))
        return steps

    def _cached(self, func: Func, b: Builder, value: Value, name: str, pos: Value, step: np.ndarray | None,
                writes: list[CacheWrite]) -> Value:
        """`value` [b, g, s, d] written to a cache `name` and read back, [b, g, T, d]; adds to `writes`."""

        def cache(new: Value, name: str) -> Value:
            batch, heads, _, features = new.type.dims
            param = func.add_param(name, TensorType(new.type.dtype, (batch, heads, sym("T"), features)))
            writes.append(CacheWrite(param, new, pos))
            return b(writes[-1], hint=f"{name}_new")

        if self.dtype == "float":
            return cache(value, name)
        if step is None:
            by_token = token_step(b, value, self._codes)
            codes = cache(encode(b, value, by_token, self._codes), name)
            return decode(b, codes, cache(by_token, f"{name}.step"), value.type.dtype)
        stored = ArrayWeight(step, call("computed", **{"pass": self.name, "key": name}))
        const = b.const(f"{name}.scale", stored)
        return decode(b, cache(encode(b, value, const, self._codes), name), const, value.type.dtype)


def _positions(func: Func, aranges: list[Arange]) -> Value:
    """The parameter `pos`; whatever counted positions along the sequence reads it instead."""
    ids = func.param("ids")
    existing = [p for p in func.params if p.hint == "pos"]
    pos = existing[0] if existing else func.add_param("pos", TensorType(i64, ids.type.dims))
    for arange in aranges:
        for user in arange.result.users:
            if user.name != "reshape" or user.result.type.dims != (1, *arange.result.type.dims):
                raise PassError(f"positions counted by {arange!r} are used by {user.name} in a way that cannot follow a cache",
                                where=user.loc)
            value = pos if arange.dtype == i64 else Builder(func, before=user)(Cast(pos, arange.dtype))
            _rewire(func, user.result, value)
    try:
        func.retype()
    except IRError as error:
        raise PassError(f"positions counted along the sequence cannot differ from row to row: {error.message}", where=error.where,
                        hint="run recognize and clean first") from error
    return pos


def _rewire(func: Func, old: Value, new: Value) -> None:
    """Let users of `old` take `new` although its type differs; the caller retypes the func afterwards."""
    for user in old.users:
        for name, value in user.operand_fields:
            if value is old:
                func.set_operand(user, name, new)
            elif isinstance(value, tuple) and old in value:
                raise PassError(f"{user.name} takes {old!r} in a list, which cannot change its type", where=user.loc)
