"""Running two modules on the same inputs and comparing what they compute."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ingot.ir.dims import evaluate
from ingot.ir.interpret import run
from ingot.ir.module import Module
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.layout import Pick, Take, TakeAlong
from ingot.ir.ops.rope import Rope
from ingot.ir.text import print_module
from ingot.ir.value import Value

LARGEST = 6
"""Dims are drawn up to this size, where their range allows it: small shapes show the same mistakes faster."""


def sizes_for(module: Module, rng: np.random.Generator, **given: int) -> dict[str, int]:
    """A size within its declared range for every dim of the module; `given` ones as they are."""
    drawn = {name: int(rng.integers(least, max(least, min(greatest, LARGEST)) + 1))
             for name, (least, greatest) in module.dims.items()}
    return drawn | given


def inputs_for(module: Module, rng: np.random.Generator, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Arrays for the parameters of the main func, by name; dims that `sizes` lacks are drawn.

    Floats are normal, bools fair, integers small. Parameters that serve as positions count up along their last axis;
    those that index a table stay within it. Masks show the first key, so that no row is blind.
    """
    env = sizes_for(module, rng, **(sizes or {}))
    out: dict[str, np.ndarray] = {}
    for param in module.main.params:
        shape = tuple(evaluate(d, env) for d in param.type.dims)
        kind, limit = _role(param, env)
        array: np.ndarray
        if param.type.dtype.is_float:
            array = rng.normal(size=shape)
        elif kind == "position":
            array = np.broadcast_to(np.arange(shape[-1]) + rng.integers(0, max(limit - shape[-1], 0) + 1), shape)
        else:
            array = rng.integers(0, 2 if kind == "mask" or param.type.dtype.kind == "bool" else max(limit, 1), size=shape)
        if kind == "mask" and array.size:
            array[..., 0] = 1
        out[param.hint or ""] = array.astype(param.type.dtype.numpy)
    return out


def _role(param: Value, env: Mapping[str, int]) -> tuple[str, int]:
    """What an integer parameter serves as, here and behind casts and moves, and the least size it indexes (4 if none)."""
    kind, limit = "", 4
    pending, seen = [param], {param}
    limits: list[int] = []
    while pending:
        value = pending.pop()
        for op in value.users:
            if isinstance(op, Embedding) and op.ids is value:
                limits.append(evaluate(op.w.type.dims[0], env))
            elif isinstance(op, Take | TakeAlong | Pick) and op.index is value:
                limits.append(evaluate(op.x.type.dims[op.axis], env))
            elif isinstance(op, CacheWrite) and op.pos is value:
                kind = "position"
                limits.append(evaluate(op.cache.type.dims[2], env))
            elif isinstance(op, Rope | Attention) and op.pos is value:
                kind = "position"
            elif isinstance(op, Attention) and op.mask is value:
                kind = "mask"
            for result in op.results:
                if not result.type.dtype.is_float and result not in seen:
                    seen.add(result)
                    pending.append(result)
    return kind, min(limits, default=limit)


def assert_exact(before: Module, after: Module, *, rtol: float = 1e-9, rounds: int = 3, seed: int = 0) -> None:
    """Asserts that two modules compute the same in float64, over `rounds` draws of sizes and inputs.

    The first round takes the least size of every dim. Arrays may differ by `rtol` of their greatest magnitude (at least
    1), which allows for another order of summation. Raises AssertionError with the place and both texts.
    """
    for index in range(rounds):
        rng = np.random.default_rng([seed, index])
        least = {name: low for name, (low, _) in before.dims.items()}
        sizes = least if index == 0 else sizes_for(before, rng)
        inputs = inputs_for(before, rng, sizes)
        names = [p.hint or "" for p in after.main.params]
        unknown = [n for n in names if n not in inputs]
        assert not unknown, f"parameters {unknown} came from nowhere"
        old, new = run(before, inputs), run(after, {n: inputs[n] for n in names})
        assert len(old) == len(new), f"{len(old)} results became {len(new)}"
        for i, (a, b) in enumerate(zip(old, new)):
            reason = difference(a, b, rtol=rtol)
            if reason:
                texts = f"--- before\n{print_module(before)}--- after\n{print_module(after)}"
                raise AssertionError(f"result {i} at {sizes}: {reason}\n{texts}")


def difference(a: np.ndarray, b: np.ndarray, *, rtol: float) -> str:
    """How two arrays differ, in words; "" when they agree within `rtol` of the greatest finite magnitude (at least 1)."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(np.where(finite, 0, x), np.where(np.isfinite(y), 0, y), equal_nan=True):
        return "infinities or NaN at other places"
    x, y = np.where(finite, x, 0), np.where(finite, y, 0)
    error = float(np.max(np.abs(x - y), initial=0.0))
    limit = rtol * max(1.0, float(np.max(np.abs(x), initial=0.0)))
    return "" if error <= limit else f"off by {error:.3g}, {limit:.3g} is allowed"
