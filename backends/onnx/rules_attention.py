"""Attention, the key/value cache and rotary embedding in standard operators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingot.backends.onnx.dtypes import held
from ingot.backends.onnx.registry import rule
from ingot.backends.onnx.rules_layout import expanded
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.attention_parts import HIDDEN, may_be_blind, visible
from ingot.ir.ops.rope import Rope
from ingot.ir.types import f32, i64

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering


@rule(Attention)
def attention(op: Attention, lo: Lowering) -> str | None:
    """The standard Attention, which knows no sinks; the rest is left to the decomposition."""
    if op.sinks is not None or held(op.q.type.dtype) != f32 or (op.bias is not None and may_be_blind(op)):
        return None
    causal = op.causal and op.pos is None and op.window is None and op.mask is None
    seen = "" if causal else "".join(lo.build(op, visible))
    allowed, steps = seen or None, op.q.type.dims[2]
    full = op.pos is not None or op.causal or op.window is not None
    if op.bias is not None:
        allowed = lo.cast(lo(op.bias), held(op.bias.type.dtype), f32)
        if seen:
            allowed = lo.emit("Where", seen, allowed, lo.const(HIDDEN, f32))
        full = op.bias.type.rank > 1 and op.bias.type.dims[-2] == steps
    if allowed and not full:
        # onnxruntime wants the mask's queries written out, other axes may be broadcast.
        allowed = lo.emit("Expand", allowed, lo.shape((steps, 1)))
    q, k, v = (lo.cast(lo(x), held(x.type.dtype), f32) for x in (op.q, op.k, op.v))
    return lo.emit("Attention", q, k, v, allowed, scale=float(op.scale), is_causal=1 if causal else None,
                   softcap=None if op.softcap is None else float(op.softcap))


@rule(CacheWrite)
def cache_write(op: CacheWrite, lo: Lowering) -> str:
    """TensorScatter at each row's first position; the others follow it."""
    lo.require(24)
    first = lo.emit("Gather", lo(op.pos), lo.const(0), axis=1)
    return lo.emit("TensorScatter", lo(op.cache), lo(op.new), lo.cast(first, held(op.pos.type.dtype), i64), axis=2, mode="linear")


@rule(Rope)
def rope(op: Rope, lo: Lowering) -> str:
    """RotaryEmbedding with cosines and sines computed from the positions, once for all layers with equal frequencies."""
    dtype = held(op.x.type.dtype)
    angles_type = held(op.inv_freq.type.dtype)
    at = lo.emit("Unsqueeze", lo.cast(lo(op.pos), held(op.pos.type.dtype), angles_type), lo.const([2]))
    angles = lo.emit("Mul", at, lo(op.inv_freq))
    batch, _, steps, size = op.x.type.dims
    half = op.rotary_dim // 2
    tables = []
    for node in ("Cos", "Sin"):
        table = lo.emit(node, angles)
        if op.scale != 1.0:
            table = lo.emit("Mul", table, lo.const(op.scale, angles_type))
        table = expanded(lo, lo.cast(table, angles_type, dtype), (op.pos.type.dims[0], steps, half), (batch, steps, half))
        tables.append(table)
    return lo.emit("RotaryEmbedding", lo(op.x), *tables, interleaved=int(op.interleaved),
                   rotary_embedding_dim=op.rotary_dim if op.rotary_dim != size else None)
