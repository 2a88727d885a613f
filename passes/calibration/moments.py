"""What calibration text shows about the input of linears: second moments, and what rounding so far has done to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import SkipLayerNorm, SkipRmsNorm
from ingot.ir.ops.pointwise import Add
from ingot.ir.value import Value
from ingot.passes.calibration.track import Track


@dataclass(frozen=True)
class Moments:
    """Means over all tokens for linears that read x, the original model having x' in its place.

    second: x x^T, f32[k, k]. drift: (x' - x) x^T, f32[k, k]. lack: (r' - r) x^T, f32[o, k], for a linear whose result is added
    to r. Both None or absent where there is no original to compare with.
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

        if self.drift is None:
            return w
        lack = w @ self.drift
        if linear in self.lack:
            lack += self.lack[linear]
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
    sums: dict[Linear, Value] = {}
    drift = None
    lack: dict[Linear, torch.Tensor] = {}
    if original is not None and twins is not None:
        drift = torch.zeros(k, k)
        sums = {linear: other for linear in linears if (other := added_to(linear)) in track.live[0] and other is not None}
        lack = {linear: torch.zeros(linear.w.type.shape) for linear in sums}
    tokens = 0
    for batch in range(len(track.live)):
        rows = track.rows(x, batch)
        tokens += len(rows)
        second.addmm_(rows.T, rows)
        if original is None or twins is None or drift is None:
            continue
        drift.addmm_((original.rows(twins[x], batch) - rows).T, rows)
        for linear, other in sums.items():
            lack[linear].addmm_((original.rows(twins[other], batch) - track.rows(other, batch)).T, rows)
    scale = 1 / max(tokens, 1)
    return Moments(second.mul_(scale).numpy(), None if drift is None else drift.mul_(scale).numpy(),
                   {linear: total.mul_(scale).numpy() for linear, total in lack.items()})


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
