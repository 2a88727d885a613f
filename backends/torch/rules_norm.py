"""Normalisations, in f32 at least."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ingot.backends.torch.registry import rule
from ingot.ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RmsNorm

Maybe = torch.Tensor | None


@rule(RmsNorm)
def rms_norm(op: RmsNorm, x: torch.Tensor, w: Maybe) -> torch.Tensor:
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + op.eps)
    return y if w is None else y * w


@rule(LayerNorm)
def layer_norm(op: LayerNorm, x: torch.Tensor, w: Maybe, bias: Maybe) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], w, bias, op.eps)


@rule(GroupNorm)
def group_norm(op: GroupNorm, x: torch.Tensor, w: Maybe, bias: Maybe) -> torch.Tensor:
    return F.group_norm(x, op.groups, w, bias, op.eps)


@rule(BatchNorm)
def batch_norm(op: BatchNorm, x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, w: Maybe, bias: Maybe) -> torch.Tensor:
    return F.batch_norm(x, mean, var, w, bias, training=False, eps=op.eps)
