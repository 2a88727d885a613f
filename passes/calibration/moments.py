"""What calibration text shows about the input of linears: second moments, and what rounding so far has done to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import SkipLayerNorm, SkipRmsNorm
from ingot.ir.ops.pointwise import Add
from ingot.ir.value import Const, Value
from ingot.passes.calibration.track import Track

if TYPE_CHECKING:
    import torch

_BLOCK = 256


@dataclass(frozen=True)
class Moments:
    """Means over all tokens for linears that read x, the original model having x' in its place.

    second: x x^T, f32[k, k]. drift: (x' - x) x^T, f32[k, k]. lack: (w (x' - x) + r' - r) x^T, f32[o, k], for a linear of weight
    w whose result is added to r. Both None or absent where there is no original to compare with.
    """

    second: np.ndarray
    drift: np.ndarray | None
    lack: Mapping[Linear, np.ndarray]

    def target(self, linear: Linear, w: np.ndarray, *, ridge: float) -> np.ndarray:
        """The weight f32[o, k] that, on x, comes nearest to the original one on x', and makes good what r lacks.

        The least squares solution, pulled towards w by `ridge` times the mean moment: what GPTAQ (Li et al.
        2025, arXiv 2504.02692) corrects column by column, in closed form, extended by the residual sum.
        """
        import torch

        lack = self.lack.get(linear)
        if lack is None and self.drift is not None:
            lack = w @ self.drift
        if lack is None:
            return w
        damping = max(ridge * float(self.second.diagonal().mean()), float(np.finfo(np.float32).tiny))
        root = torch.linalg.cholesky(torch.from_numpy(self.second) + damping * torch.eye(len(self.second)))
        target: np.ndarray = w + torch.cholesky_solve(torch.from_numpy(lack.T), root).T.numpy()
        return target


def gather(x: Value, linears: Sequence[Linear], track: Track, original: Track | None = None,
           twins: Mapping[Value, Value] | None = None) -> Moments:
    """The moments of x, a live value of `track`, over all its batches.

    original: the original model, run as far; twins: its value for each of the other's.
    """
    import torch

    k = x.type.dims[-1]
    assert isinstance(k, int)
    second = torch.zeros(k, k)
    sums: dict[Linear, tuple[Value, torch.Tensor]] = {}
    lack: dict[Linear, torch.Tensor] = {}
    drift = None
    if original is not None and twins is not None:
        for linear in linears:
            other = added_to(linear)
            if other is not None and other in track.live[0] and isinstance(linear.w, Const):
                sums[linear] = other, torch.from_numpy(linear.w.weight.materialize().astype(np.float32))
        lack = {linear: torch.zeros(linear.w.type.shape) for linear in sums}
        drift = torch.zeros(k, k) if len(sums) < len(linears) else None
    tokens = 0
    for batch in range(len(track.live)):
        rows = track.rows(x, batch)
        tokens += len(rows)
        _add_square(second, rows)
        if original is None or twins is None:
            continue
        moved = original.rows(twins[x], batch) - rows
        if drift is not None:
            drift.addmm_(moved.T, rows)
        for linear, (other, w) in sums.items():
            missing = original.rows(twins[other], batch) - track.rows(other, batch)
            lack[linear].addmm_(missing.addmm_(moved, w.T).T, rows)
    scale = 1 / max(tokens, 1)
    second = torch.triu(second) + torch.triu(second, 1).T
    return Moments(second.mul_(scale).numpy(), None if drift is None else drift.mul_(scale).numpy(),
                   {linear: total.mul_(scale).numpy() for linear, total in lack.items()})


def _add_square(total: torch.Tensor, rows: torch.Tensor) -> None:
    """Add rows^T rows to the blocks of `total` on and above its diagonal; the rest follows from them."""
    for start in range(0, len(total), _BLOCK):
        part = slice(start, start + _BLOCK)
        total[part, start:].addmm_(rows[:, part].T, rows[:, start:])


def added_to(linear: Linear) -> Value | None:
    """What the result of a linear is added to, where that is all that happens to it and the shapes are the same."""
    result = linear.result
    if len(result.users) != 1 or result.n_uses != 1:
        return None
    match result.users[0]:
        case Add() as op:
            other = op.y if op.x is result else op.x
        case SkipRmsNorm() | SkipLayerNorm() as op:
            other = op.skip if op.x is result else op.x
        case _:
            return None
    return other if other.type.dims == result.type.dims else None
