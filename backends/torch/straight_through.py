"""Rounding to a format inside training: the forward pass sees the rounded weight, the backward pass the float behind it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ingot.ir.formats import Format, Integer


class Rounding:
    """Rounds weights [n, k] to the grid of a format, `group` elements of a row under a step.

    zero: zero points, integers [n or 1, groups], or None. Gradients are those of learned step size quantisation (LSQ, Esser et
    al. 2019, arXiv 1902.08153, section 2.1): straight through to elements that the grid covers, none to those beyond it; to a
    step what its group's values gain from it.
    """

    def __init__(self, fmt: Format, group: int, zero: torch.Tensor | None) -> None:
        self.group = group
        if isinstance(fmt, Integer):
            offset = torch.tensor(float(fmt.middle)) if zero is None else zero.float()[..., None]
            self.low, self.high = -offset, fmt.levels - 1 - offset
            self.values = None
        else:
            values = torch.from_numpy(fmt.table()).float()
            self.values = values[values.isfinite()].sort().values
            self.between = (self.values[1:] + self.values[:-1]) / 2
            self.low, self.high = self.values[0], self.values[-1]

    def __call__(self, w: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """The rounded weight; w f32[n, k], step f32[n or 1, groups]."""
        size = w.shape[-1]
        rounded: torch.Tensor = _Rounded.apply(self._grouped(w), step.expand(len(w), -1), self)  # type: ignore[no-untyped-call]
        return rounded.flatten(-2)[:, :size]

    def within(self, target: torch.Tensor, w: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        """What is nearest to `target` of all that rounds as w, a weight on the grid, does; both f32[n, k].

        Cells are taken a little smaller than they are, so that nothing lies on the border of two.
        """
        size = w.shape[-1]
        x, aim = self._grouped(w), self._grouped(target)
        each = step.expand(len(w), -1)[..., None]
        code, wanted = self.nearest(_divided(x, each)), _divided(aim, each)
        below, above = self._cell(code)
        margin = 0.02 * (above - below)
        kept = torch.minimum(torch.maximum(wanted, below + margin), above - margin)
        return torch.where(each == 0, x, kept * each).flatten(-2)[:, :size]

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """The value under step 1 that is nearest to x [n, groups, group]."""
        if self.values is None:
            return torch.clamp(x.round(), self.low, self.high)
        return self.values[torch.bucketize(x, self.between)]

    def _grouped(self, w: torch.Tensor) -> torch.Tensor:
        """[n, k] as [n, groups, group], filled up with zeros."""
        return F.pad(w, (0, -w.shape[-1] % self.group)).view(len(w), -1, self.group)

    def _cell(self, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the elements that round to a value begin and end; beyond the grid, half a gap is as good as all."""
        if self.values is None:
            return code - 0.5, code + 0.5
        index = torch.bucketize(code, self.between)
        low, high = 2 * self.values[0] - self.between[0], 2 * self.values[-1] - self.between[-1]
        ends = torch.cat([low[None], self.between, high[None]])
        return ends[index], ends[index + 1]


class _Rounded(torch.autograd.Function):
    """w [n, groups, group] rounded under step [n, groups]; what it saves is these two."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor, step: torch.Tensor, how: Rounding) -> torch.Tensor:
        ctx.save_for_backward(w, step)
        ctx.how = how
        rounded: torch.Tensor = how.nearest(_divided(w, step[..., None])) * step[..., None]
        return rounded

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        grad, = grad_outputs
        w, step = ctx.saved_tensors
        x = _divided(w, step[..., None])
        inside = (x >= ctx.how.low) & (x <= ctx.how.high)
        to_step = None
        if ctx.needs_input_grad[1]:
            value = ctx.how.nearest(x)
            to_step = (grad * torch.where(inside, value - x, value)).sum(-1)
        return grad * inside, to_step, None


def _divided(w: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """w / step; 0 where the step is."""
    return torch.where(step == 0, 0.0, w / torch.where(step == 0, 1.0, step))
