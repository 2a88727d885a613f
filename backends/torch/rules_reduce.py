"""Reductions, scans, softmax and sorting."""

from __future__ import annotations

from typing import Any

import torch

from ingot.backends.torch.registry import rule
from ingot.ir.ops.reduce import (
    All_,
    Any_,
    Argmax,
    Argmin,
    Cumsum,
    LogSoftmax,
    Max,
    Mean,
    Min,
    Prod,
    Reduce,
    Softmax,
    Sum,
    TopK,
    Variance,
)


def _axes(op: Reduce, x: torch.Tensor) -> tuple[int, ...]:
    return tuple(a % x.ndim for a in op.axis)


@rule(Sum)
def sum_(op: Sum, x: torch.Tensor) -> torch.Tensor:
    return x.sum(_axes(op, x), keepdim=op.keep) if op.axis else x


@rule(Mean)
def mean(op: Mean, x: torch.Tensor) -> torch.Tensor:
    return x.mean(_axes(op, x), keepdim=op.keep) if op.axis else x


@rule(Variance)
def variance(op: Variance, x: torch.Tensor) -> torch.Tensor:
    return torch.var(x, _axes(op, x), correction=op.correction, keepdim=op.keep)


@rule(Max)
def max_(op: Max, x: torch.Tensor) -> torch.Tensor:
    return x.amax(_axes(op, x), keepdim=op.keep) if op.axis else x


@rule(Min)
def min_(op: Min, x: torch.Tensor) -> torch.Tensor:
    return x.amin(_axes(op, x), keepdim=op.keep) if op.axis else x


@rule(Prod)
def prod(op: Prod, x: torch.Tensor) -> torch.Tensor:
    for axis in sorted(_axes(op, x), reverse=True):
        x = x.prod(axis, keepdim=op.keep)
    return x


@rule(Any_)
def any_(op: Any_, x: torch.Tensor) -> torch.Tensor:
    return (x != 0).any(_axes(op, x), keepdim=op.keep) if op.axis else x != 0


@rule(All_)
def all_(op: All_, x: torch.Tensor) -> torch.Tensor:
    return (x != 0).all(_axes(op, x), keepdim=op.keep) if op.axis else x != 0


@rule(Argmax)
def argmax(op: Argmax, x: torch.Tensor) -> torch.Tensor:
    return x.argmax(op.axis, keepdim=op.keep)


@rule(Argmin)
def argmin(op: Argmin, x: torch.Tensor) -> torch.Tensor:
    return x.argmin(op.axis, keepdim=op.keep)


@rule(Softmax)
def softmax(op: Softmax, x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x, op.axis)


@rule(LogSoftmax)
def log_softmax(op: LogSoftmax, x: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(x, op.axis)


@rule(Cumsum)
def cumsum(op: Cumsum, x: torch.Tensor) -> torch.Tensor:
    return x.cumsum(op.axis)


@rule(TopK)
def topk(op: TopK, x: torch.Tensor) -> Any:
    # A stable sort: of equals the first comes first, which torch.topk does not promise.
    values, index = x.sort(dim=op.axis, descending=op.largest, stable=True)
    return values.narrow(op.axis, 0, op.k), index.narrow(op.axis, 0, op.k)  # type: ignore[arg-type]
