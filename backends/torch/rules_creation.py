"""Tensors made from attributes and dims; the executor moves them to its device."""

from __future__ import annotations

import torch

from ingot.backends.torch.registry import rule
from ingot.backends.torch.tensors import torch_dtype
from ingot.ir.ops.creation import Arange, Full, Scalar, Size
from ingot.ir.types import DType


def _wide(dtype: DType) -> torch.dtype:
    return torch.float64 if dtype.is_float else torch_dtype(dtype)


@rule(Scalar)
def scalar(op: Scalar) -> torch.Tensor:
    return torch.tensor(op.value).to(_wide(op.dtype)) if not op.dtype.is_float else torch.tensor(op.value, dtype=torch.float64)


@rule(Full)
def full(op: Full) -> torch.Tensor:
    return torch.full(op.shape, op.value, dtype=_wide(op.dtype))  # type: ignore[arg-type]


@rule(Arange)
def arange(op: Arange) -> torch.Tensor:
    return torch.arange(op.count) * op.step + op.start  # type: ignore[arg-type, operator]


@rule(Size)
def size(op: Size) -> torch.Tensor:
    return torch.tensor(op.dim)
