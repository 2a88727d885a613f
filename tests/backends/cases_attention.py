"""Attention, cache and rotary embedding."""

from __future__ import annotations

import numpy as np

from ingot.ir.dims import Dim
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.layout import Reshape, Transpose
from ingot.ir.ops.rope import Rope
from ingot.ir.types import DType, bf16, bool_, f16, f32, f64, i8, i64
from ingot.ir.value import Value
from tests.backends.op_case import B, Case, Draw, S, T, between, bits, case

PREFIX: tuple[dict[str, int], ...] = ({"B": 2, "S": 3, "T": 7}, {"B": 1, "S": 1, "T": 4})


def heads(c: Case, steps: Dim, keys: Dim, *, dtype: DType = f32, h: int = 4, g: int = 2) -> tuple[Value, Value, Value]:
    """q, k, v with grouped heads; v has features of its own."""
    return c.x(B, h, steps, 8, dtype=dtype), c.x(B, g, keys, 8, dtype=dtype), c.x(B, g, keys, 6, dtype=dtype)


def rising(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Consecutive positions per row from a random start, within 7."""
    rows, steps = shape
    return rng.integers(0, 4 - (steps - 1) % 4 + 1, size=(rows, 1)) % max(1, 4 - steps + 1) + np.arange(steps)


def pos(c: Case, rows: Dim = B) -> Value:
    return c.x(rows, S, dtype=i64, draw=rising, name="pos")


def mask(c: Case, keys: Dim = T, dtype: DType = bool_) -> Value:
    return c.x(B, keys, dtype=dtype, draw=bits, name="mask")


for _dtype in (f32, f16, bf16, f64):
    case(Attention, str(_dtype), lambda c, d=_dtype: c(Attention(*heads(c, S, T, dtype=d), scale=0.3)))
    case(Attention, f"causal {_dtype}", lambda c, d=_dtype: c(Attention(*heads(c, S, S, dtype=d), scale=0.3, causal=True)))
case(Attention, "cached", lambda c: c(Attention(*heads(c, S, T), pos(c), scale=0.3, causal=True)), sizes=PREFIX)
case(Attention, "one row of positions", lambda c: c(Attention(*heads(c, S, T), pos(c, 1), scale=0.3, causal=True)), sizes=PREFIX)
case(Attention, "window", lambda c: c(Attention(*heads(c, S, T), pos(c), scale=0.3, causal=True, window=2)), sizes=PREFIX)
case(Attention, "window without positions", lambda c: c(Attention(*heads(c, S, S), scale=0.3, causal=True, window=2)))
case(Attention, "window both ways", lambda c: c(Attention(*heads(c, S, S), scale=0.3, window=2)))
case(Attention, "mask", lambda c: c(Attention(*heads(c, S, T), None, mask(c), scale=0.3)))
case(Attention, "mask of integers", lambda c: c(Attention(*heads(c, S, T), None, mask(c, dtype=i64), scale=0.3)))
case(Attention, "causal with mask", lambda c: c(Attention(*heads(c, S, S), None, mask(c, S), scale=0.3, causal=True)))
case(Attention, "softcap", lambda c: c(Attention(*heads(c, S, S), scale=3.0, causal=True, softcap=2.0)))
case(Attention, "softcap with mask", lambda c: c(Attention(*heads(c, S, T), None, mask(c), scale=3.0, softcap=2.0)))
case(Attention, "bias", lambda c: c(Attention(*heads(c, S, T), None, None, c.x(1, 4, S, T), scale=0.3)))
case(Attention, "bias per row, causal",
     lambda c: c(Attention(*heads(c, S, S), None, None, c.x(B, 1, S, S), scale=0.3, causal=True)))
case(Attention, "bias with mask", lambda c: c(Attention(*heads(c, S, T), None, mask(c), c.x(4, 1, T), scale=0.3)))
case(Attention, "bias with positions",
     lambda c: c(Attention(*heads(c, S, T), pos(c), None, c.x(4, 1, T), scale=0.3, causal=True)), sizes=PREFIX)
case(Attention, "sinks", lambda c: c(Attention(*heads(c, S, S), None, None, None, c.w(4), scale=0.3, causal=True)))
case(Attention, "sinks with mask", lambda c: c(Attention(*heads(c, S, T), None, mask(c), None, c.w(4), scale=0.3)))
case(Attention, "everything",
     lambda c: c(Attention(*heads(c, S, T), pos(c), mask(c), c.x(B, 4, S, T), c.w(4), scale=2.0, causal=True,
                                                    window=3, softcap=1.5)), sizes=PREFIX)
case(Attention, "everything but sinks",
     lambda c: c(Attention(*heads(c, S, T), pos(c), mask(c), c.x(B, 4, S, T), scale=2.0, causal=True,
                                                              window=3, softcap=1.5)), sizes=PREFIX)
case(Attention, "one key head", lambda c: c(Attention(*heads(c, S, S, h=3, g=1), scale=0.3, causal=True)))
case(Attention, "large scores", lambda c: c(Attention(*heads(c, S, S), scale=60.0, causal=True)))
case(CacheWrite, "f32",
     lambda c: c(CacheWrite(c.x(B, 2, 7, 3), c.x(B, 2, S, 3), pos(c))), sizes=({"B": 2, "S": 3}, {"B": 3, "S": 1}))
case(CacheWrite, "f16",
     lambda c: c(CacheWrite(c.x(B, 2, 7, 3, dtype=f16), c.x(B, 2, S, 3, dtype=f16), pos(c))), sizes=({"B": 2, "S": 2},))
case(CacheWrite, "i8",
     lambda c: c(CacheWrite(c.x(B, 2, 7, 3, dtype=i8, draw=between(-9, 9)), c.x(B, 2, S, 3, dtype=i8, draw=between(-9, 9)),
                                              pos(c))), sizes=({"B": 2, "S": 2},))

_FREQUENCIES: Draw = lambda rng, shape: 0.5 ** np.arange(shape[0])  # noqa: E731
for _dtype in (f32, bf16):
    case(Rope, str(_dtype), lambda c, d=_dtype: c(Rope(c.x(B, 2, S, 8, dtype=d), pos(c), c.w(4, draw=_FREQUENCIES))))
for _pairs in (False, True):
    case(Rope, f"partial, interleaved {_pairs}",
         lambda c, i=_pairs: c(Rope(c.x(B, 2, S, 10), pos(c), c.w(3, draw=_FREQUENCIES), interleaved=i,
                                                                            scale=1.3)))
    case(Rope, f"interleaved {_pairs}",
         lambda c, i=_pairs: c(Rope(c.x(B, 2, S, 8), pos(c), c.w(4, draw=_FREQUENCIES), interleaved=i)))
case(Rope, "one row of positions", lambda c: c(Rope(c.x(B, 2, S, 8), pos(c, 1), c.w(4, draw=_FREQUENCIES))))


def over_caches(c: Case, *, rope: bool, window: int | None = None, softcap: float | None = None, features: int = 16) -> Value:
    """Attention over caches that are parameters, with new keys and values written first: what a decode step does."""
    at = pos(c)
    q, k, v = (c.x(B, S, n, features) for n in (4, 2, 2))
    q, k, v = (c(Transpose(x, (0, 2, 1, 3))) for x in (q, k, v))
    if rope:
        frequencies = c.w(features // 2, draw=_FREQUENCIES)
        q, k = c(Rope(q, at, frequencies)), c(Rope(k, at, frequencies))
    keys, values = (c(CacheWrite(c.x(B, 2, T, features), new, at)) for new in (k, v))
    y = c(Attention(q, keys, values, at, scale=0.3, causal=True, window=window, softcap=softcap))
    return c(Reshape(c(Transpose(y, (0, 2, 1, 3))), (B, S, 4 * features)))


STEPS: tuple[dict[str, int], ...] = ({"B": 1, "S": 3, "T": 7}, {"B": 2, "S": 1, "T": 9})
"""A chunk of one sequence, and one token of several: what the runtime asks of a graph."""

case(Attention, "over written caches", lambda c: over_caches(c, rope=False), sizes=STEPS)
case(Attention, "over written caches with rope", lambda c: over_caches(c, rope=True), sizes=STEPS)
case(Attention, "over written caches, window", lambda c: over_caches(c, rope=True, window=2), sizes=STEPS)
case(Attention, "over written caches, softcap", lambda c: over_caches(c, rope=True, softcap=1.5), sizes=STEPS)
case(Attention, "over written caches, narrow heads", lambda c: over_caches(c, rope=False, features=8), sizes=STEPS)
case(Attention, "over written caches, narrow heads with rope", lambda c: over_caches(c, rope=True, features=8), sizes=STEPS)
