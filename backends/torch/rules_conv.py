"""Convolutions and pooling."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ingot.backends.torch.registry import rule
from ingot.ir.ops.conv import AvgPool, Conv, MaxPool, Pool

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


@rule(Conv, native=True)
def conv(op: Conv, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    dtype = torch.promote_types(x.dtype, w.dtype)
    y: torch.Tensor = _CONV[len(op.stride)](_padded(x.to(dtype), op.padding, 0.0), w.to(dtype), None, op.stride,
                                            dilation=op.dilation, groups=op.groups)
    return y if bias is None else y + bias.reshape(-1, *[1] * len(op.stride))


@rule(MaxPool)
def max_pool(op: MaxPool, x: torch.Tensor) -> torch.Tensor:
    y: torch.Tensor = _MAX[len(op.kernel)](_padded(x, _padding(op), -math.inf), op.kernel, op.stride)
    return y


@rule(AvgPool)
def avg_pool(op: AvgPool, x: torch.Tensor) -> torch.Tensor:
    pool = _AVG[len(op.kernel)]
    y: torch.Tensor = pool(_padded(x, _padding(op), 0.0), op.kernel, op.stride)
    if op.count_padding:
        return y
    return y / pool(_padded(torch.ones_like(x), _padding(op), 0.0), op.kernel, op.stride)


def _padding(op: Pool) -> tuple[int, ...]:
    n = len(op.kernel)
    return op.padding[:n] + tuple(p + (s - 1 if op.ceil else 0) for p, s in zip(op.padding[n:], op.stride))


def _padded(x: torch.Tensor, padding: tuple[int, ...], fill: float) -> torch.Tensor:
    n = len(padding) // 2
    pairs = list(zip(padding[:n], padding[n:]))
    return F.pad(x, [p for pair in reversed(pairs) for p in pair], value=fill) if any(padding) else x
