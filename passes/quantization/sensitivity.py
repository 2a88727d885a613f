"""How much a model's predictions change when weights of its linears do: Fisher information, by rows and columns."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Const, Value
from ingot.passes.base import Context
from ingot.passes.calibration.calibrate import inputs_for
from ingot.passes.quantization import rtn
from ingot.passes.quantization.gptq import feedback
from ingot.passes.quantization.scheme import Scheme

if TYPE_CHECKING:
    import torch

SEQUENCE = 256
"""Tokens of each calibration sequence that are looked at: what is kept for the way back grows with them."""
SEQUENCES = 16
SAMPLE = 96
"""Rows of a weight on which the error of a format is measured."""


@dataclass(frozen=True)
class Sensitivity:
    """The diagonal of the Fisher information of a weight [n, k], as rows f64[n] times columns f64[k]: nats per squared change.

    The greatest factor of rank one that has the right sums of rows and of columns.
    """

    rows: np.ndarray
    columns: np.ndarray

    def loss(self, w: np.ndarray, scheme: Scheme) -> float:
        """Divergence (nats per token) to expect from rounding w f32[n, k] to nearest, to second order, as if no error knew of
        another."""
        at = np.unique(np.linspace(0, len(w) - 1, min(len(w), SAMPLE)).astype(int))
        near = rtn.rounded(w[at], scheme.format, group=scheme.width(w.shape[1]), symmetric=scheme.symmetric, search=True)
        error = np.square(near.decoded() - w[at], dtype=np.float64) @ self.columns
        seen = float(self.rows[at].sum())
        return 0.5 * float(error @ self.rows[at]) * float(self.rows.sum()) / seen if seen else 0.0


def sensitivities(module: Module, consts: Collection[Const], ctx: Context, *, fitted: bool = False) -> dict[Const, Sensitivity]:
    """The sensitivity of weights that linears of the main func read; its first result is taken for logits.

    fitted: that which is left where codes are chosen by `gptq`, so that columns make good what others lose.

    Next tokens are drawn from the model's own predictions, so that the squared gradients of their log-probability are the
    Fisher information, which is the curvature of the divergence from these predictions (Martens, arXiv 1412.1193, sections 5
    and 9.2). Memory: all weights in 32 bits, and what one short sequence computes.
    """
    import torch

    from ingot.backends.torch.executor import Executor

    watched = {op.result: op for op in module.main.ops if isinstance(op, Linear) and op.w in consts}
    sums = {op.w: _Sums() for op in watched.values()}
    inputs = {op.x for op in watched.values()}
    values: dict[Value, torch.Tensor] = {}
    moments: dict[Value, torch.Tensor] = {}

    def observe(value: Value, tensor: torch.Tensor) -> None:
        if value in watched:
            if not tensor.requires_grad:
                tensor.requires_grad_()
            tensor.retain_grad()
        if value in watched or value in inputs:
            values[value] = tensor

    executor = Executor(module, keep=True)
    generator = torch.Generator().manual_seed(0)
    batches = list(ctx.calibration)[:SEQUENCES]
    for done, ids in enumerate(batches):
        ctx.step(done, len(batches), "sensitivity")
        short = np.asarray(ids, np.int64)[:1, :SEQUENCE]
        logits = executor.run(inputs_for(module, short, all_logits=True), observe=observe)[0]
        likely = logits.flatten(0, -2).float().log_softmax(-1)
        drawn = torch.multinomial(likely.detach().exp(), 1, generator=generator)
        likely.gather(1, drawn).sum().backward()  # type: ignore[no-untyped-call]
        for result, op in watched.items():
            gradient = values[result].grad
            if gradient is not None:
                sums[op.w].add(values[op.x].detach().flatten(0, -2), gradient.flatten(0, -2))
        if fitted:
            for x in inputs:
                rows = values[x].detach().flatten(0, -2).float()
                moments[x] = torch.addmm(moments[x], rows.T, rows) if x in moments else rows.T @ rows
        values.clear()
    left = {x: feedback(second.numpy(), group=second.shape[0]).left for x, second in moments.items()}
    return {op.w: sums[op.w].sensitivity(op.w, left.get(op.x)) for op in watched.values() if isinstance(op.w, Const)}


class _Sums:
    """Of (g_i x_j)^2 over tokens: by rows i, by columns j, and all of it."""

    def __init__(self) -> None:
        self.tokens = 0
        self.rows = self.columns = np.zeros(1)
        self.total = 0.0

    def add(self, x: torch.Tensor, gradient: torch.Tensor) -> None:
        """x: what the linear reads, f32[tokens, k]. gradient: of its result, f32[tokens, n]."""
        inner, outer = x.double().square(), gradient.double().square()
        self.tokens += len(x)
        self.rows = self.rows + (inner.sum(1) @ outer).numpy()
        self.columns = self.columns + (outer.sum(1) @ inner).numpy()
        self.total += float(inner.sum(1) @ outer.sum(1))

    def sensitivity(self, const: Const, left: np.ndarray | None) -> Sensitivity:
        n, k = const.type.shape
        scale = 1 / (self.total * max(self.tokens, 1)) if self.total else 0.0
        columns = np.broadcast_to(self.columns, k) * scale
        return Sensitivity(np.broadcast_to(self.rows, n), columns if left is None else columns * left)
