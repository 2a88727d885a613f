"""Ops that move elements."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ingot.backends.torch.registry import rule
from ingot.ir.ops.layout import Concat, Expand, Flip, Pad, Pick, Reshape, Slice, Split, Take, TakeAlong, Transpose, Triangle


@rule(Reshape, native=True)
def reshape(op: Reshape, x: torch.Tensor) -> torch.Tensor:
    return x.reshape(op.shape)  # type: ignore[arg-type]


@rule(Transpose, native=True)
def transpose(op: Transpose, x: torch.Tensor) -> torch.Tensor:
    return x.permute(op.perm)


@rule(Expand, native=True)
def expand(op: Expand, x: torch.Tensor) -> torch.Tensor:
    return x.expand(op.shape)  # type: ignore[arg-type]


@rule(Slice, native=True)
def slice_(op: Slice, x: torch.Tensor) -> torch.Tensor:
    index = [slice(None)] * x.ndim
    index[op.axis] = slice(op.start, op.stop, op.step)
    return x[tuple(index)]


@rule(Concat, native=True)
def concat(op: Concat, xs: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat(xs, op.axis)


@rule(Split, native=True)
def split(op: Split, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(x, list(op.sizes), op.axis)  # type: ignore[arg-type]


@rule(Pad, native=True)
def pad(op: Pad, x: torch.Tensor) -> torch.Tensor:
    widths = list(zip(op.pads[::2], op.pads[1::2]))
    if op.mode == "constant":
        return F.pad(x, [n for pair in reversed(widths) for n in pair], value=op.value)  # type: ignore[misc]
    # torch's other modes reach the last axes of batched tensors only, so positions are picked instead, axis by axis.
    for axis, (before, after) in enumerate(widths):
        if before or after:
            at = torch.arange(-int(before), x.shape[axis] + int(after), device=x.device)  # type: ignore[arg-type]
            x = x.index_select(axis, _reflected(at, x.shape[axis], op.mode))
    return x


def _reflected(at: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    if mode == "replicate":
        return at.clamp(0, size - 1)
    if mode == "circular":
        return at % size
    period = max(2 * (size - 1), 1)
    at = at % period
    return torch.where(at < size, at, period - at)


@rule(Take, native=True)
def take(op: Take, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    axis = op.axis % x.ndim
    flat = index.reshape(-1).long()
    picked = x.index_select(axis, torch.where(flat < 0, flat + x.shape[axis], flat))
    return picked.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1:])


@rule(Pick, native=True)
def pick(op: Pick, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(index), device=x.device)[:, None]
    picked = x.expand(len(index), *x.shape[1:]).movedim(op.axis, 1)[rows, index.long()]
    return picked.movedim(1, op.axis)


@rule(TakeAlong, native=True)
def take_along(op: TakeAlong, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    index = index.long()
    return x.gather(op.axis, torch.where(index < 0, index + x.shape[op.axis], index))


@rule(Flip, native=True)
def flip(op: Flip, x: torch.Tensor) -> torch.Tensor:
    return x.flip(op.axes_)


@rule(Triangle, native=True)
def triangle(op: Triangle, x: torch.Tensor) -> torch.Tensor:
    return x.triu(op.diagonal) if op.upper else x.tril(op.diagonal)
