"""The directions in which the inputs of linears vary most, along which low-rank additions begin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Value
from ingot.passes.calibration.calibrate import inputs_for
from ingot.passes.rotation.untie import label

if TYPE_CHECKING:
    import torch


def principal_inputs(module: Module, batches: Sequence[np.ndarray], rank: int) -> dict[str, torch.Tensor]:
    """For each weight of linears of the main func, by name, the `rank` directions of most variance of its input on token ids
    [n, s] (EVA, Paischer et al. 2024, arXiv 2410.07170, section 3), f32[rank, k].

    Each is scaled so that what it makes of the input is as large as what a random direction of length 1 would make on average:
    an optimiser that moves all numbers at one pace then moves the result alike along all of them.
    """
    import torch

    from ingot.backends.torch.executor import Executor

    readers: dict[Value, list[str]] = {}
    for op in module.main.ops:
        if isinstance(op, Linear):
            readers.setdefault(op.x, []).append(label(op.w))
    moments: dict[Value, torch.Tensor] = {}

    def observe(value: Value, tensor: torch.Tensor) -> None:
        if value in readers:
            rows = tensor.reshape(-1, tensor.shape[-1]).float()
            square = rows.T @ rows
            moments[value] = moments[value] + square if value in moments else square

    executor = Executor(module, dtype=torch.float32)
    with torch.no_grad():
        for ids in batches:
            executor.run(inputs_for(module, ids), observe=observe)
    found: dict[str, torch.Tensor] = {}
    for value, moment in moments.items():
        sizes, directions = torch.linalg.eigh(moment)
        top = slice(max(len(sizes) - rank, 0), None)
        scaled = directions[:, top] * (sizes.mean() / sizes[top].clamp_min(1e-9 * float(sizes[-1]))).sqrt()
        for name in readers[value]:
            found[name] = scaled.T.contiguous()
    return found
