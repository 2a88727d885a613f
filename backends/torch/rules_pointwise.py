"""Elementwise ops."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ingot.backends.torch.primitives import TORCH
from ingot.backends.torch.registry import rule
from ingot.backends.torch.tensors import torch_dtype
from ingot.ir.ops.pointwise import Cast, Gelu, Pointwise, Silu


@rule(Pointwise)
def pointwise(op: Pointwise, *inputs: torch.Tensor) -> Any:
    return op.scalar(TORCH, *inputs)


@rule(Silu)
def silu(op: Silu, x: torch.Tensor) -> torch.Tensor:
    return F.silu(x)


@rule(Gelu)
def gelu(op: Gelu, x: torch.Tensor) -> Any:
    if op.approximate in ("none", "tanh"):
        return F.gelu(x, approximate=op.approximate)
    return op.scalar(TORCH, x)


@rule(Cast, native=True)
def cast(op: Cast, x: torch.Tensor) -> torch.Tensor:
    # A float keeps its precision here: the executor rounds it to what the declared type is computed in.
    if op.dtype.is_float and x.is_floating_point():
        return x
    return x.to(torch_dtype(op.dtype)) if op.dtype.name != "bool" else x != 0
