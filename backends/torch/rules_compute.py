"""Matrix products, table lookup and rotary embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ingot.backends.torch.registry import rule
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.matmul import Linear, MatMul
from ingot.ir.ops.rope import Rope


@rule(Linear, native=True)
def linear(op: Linear, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    dtype = torch.promote_types(x.dtype, w.dtype)
    return F.linear(x.to(dtype), w.to(dtype), None if bias is None else bias.to(dtype))


@rule(MatMul, native=True)
def matmul(op: MatMul, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(x.dtype, y.dtype)
    return torch.matmul(x.to(dtype), y.to(dtype))


@rule(Embedding, native=True)
def embedding(op: Embedding, ids: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.embedding(ids.long(), w)


@rule(Rope)
def rope(op: Rope, x: torch.Tensor, pos: torch.Tensor, inv_freq: torch.Tensor) -> torch.Tensor:
    angle = pos[:, None, :, None].to(inv_freq.dtype) * inv_freq
    cos, sin = angle.cos() * op.scale, angle.sin() * op.scale
    turned, rest = x[..., :2 * len(inv_freq)], x[..., 2 * len(inv_freq):]
    if op.interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2), rest], -1)
    a, b = turned.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
