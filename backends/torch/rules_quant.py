"""Dequantisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ingot.backends.torch.registry import rule
from ingot.ir.formats import Integer, format_named
from ingot.ir.formats.scaling import SUPERBLOCK, dynamic_map
from ingot.ir.ops.quant import Dequantize


@rule(Dequantize)
def dequantize(op: Dequantize, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None,
               tensor_scale: torch.Tensor | None, offset: torch.Tensor | None) -> torch.Tensor:
    step, fmt = _steps(scale, tensor_scale, offset), format_named(op.format)
    size = packed.shape[-1]
    codes = F.pad(packed, (0, -size % op.group))
    codes = codes.view(*codes.shape[:-1], -1, op.group)
    if fmt.code.is_float:
        values = codes.to(step.dtype)
    elif isinstance(fmt, Integer):
        values = codes.to(step.dtype) - (fmt.middle if zero is None else zero[..., None].to(step.dtype))
    else:
        values = torch.from_numpy(fmt.table()).to(step)[codes.int()]
    y: torch.Tensor = (values * step[..., None]).flatten(-2)[..., :size]
    return y


def _steps(scale: torch.Tensor, tensor_scale: torch.Tensor | None, offset: torch.Tensor | None) -> torch.Tensor:
    """See `ingot.ir.formats.steps`."""
    if not scale.is_floating_point():
        assert tensor_scale is not None
        scale = torch.tensor(dynamic_map(), device=scale.device).to(tensor_scale.dtype)[scale.int()]
    if tensor_scale is not None:
        scale = scale.to(torch.promote_types(scale.dtype, tensor_scale.dtype))  # a number alone would not widen it
        if tensor_scale.dim():
            tensor_scale = tensor_scale.repeat_interleave(SUPERBLOCK)[:scale.numel()].view(scale.shape)
        scale = scale * tensor_scale
    return scale if offset is None else scale + offset
