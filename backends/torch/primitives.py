"""The primitives of scalar expressions over torch tensors."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


class TorchPrimitives:
    """`o` for `Pointwise.scalar`; either operand of a two-operand primitive may be a Python number."""

    exp = staticmethod(torch.exp)
    log = staticmethod(torch.log)
    sqrt = staticmethod(torch.sqrt)
    rsqrt = staticmethod(torch.rsqrt)
    sin = staticmethod(torch.sin)
    cos = staticmethod(torch.cos)
    tanh = staticmethod(torch.tanh)
    erf = staticmethod(torch.erf)
    sigmoid = staticmethod(torch.sigmoid)
    abs = staticmethod(torch.abs)
    sign = staticmethod(torch.sign)
    floor = staticmethod(torch.floor)
    ceil = staticmethod(torch.ceil)
    round = staticmethod(torch.round)
    where = staticmethod(torch.where)
    isnan = staticmethod(torch.isnan)
    logical_not = staticmethod(torch.logical_not)
    logical_and = staticmethod(torch.logical_and)
    logical_or = staticmethod(torch.logical_or)
    pow = staticmethod(torch.pow)

    @staticmethod
    def softplus(x: torch.Tensor) -> torch.Tensor:
        return F.softplus(x, threshold=60.0)

    @staticmethod
    def maximum(x: Any, y: Any) -> torch.Tensor:
        return torch.clamp_min(x, y) if not isinstance(y, torch.Tensor) else torch.maximum(_like(x, y), y)

    @staticmethod
    def minimum(x: Any, y: Any) -> torch.Tensor:
        return torch.clamp_max(x, y) if not isinstance(y, torch.Tensor) else torch.minimum(_like(x, y), y)

    @staticmethod
    def floordiv(x: Any, y: Any) -> torch.Tensor:
        return torch.div(x, y, rounding_mode="floor")

    @staticmethod
    def mod(x: Any, y: Any) -> torch.Tensor:
        return torch.remainder(x, y)


def _like(x: Any, y: torch.Tensor) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else torch.as_tensor(x, dtype=y.dtype, device=y.device)


TORCH = TorchPrimitives()
