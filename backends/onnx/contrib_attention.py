"""Causal attention over a cache as GroupQueryAttention: rotary embedding, cache write and attention in one kernel.

The kernel takes queries, keys and values as [batch, sequence, heads * features], packed side by side when one linear
made them, and works in place when past and present are one buffer. It reads the position of a row's last token from
`seqlens_k`; positions within a row are consecutive, as `cache.write` promises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ingot.backends.onnx.dtypes import onnx_dtype
from ingot.backends.onnx.registry import CONTRIB_DOMAIN, Decline, rule
from ingot.ir.integer_coding import cached
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.layout import Reshape, Split, Transpose
from ingot.ir.ops.rope import Rope
from ingot.ir.pattern import NoMatch
from ingot.ir.types import f32, i32
from ingot.ir.value import Const, Value

if TYPE_CHECKING:
    from ingot.backends.onnx.lowering import Lowering

SWAP = (0, 2, 1, 3)


@rule(Reshape, contrib=True)
def merged_heads(op: Reshape, lo: Lowering) -> str:
    """Heads merged right after attention: what the kernel gives anyway."""
    swap = op.x.op
    if not isinstance(swap, Transpose) or swap.perm != SWAP or not isinstance(swap.x.op, Attention):
        raise Decline("no attention behind it")
    batch, heads, seq, features = swap.x.type.dims
    if op.shape != (batch, seq, heads * features):
        raise Decline("heads are not merged")
    return grouped_query_attention(swap.x.op, lo)


@rule(Attention, contrib=True)
def attention(op: Attention, lo: Lowering) -> str:
    merged = grouped_query_attention(op, lo)
    heads, features = op.result.type.dims[1], op.result.type.dims[3]
    return lo.emit("Transpose", lo.emit("Reshape", merged, lo.const([0, 0, heads, features])), perm=SWAP)


def grouped_query_attention(op: Attention, lo: Lowering) -> str:
    """The kernel's output [b, s, heads * features]; also provides the written caches. Raises Decline where it does not fit."""
    (k, new_k, k_scale), (v, new_v, v_scale) = _cached(op.k), _cached(op.v)
    if op.pos is None or not lo.is_port(op.pos) or not k.pos is v.pos is op.pos:
        raise Decline("not positions given from outside")
    if not (op.causal and lo.is_port(k.cache) and lo.is_port(v.cache)):
        raise Decline("not plain causal attention over cache parameters")
    if op.mask is not None or op.q.type.dims[3] != op.v.type.dims[3] or op.q.type.dtype != f32:
        raise Decline("masked, or of another type or value width")
    if op.q.type.dims[3] % 8 != 0:
        raise Decline("heads that are no multiple of 8 features")
    q, new_k, tables, rotary = _rotary(op.q, new_k, op.pos, lo)
    heads, groups = op.heads
    packed = _packed(q, new_k, new_v)
    inputs = (lo(packed), None, None) if packed is not None else tuple(_merged(x, lo) for x in (q, new_k, new_v))
    last, total = _lengths(op.pos, lo)
    bias = lo(op.bias) if op.bias is not None else None
    sinks = lo(op.sinks) if op.sinks is not None else None
    out, present_k, present_v = lo.emit_many(
        "GroupQueryAttention", *inputs, lo.port(k.cache), lo.port(v.cache), last, total, *tables, None, bias, sinks,
        *(lo.weight(s) if s is not None else None for s in (k_scale, v_scale)), n_out=3, domain=CONTRIB_DOMAIN, num_heads=heads,
        kv_num_heads=groups, scale=op.scale, softcap=op.softcap or 0.0, **rotary, **_coding(k, k_scale, v_scale),
        local_window_size=op.window if op.window is not None else -1)
    for write, present in ((k, present_k), (v, present_v)):
        if not lo.provided(write.result):
            lo.provide_outward(write.result, present)
    return out


def _cached(value: Value) -> tuple[CacheWrite, Value, Const | None]:
    """`cached`, where the kernel codes the same way: one step for all, or one per head and feature."""
    try:
        write, new, step = cached(value)
    except NoMatch as miss:
        raise Decline(miss.reason) from miss
    if step is not None and step.type.dims not in ((1,), (1, value.type.dims[1], 1, value.type.dims[3])):
        raise Decline("the cache is coded in another way than the kernel's")
    return write, new, step


def _coding(write: CacheWrite, key: Const | None, value: Const | None) -> dict[str, int | str]:
    """The kernel's attributes for the codes of a cache and their steps; none for floats."""
    if key is None or value is None:
        return {}
    kinds = ("PER_TENSOR" if step.type.rank == 1 else "PER_CHANNEL" for step in (key, value))
    return {"kv_cache_bit_width": write.cache.type.dtype.bits, **dict(zip(("k_quant_type", "v_quant_type"), kinds))}


def _rotary(q: Value, k: Value, pos: Value, lo: Lowering) -> tuple[Value, Value, tuple[str | None, str | None], dict[str, int]]:
    """q and k before their rotary embedding, its tables and attributes; as they are when the kernel cannot embed them."""
    a, b = q.op, k.op
    if not isinstance(a, Rope) or not isinstance(b, Rope) or not isinstance(a.inv_freq, Const):
        return q, k, (None, None), {}
    same = a.inv_freq is b.inv_freq and a.pos is b.pos is pos and (a.scale, a.interleaved) == (b.scale, b.interleaved)
    # The kernel turns multiples of 16 features only.
    if not same or q.type.dims[3] % 16 != 0 or a.rotary_dim % 16 != 0:
        return q, k, (None, None), {}
    most = lo.module.dims["T"][1] if "T" in lo.module.dims else 0
    freq, scale = a.inv_freq, a.scale
    # Left to onnxruntime to compute when it loads the graph: the tables would be megabytes of every artifact.
    ends = (lo.const(float(n), f32) for n in (0, most, 1))
    angle = lo.emit("Mul", lo.emit("Unsqueeze", lo.emit("Range", *ends), lo.const([1])), lo.weight(freq))
    cos, sin = (lo.emit(fn, angle) for fn in ("Cos", "Sin"))
    if scale != 1:
        cos, sin = (lo.emit("Mul", x, lo.const(scale, f32)) for x in (cos, sin))
    return a.x, b.x, (cos, sin), {"do_rotary": 1, "rotary_interleaved": int(a.interleaved)}


def _split_heads(value: Value) -> Value | None:
    """x [b, s, h * d] when `value` [b, h, s, d] is x with its heads split off, else None."""
    swap = value.op
    if isinstance(swap, Transpose) and swap.perm == SWAP and isinstance(swap.x.op, Reshape):
        x = swap.x.op.x
        batch, heads, seq, features = value.type.dims
        if x.type.dims == (batch, seq, heads * features):
            return x
    return None


def _packed(q: Value, k: Value, v: Value) -> Value | None:
    """The value whose last axis is q, k and v side by side, when there is one."""
    parts = [_split_heads(x) for x in (q, k, v)]
    split = parts[0].op if parts[0] is not None else None
    if isinstance(split, Split) and split.results == tuple(parts) and split.axis in (-1, 2):
        return split.x
    return None


def _merged(value: Value, lo: Lowering) -> str:
    """[b, s, h * d] of a value [b, h, s, d]."""
    x = _split_heads(value)
    if x is not None:
        return lo(x)
    swap = value.op
    flat = lo.const([0, 0, -1])
    if isinstance(swap, Transpose) and swap.perm == SWAP:
        return lo.emit("Reshape", lo(swap.x), flat)
    return lo.emit("Reshape", lo.emit("Transpose", lo(value), perm=SWAP), flat)


def _lengths(pos: Value, lo: Lowering) -> tuple[str, str]:
    """(position of each row's last token i32[b], greatest of them plus one as a scalar)."""
    ends = lo.emit("Cast", lo.emit("Gather", lo.port(pos), lo.const(-1), axis=1), to=onnx_dtype(i32))
    total = lo.emit("Add", lo.emit("ReduceMax", ends, keepdims=0), lo.const(1, i32))
    return ends, total
