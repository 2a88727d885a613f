"""Attention and the key/value cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ingot.ir.axes import AxisMap, parse_axes
from ingot.ir.op import Op, attr
from ingot.ir.types import TensorType
from ingot.ir.value import Value

if TYPE_CHECKING:
    from ingot.ir.module import Builder


class Attention(Op):
    """softmax(scale * q k^T + bias) v with grouped heads: q [b, h, s, d], k [b, g, t, d], v [b, g, t, e], h = n * g.

    Query heads n*i .. n*i+n-1 read key head i (Ainslie et al. 2023). Key j is visible to query i of row b when all of
    these hold, with p = pos[b, i] (i itself without `pos`): `causal` => j <= p; `window` => p - j < window (and
    j - p < window when not causal); `mask[b, j]` is nonzero. `softcap` c replaces scores by c * tanh(scores / c) before
    masking (Gemma 2). `sinks` [h] adds one logit per head to the softmax's denominator (gpt-oss). `bias` broadcasts to
    [b, h, s, t]. A query that sees no key gives zeros.
    """

    name = "attention"
    q: Value
    k: Value
    v: Value
    pos: Value | None = None
    mask: Value | None = None
    bias: Value | None = None
    sinks: Value | None = None
    scale: float = attr(kw_only=True)
    causal: bool = False
    window: int | None = None
    softcap: float | None = None

    @property
    def heads(self) -> tuple[int, int]:
        """(query heads, key heads)."""
        h, g = self.q.type.dims[1], self.k.type.dims[1]
        if not isinstance(h, int) or not isinstance(g, int):
            raise self.fail("head counts must be integers")
        return h, g

    def infer(self) -> TensorType:
        self.need_floats(self.q, self.k, self.v, self.bias, self.sinks)
        q, k, v = (x.type.dims for x in (self.q, self.k, self.v))
        if not len(q) == len(k) == len(v) == 4:
            raise self.fail("q, k, v must be [batch, heads, sequence, features]")
        h, g = self.heads
        if not g or q[0] != k[0] or k[:3] != v[:3] or q[3] != k[3] or h % g:
            raise self.fail("q, k, v do not fit together")
        if self.pos is None and (self.causal or self.window is not None) and q[2] != k[2]:
            raise self.fail("causal attention over another key length needs pos")
        if self.window is not None and self.window < 1:
            raise self.fail(f"a window of {self.window}, the least is 1")
        if self.pos is not None and (self.pos.type.dims not in ((q[0], q[2]), (1, q[2])) or not self.pos.type.dtype.is_integer):
            raise self.fail("pos must be integers [batch, queries]")
        if self.mask is not None and self.mask.type.dims not in ((q[0], k[2]), (1, k[2])):
            raise self.fail("mask must be [batch, keys]")
        if self.bias is not None:
            full = (q[0], h, q[2], k[2])
            if self.bias.type.rank > 4 or any(d not in (1, f) for d, f in zip(self.bias.type.dims[::-1], full[::-1])):
                raise self.fail("bias must broadcast to [batch, heads, queries, keys]")
        if self.sinks is not None and self.sinks.type.dims != (h,):
            raise self.fail("sinks must be [heads]")
        return self.q.type.with_dims(*q[:3], v[3])

    def reference(self, q: Any, k: Any, v: Any, pos: Any, mask: Any, bias: Any, sinks: Any) -> Any:
        n = q.shape[1] // k.shape[1]
        k, v = np.repeat(k, n, axis=1), np.repeat(v, n, axis=1)
        scores = q @ k.swapaxes(-1, -2) * self.scale
        if self.softcap is not None:
            scores = self.softcap * np.tanh(scores / self.softcap)
        if bias is not None:
            scores = scores + bias
        at = (np.arange(q.shape[2])[None] if pos is None else pos)[:, None, :, None]
        back = at - np.arange(k.shape[2])
        seen = np.ones(back.shape, bool)
        if self.causal:
            seen &= back >= 0
        if self.window is not None:
            seen &= (back < self.window) & (back > -self.window)
        if mask is not None:
            seen = seen & (mask != 0)[:, None, None, :]
        scores = np.where(seen, scores, -np.inf)
        top = np.max(scores, axis=-1, keepdims=True, initial=-1e30)
        if sinks is not None:
            sinks = sinks.reshape(1, -1, 1, 1)
            top = np.maximum(top, sinks)
        weights = np.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        if sinks is not None:
            total = total + np.exp(sinks - top)
        return weights / np.where(total == 0, 1, total) @ v

    def decompose(self, b: Builder) -> Value:
        from ingot.ir.ops.attention_parts import written_out

        return written_out(self, b)

    def axis_map(self) -> AxisMap:
        spec = "q[b h s d], k[b g t d], v[b g t e], pos[b s], mask[b t], bias[b h s t], sinks[h] -> [b h s e]"
        if self.bias is not None:
            names = ["b", "h", "s", "t"][4 - self.bias.type.rank:]
            spec = spec.replace("bias[b h s t]", f"bias[{' '.join(names)}]")
        causal = frozenset("t") if self.causal else frozenset()
        return parse_axes(self, spec, causal=causal, multiples={"h": "g"})


class CacheWrite(Op):
    """The cache with new[b, :, i] put at position pos[b, i]; pure: the result is a new cache.

    cache [b, g, t, d], new [b, g, s, d], pos [b, s]. Positions of one row are consecutive. A backend may work in place
    where the func says that the result reuses the parameter's memory.
    """

    name = "cache.write"
    axes = "cache[b g t d], new[b g s d], pos[b s] -> [b g t d]"
    cache: Value
    new: Value
    pos: Value

    def infer(self) -> TensorType:
        c, n, p = self.cache.type.dims, self.new.type.dims, self.pos.type.dims
        if len(c) != 4 or len(n) != 4 or c[:2] != n[:2] or c[3] != n[3] or p != (n[0], n[2]):
            raise self.fail("cache [b, g, t, d], new [b, g, s, d] and pos [b, s] do not fit together")
        if not self.pos.type.dtype.is_integer:
            raise self.fail("pos must be integers")
        if self.cache.type.dtype != self.new.type.dtype:
            raise self.fail("cache and new differ in element type")
        return self.cache.type

    def reference(self, cache: Any, new: Any, pos: Any) -> Any:
        if pos.size and not 0 <= pos.min() <= pos.max() < cache.shape[2]:
            raise self.fail(f"a position outside the {cache.shape[2]} of the cache")
        out = cache.copy()
        rows = np.arange(cache.shape[0])[:, None]
        out[rows, :, pos] = new.swapaxes(1, 2)
        return out
