"""What a lossy pass costs: how far the outputs of a module are from those of the one before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ingot.ir.dims import evaluate
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.ops.matmul import Linear
from ingot.ir.value import Value
from ingot.passes.base import Context
from ingot.passes.contracts.difference import relative_error
from ingot.passes.contracts.samples import inputs_for, room_dim, rows_dim

TOKENS = 128
"""Tokens of calibration text on which a decoder is measured."""
FEW = 48
"""Tokens on which single linears are looked at."""
ROWS = 64
"""Positions whose logits are compared, where the module computes chosen ones."""

Observer = Callable[[Value, np.ndarray], None]
Engine = Callable[..., list[np.ndarray]]
"""(module, arrays by name, observe=None) -> the returns, in the declared element types."""


def interpreted(module: Module, inputs: Mapping[str, np.ndarray], observe: Observer | None = None) -> list[np.ndarray]:
    """By the reference interpreter."""
    return run(module, _own(module, inputs), precision="declared", observe=observe)


def executed(module: Module, inputs: Mapping[str, np.ndarray], observe: Observer | None = None) -> list[np.ndarray]:
    """By the torch executor, for modules that are too large for the interpreter."""
    import torch

    from ingot.backends.torch import executor
    from ingot.backends.torch.tensors import to_array

    def watch(value: Value, tensor: torch.Tensor) -> None:
        if observe is not None:
            observe(value, to_array(tensor))

    with torch.no_grad():
        return [to_array(t) for t in executor.run(module, _own(module, inputs), observe=watch if observe is not None else None)]


def samples(before: Module, after: Module, ctx: Context, *, seed: int) -> dict[str, np.ndarray]:
    """Inputs for both modules: a decoder's are calibration text, or random tokens, as a prefill with empty caches."""
    rng = np.random.default_rng(seed)
    if all(p.hint != "ids" for p in before.main.params):
        sizes = {name: min(max(least, 2), greatest) for name, (least, greatest) in before.dims.items()}
        return inputs_for(after, rng, sizes, like=before) | inputs_for(before, rng, sizes, like=after)
    if ctx.calibration is not None:
        ids = np.asarray(ctx.calibration[0], np.int64)[:, :TOKENS]
    else:
        length = before.main.param("ids").type.dims[-1]
        tokens = length if isinstance(length, int) else min(TOKENS // 4, before.dims.get(str(length), (1, TOKENS))[1])
        ids = inputs_for(before, rng, {str(d): n for d, n in zip(before.main.param("ids").type.dims, (1, tokens))})["ids"]
    return prefill(after, ids) | prefill(before, ids)


def activations(module: Module, ctx: Context, *, engine: Engine) -> dict[Value, np.ndarray]:
    """What the linears of a decoder read on the first `FEW` tokens of calibration text, by value; empty without any."""
    if ctx.calibration is None or all(p.hint != "ids" for p in module.main.params):
        return {}
    wanted = {op.x for op in module.main.ops if isinstance(op, Linear)}
    found: dict[Value, np.ndarray] = {}

    def observe(value: Value, array: np.ndarray) -> None:
        if value in wanted:
            found[value] = array.copy()

    engine(module, prefill(module, np.asarray(ctx.calibration[0], np.int64)[:, :FEW]), observe=observe)
    return found


def prefill(module: Module, ids: np.ndarray) -> dict[str, np.ndarray]:
    """What a decoder is fed for token ids [b, s] as a whole: positions from 0, empty caches, and outputs asked at up to
    `ROWS` positions, evenly spread."""
    rows, tokens = ids.shape
    take = np.unique(np.linspace(0, tokens - 1, min(tokens, ROWS)).round().astype(np.int64))
    given = {"ids": ids, "pos": np.tile(np.arange(tokens), (rows, 1)), "take": np.tile(take, (rows, 1))}
    sizes = {str(d): n for d, n in zip(module.main.param("ids").type.dims, ids.shape)}
    sizes |= {name: n for name, n in ((rows_dim(module), len(take)), (room_dim(module), tokens)) if name is not None}
    given |= {p.hint or "": np.zeros([evaluate(d, sizes) for d in p.type.dims]) for p in module.main.reuse.values()}
    drawn = inputs_for(module, np.random.default_rng(0), sizes)
    return {name: given.get(name, array).astype(array.dtype, copy=False) for name, array in drawn.items()}


def measured(before: list[np.ndarray], after: list[np.ndarray], *, logits: bool) -> dict[str, float]:
    """relative: the greatest `relative_error` of an output. For logits [..., vocabulary], kl: the mean divergence of
    softmax(after) from softmax(before) in nats; top1: the share of positions with the same likeliest token."""
    found = {"relative": max((relative_error(a, b) for a, b in zip(before, after) if a.dtype.kind == "f"), default=0.0)}
    if logits and np.isfinite(after[0]).all():
        p, q = _log_softmax(before[0]), _log_softmax(after[0])
        found["kl"] = float((np.exp(p) * (p - q)).sum(-1).mean())
        found["top1"] = float((p.argmax(-1) == q.argmax(-1)).mean())
    return found


def outputs(module: Module, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The returns of a module that are not caches."""
    return [a for i, a in enumerate(arrays) if i not in module.main.reuse]


def has_logits(module: Module) -> bool:
    """Whether the first output is a decoder's logits."""
    return module.meta.get("kind") == "decoder" or (any(p.hint == "ids" for p in module.main.params)
                                                    and (module.main.returns[0].hint or "").startswith("logits"))


def summary(before: Module, after: Module, ctx: Context, *, engine: Engine, seed: int) -> dict[str, Any]:
    """`measured` on `samples`, with where these came from."""
    inputs = samples(before, after, ctx, seed=seed)
    old, new = (outputs(m, engine(m, inputs)) for m in (before, after))
    source = "calibration" if ctx.calibration is not None and "ids" in inputs else "random"
    return {**measured(old, new, logits=has_logits(before)), "inputs": source}


def _log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    out: np.ndarray = x - np.log(np.exp(x).sum(-1, keepdims=True))
    return out


def _own(module: Module, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {p.hint or "": inputs[p.hint or ""] for p in module.main.params}
