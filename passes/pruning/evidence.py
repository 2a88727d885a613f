"""What calibration text shows about the inputs of the linears that read prunable units."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Const, Value
from ingot.passes.base import Context
from ingot.passes.calibration.moments import added_to
from ingot.passes.calibration.track import Track

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Evidence:
    """Means over all tokens of the input x of a linear, tokens counted as `token_weights` says.

    mean: f32[k]. second: x x^T, f32[k, k]. energy: of the token weights before they were scaled to mean 1.
    """

    mean: np.ndarray
    second: np.ndarray
    energy: float

    @property
    def variance(self) -> np.ndarray:
        """Of each channel, f32[k]."""
        return np.asarray(np.maximum(self.second.diagonal() - np.square(self.mean), 0))


def gathered(module: Module, linears: Sequence[Linear], ctx: Context, *, level: bool) -> Iterator[tuple[Linear, Evidence]]:
    """The evidence about each linear of the main func, in graph order, each value's once for all that read it.

    level: count each token by how large what the result is added to is there. Memory: the live values of all batches.
    """
    import torch

    track = Track(module, ctx.calibration)
    order = {op: i for i, op in enumerate(module.main.ops)}
    seen: dict[Value, Evidence] = {}
    for done, linear in enumerate(sorted(linears, key=order.__getitem__)):
        ctx.step(done, len(linears), linear.result.hint or "linear")
        if linear.x not in seen:
            track.advance(linear)
            k = linear.w.type.shape[1]
            total, second, weight, tokens = torch.zeros(k), torch.zeros(k, k), 0.0, 0
            for batch in range(len(track.live)):
                rows = track.rows(linear.x, batch)
                counted = token_weights(linear, track, batch) if level else torch.ones(len(rows))
                scaled = rows * counted[:, None]
                second.addmm_(scaled.T, rows)
                total += scaled.sum(0)
                weight += float(counted.sum())
                tokens += len(rows)
            seen = {linear.x: Evidence((total / weight).numpy(), second.div_(weight).numpy(), weight / tokens)}
        yield linear, seen[linear.x]


def token_weights(linear: Linear, track: Track, batch: int, w: torch.Tensor | None = None) -> torch.Tensor:
    """One over the mean square of the sum that the result of a linear is added into, f32[tokens]; ones where there is no sum.

    An error is felt behind the norm that follows the sum, which divides by its size: tokens of huge activations (Sun et al. 2024,
    arXiv 2402.17762) would otherwise decide everything. w: the weight, where it is at hand.
    """
    import torch

    other = added_to(linear)
    rows = track.rows(linear.x, batch)
    if other is None or other not in track.live[batch] or not isinstance(linear.w, Const):
        return torch.ones(len(rows))
    if w is None:
        w = torch.from_numpy(linear.w.weight.materialize().astype(np.float32))
    return 1 / torch.addmm(track.rows(other, batch), rows, w.T).square().mean(1).clamp_min(1e-12)
