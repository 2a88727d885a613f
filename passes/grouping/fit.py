"""Fitting all weights of an attention together, by gradients, to what the original one gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ingot.ir.module import Module
from ingot.ir.op import Op
from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Const, Value
from ingot.passes.calibration.moments import added_to
from ingot.passes.calibration.track import Track
from ingot.passes.contracts.slices import extract
from ingot.passes.pruning.evidence import token_weights
from ingot.passes.stored import stored

if TYPE_CHECKING:
    import torch


RATE = 0.02
"""How far the first step takes a weight, as part of the root mean square of all in its tensor."""


@dataclass(frozen=True)
class Wanted:
    """What a linear should give on one batch, f32[tokens, o], and how much each token counts, f32[tokens]."""

    result: torch.Tensor
    weights: torch.Tensor


def wanted(out: Linear, original: Linear, track: Track, before: Track) -> list[Wanted]:
    """What `out` should give on every batch: what the original one does, and what the sum that it is added to lacks.

    The original is run up to `original`, the module to the inputs of the attention. Tokens count as `token_weights` says.
    """
    import torch

    before.advance(original)
    assert isinstance(original.w, Const)
    w = torch.from_numpy(original.w.weight.materialize().astype(np.float32))
    bias = torch.from_numpy(original.bias.weight.materialize().astype(np.float32)) if isinstance(original.bias, Const) else None
    other, other_before = added_to(out), added_to(original)
    found: list[Wanted] = []
    for i, live in enumerate(before.live):
        result = torch.nn.functional.linear(before.rows(original.x, i), w, bias)
        if other is not None and other_before is not None and other in track.live[i] and other_before in live:
            result = result + before.rows(other_before, i) - track.rows(other, i)
        found.append(Wanted(result, token_weights(original, before, i, w)))
    return found


def fit(module: Module, out: Linear, consts: Sequence[Const], track: Track, targets: Sequence[Wanted], *, steps: int,
        made_by: str) -> tuple[float, float]:
    """Give weights on the way to `out` the values that bring its result nearest to the targets, in place.

    Least squares by Adam (Kingma and Ba 2015, arXiv 1412.6980) for `steps` batches in turn, the rate falling from RATE times the
    root mean square of each weight to nothing along a cosine. Weights that come out worse are left as they were. Returns the mean
    squared error before and after, over the mean square of the targets.
    """
    part = _Part(module, out, consts, track, targets)
    first = part.lost()
    if steps:
        part.descend(steps)
    last = part.lost() if steps else first
    if last >= first:
        return first, first
    for const in consts:
        array = part.params[const.name].detach().numpy().astype(const.type.dtype.numpy)
        module.set_weight(const, stored(const.name, array, made_by))
    return first, last


class _Part:
    """The ops between the live values of a module and the result of a linear, with weights that can be fitted."""

    def __init__(self, module: Module, out: Linear, consts: Sequence[Const], track: Track, targets: Sequence[Wanted]) -> None:
        import torch

        from ingot.backends.torch.executor import Executor

        ops = _needed(out, track.live[0])
        given = list(dict.fromkeys(v for op in ops for v in op.operands if v in track.live[0]))
        names = {v: f"v{i}" for i, v in enumerate(given)}
        self.inputs = [{names[v]: live[v] for v in given} for live in track.live]
        self.sizes = track.sizes
        self.targets = targets
        self.size = max(sum(float((t.weights @ t.result.square()).sum()) for t in targets), 1e-30)
        self.params = {c.name: torch.from_numpy(c.weight.materialize().astype(np.float32)).requires_grad_() for c in consts}
        self.executor = Executor(extract(module, [out.result], ops, names), params=self.params, keep=True, dtype=torch.float32)

    def error(self, i: int) -> torch.Tensor:
        """The part of batch i in `lost`."""
        target = self.targets[i]
        missing = self.executor.run(self.inputs[i], sizes=self.sizes[i])[0].reshape(target.result.shape) - target.result
        return (target.weights @ missing.square()).sum() / self.size

    def lost(self) -> float:
        """The error on all batches."""
        import torch

        with torch.no_grad():
            return sum(float(self.error(i)) for i in range(len(self.inputs)))

    def descend(self, steps: int) -> None:
        """All weights by gradients, a batch for each step."""
        import torch

        groups = [{"params": [p], "lr": RATE * float(p.detach().square().mean().sqrt())} for p in self.params.values()]
        adam = torch.optim.Adam(groups, betas=(0.9, 0.95), eps=1e-12)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
        for step in range(steps):
            adam.zero_grad()
            (self.error(step % len(self.inputs)) * len(self.inputs)).backward()  # type: ignore[no-untyped-call]
            adam.step()
            schedule.step()


def _needed(out: Linear, live: dict[Value, torch.Tensor]) -> list[Op]:
    """The ops that make the result of a linear from live values."""
    found: set[Op] = set()
    pending: list[Op] = [out]
    while pending:
        op = pending.pop()
        if op not in found:
            found.add(op)
            pending += [v.op for v in op.operands if v.op is not None and v not in live]
    assert out.func is not None
    return [op for op in out.func.ops if op in found]
