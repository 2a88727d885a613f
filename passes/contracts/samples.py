"""Random inputs that a module can be run on: sizes within the declared ranges, numbers that suit what they are used for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ingot.ir.dims import Expr, evaluate
from ingot.ir.module import Module
from ingot.ir.ops.attention import Attention, CacheWrite
from ingot.ir.ops.embedding import Embedding
from ingot.ir.ops.layout import Pick, Take, TakeAlong
from ingot.ir.ops.rope import Rope
from ingot.ir.value import Value

LARGEST = 6
"""Dims are drawn up to this size: small shapes show the same mistakes faster."""


def sizes_for(module: Module, rng: np.random.Generator, *, at_least: int = 0, at_most: int = LARGEST,
              **given: int) -> dict[str, int]:
    """A size within its declared range for every dim of the module, `at_least` and `at_most` where the range allows it;
    `given` ones as they are.

    Caches are drawn long enough for what is written to them.
    """
    drawn = {name: int(rng.integers(min(max(least, at_least), greatest), max(least, min(greatest, at_most)) + 1))
             for name, (least, greatest) in module.dims.items()}
    return roomy(module, drawn | given)


def least_sizes(module: Module) -> dict[str, int]:
    """The least size of every dim."""
    return roomy(module, {name: least for name, (least, _) in module.dims.items()})


def roomy(module: Module, sizes: Mapping[str, int]) -> dict[str, int]:
    """`sizes` with caches as long as what is written to them, or longer."""
    out = dict(sizes)
    for op in module.ops:
        if isinstance(op, CacheWrite):
            room, needed = op.cache.type.dims[2], evaluate(op.new.type.dims[2], out)
            if isinstance(room, Expr) and str(room) in out:
                out[str(room)] = max(out[str(room)], needed)
    return out


def rows_dim(module: Module) -> str | None:
    """The dim of a decoder's outputs that are asked for by the parameter `take` [batch, rows]; None without."""
    return next((str(p.type.dims[1]) for p in module.main.params if p.hint == "take"), None)


def room_dim(module: Module) -> str | None:
    """The dim of positions in a decoder's caches [batch, heads, positions, features]; None without caches."""
    return next((str(p.type.dims[2]) for p in module.main.reuse.values() if p.type.rank == 4), None)


def inputs_for(module: Module, rng: np.random.Generator, sizes: Mapping[str, int] | None = None, *,
               like: Module | None = None) -> dict[str, np.ndarray]:
    """Arrays for the parameters of the main func, by name; dims that `sizes` lacks are drawn.

    Floats are normal, bools fair, integers small. Parameters that serve as positions count up along their last axis, from
    another start in every row; those that index a table stay within it. Masks show the first key, and every other one
    where attention looks through a window, so that no row is blind. like: a module with parameters of the same names,
    whose uses of them are looked at as well.
    """
    env = sizes_for(module, rng, **(sizes or {}))
    windowed = any(isinstance(op, Attention) and op.window is not None for m in (module, like) if m is not None for op in m.ops)
    others = {p.hint: p for p in like.main.params} if like is not None else {}
    out: dict[str, np.ndarray] = {}
    for param in module.main.params:
        shape = tuple(evaluate(d, env) for d in param.type.dims)
        alike = [param, *([others[param.hint]] if param.hint in others else [])]
        kind, limit = _role(alike, env)
        array: np.ndarray
        if param.type.dtype.is_float:
            array = rng.normal(size=shape)
        elif kind == "position":
            room = max(limit - shape[-1], 0) if limit is not None else LARGEST
            array = np.arange(shape[-1]) + rng.integers(0, room + 1, size=(*shape[:-1], 1))
        else:
            below = 2 if kind == "mask" or param.type.dtype.kind == "bool" else 4 if limit is None else max(limit, 1)
            array = rng.integers(0, below, size=shape)
        if kind == "mask" and array.size:
            array[..., :: 2 if windowed else max(shape[-1], 1)] = 1
        out[param.hint or ""] = array.astype(param.type.dtype.numpy)
    return out


def _role(params: list[Value], env: Mapping[str, int]) -> tuple[str, int | None]:
    """What an integer parameter (one, under one name in several modules) serves as, here and behind casts and moves.

    With the least size it indexes (None if none). `pos` and `mask` are what they are called.
    """
    kind = {"pos": "position", "mask": "mask"}.get(params[0].hint or "", "")
    limits: list[int] = []
    pending, seen = list(params), set(params)
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
    return kind, min(limits, default=None)
