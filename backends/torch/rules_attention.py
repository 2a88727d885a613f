"""Attention and the key/value cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ingot.backends.torch.registry import rule
from ingot.ir.ops.attention import Attention, CacheWrite

Maybe = torch.Tensor | None


@rule(Attention, native=True)
def attention(op: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, pos: Maybe, mask: Maybe, bias: Maybe,
              sinks: Maybe) -> torch.Tensor:
    k, v = k.to(q.dtype), v.to(q.dtype)
    plain = op.softcap is None and op.window is None and all(x is None for x in (pos, mask, bias, sinks))
    if plain and op.causal and q.shape[2] == k.shape[2]:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=op.scale, enable_gqa=q.shape[1] != k.shape[1])
    seen = _seen(op, q, k, pos, mask)
    # A row that sees nothing attends to everything here, which is finite, and is set to zero at the end.
    blind = None if seen is None or (mask is None and pos is None) else ~seen.any(-1, keepdim=True)
    if seen is not None and blind is not None:
        seen = seen | blind
    if op.softcap is None and sinks is None:
        logits = seen if bias is None else bias.to(q.dtype)
        if bias is not None and seen is not None:
            logits = logits.masked_fill(~seen, float("-inf"))  # type: ignore[union-attr]
        y = F.scaled_dot_product_attention(q, k, v, logits, scale=op.scale, enable_gqa=q.shape[1] != k.shape[1])
    else:
        y = _written_out(op, q, k, v, seen, bias, sinks)
    return y if blind is None else y.masked_fill(blind, 0.0)


def _seen(op: Attention, q: torch.Tensor, k: torch.Tensor, pos: Maybe, mask: Maybe) -> Maybe:
    """Which key each query sees, broadcasting to [b, h, s, t]; None when all."""
    seen = None
    if op.causal or op.window is not None:
        at = torch.arange(q.shape[2], device=q.device)[None] if pos is None else pos
        back = at[:, None, :, None] - torch.arange(k.shape[2], device=q.device)
        seen = back >= 0 if op.causal else torch.ones_like(back, dtype=torch.bool)
        if op.window is not None:
            seen = seen & (back < op.window) & (back > -op.window)
    if mask is not None:
        keys = (mask != 0)[:, None, None, :]
        seen = keys if seen is None else seen & keys
    return seen


def _written_out(op: Attention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: Maybe, bias: Maybe,
                 sinks: Maybe) -> torch.Tensor:
    """With soft cap or sinks, which torch's kernel does not know; in f32 at least."""
    wide = torch.promote_types(q.dtype, torch.float32)
    n = q.shape[1] // k.shape[1]
    k, v = (x.to(wide).repeat_interleave(n, 1) for x in (k, v))
    scores = q.to(wide) @ k.mT * op.scale
    if op.softcap is not None:
        scores = op.softcap * torch.tanh(scores / op.softcap)
    if bias is not None:
        scores = scores + bias
    if seen is not None:
        scores = scores.masked_fill(~seen, float("-inf"))
    if sinks is not None:
        extra = sinks.to(wide).reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, extra], -1)
    weights = scores.softmax(-1)[..., :k.shape[2]]
    return weights @ v


@rule(CacheWrite, native=True)
def cache_write(op: CacheWrite, cache: torch.Tensor, new: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(cache.shape[0], device=cache.device)[:, None]
    return cache.index_put((rows[:, :, None], torch.arange(cache.shape[1], device=cache.device), pos.long()[:, :, None]),
                           new.transpose(1, 2))
