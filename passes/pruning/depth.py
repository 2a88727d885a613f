"""Blocks of a model that are passed through one after the other, each of which may be left out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ingot.ir.module import Builder, Func, Module
from ingot.ir.op import Op
from ingot.ir.ops.attention import Attention
from ingot.ir.ops.matmul import Linear
from ingot.ir.ops.norm import LayerNorm, RmsNorm, SkipLayerNorm, SkipRmsNorm
from ingot.ir.value import Const, Value
from ingot.passes.base import Context
from ingot.passes.calibration.calibrate import inputs_for
from ingot.passes.contracts.slices import positional


@dataclass(frozen=True, eq=False)
class Block:
    """The ops that make `last` from `first`, values of one type, through attention; nothing else goes around them."""

    first: Value
    last: Value
    ops: tuple[Op, ...]

    @property
    def parameters(self) -> int:
        """Elements of its weights."""
        return sum(math.prod(c.type.shape) for c in {v for op in self.ops for v in op.operands if isinstance(v, Const)})


def blocks(func: Func) -> list[Block]:
    """The blocks of a func in order: each begins with an attention and ends where the next one begins, or after the last linear
    behind it. A model without attention has none."""
    found: list[Block] = []
    since: tuple[Op, ...] = ()
    for block in _stretches(func):
        since = since + block.ops if found else ()
        if any(isinstance(op, Attention) for op in block.ops):
            if found:
                found[-1] = Block(found[-1].first, block.first, found[-1].ops + since[:len(since) - len(block.ops)])
            found.append(block)
            since = ()
        elif found and any(isinstance(op, Linear) for op in block.ops):
            found[-1] = Block(found[-1].first, block.last, found[-1].ops + since)
            since = ()
    return found


def _stretches(func: Func) -> Iterator[Block]:
    """The ops between two values of one type, each of which is all that is handed on there (but for positions).

    A fused sum and norm counts as two ops; the norm of a sum that is handed on belongs to what follows.
    """
    aside = positional(func.module)
    order = {op: i for i, op in enumerate(func.ops)}
    end = {value: max(order.get(user, len(order)) for user in value.users)
           for value in (*func.params, *(r for op in func.ops for r in op.results)) if value.users and value not in aside}
    live = {v for v in func.params if v in end}
    start: tuple[int, Value] | None = None
    for i, op in enumerate(func.ops):
        live = {v for v in (*live, *op.results) if end.get(v, -1) > i}
        if start is not None and start[1] in live:
            continue
        here = [(i, total)] if (total := _summed(op)) is not None and live <= set(op.results) else []
        if len(live) == 1 and not (here and here[0][1] in live):
            here.append((i + 1, next(iter(live))))
        for at, value in here:
            if start is not None and start[1].type == value.type:
                yield Block(start[1], value, tuple(func.ops[start[0]:at]))
            start = at, value


def _summed(op: Op | None) -> Value | None:
    """The sum that an op gives beside its norm."""
    return op.results[1] if isinstance(op, SkipRmsNorm | SkipLayerNorm) else None


def influence(module: Module, found: Sequence[Block], ctx: Context) -> np.ndarray:
    """How much each block changes what passes through it: 1 - cos(first, last), the mean over calibration tokens, f64[blocks]
    (block influence: ShortGPT, Men et al. 2024, arXiv 2403.03853, section 3.2)."""
    import torch

    from ingot.backends.torch.executor import Executor

    executor = Executor(module)
    total, batches = np.zeros(len(found)), 0
    with torch.no_grad():
        for done, ids in enumerate(ctx.calibration):
            ctx.step(done, len(ctx.calibration), "block influence")
            held: dict[Value, torch.Tensor] = {}

            def observe(value: Value, tensor: torch.Tensor, held: dict[Value, torch.Tensor] = held) -> None:
                for i, block in enumerate(found):
                    if value is block.last:
                        total[i] += 1 - float(torch.cosine_similarity(held[block.first], tensor, dim=-1).mean())
                if any(value is block.first for block in found):
                    held[value] = tensor

            executor.run(inputs_for(module, np.asarray(ids, np.int64)), observe=observe)
            batches += 1
    return total / max(batches, 1)


def least(found: Sequence[Block], scores: np.ndarray, ratio: float) -> list[Block]:
    """The blocks of least score that together hold `ratio` of all parameters, or as near as whole blocks come; one stays."""
    wanted = ratio * sum(block.parameters for block in found)
    gone: list[Block] = []
    for index in np.argsort(scores, kind="stable")[:-1]:
        if wanted < found[index].parameters / 2:
            break
        gone.append(found[index])
        wanted -= found[index].parameters
    return gone


def leave_out(func: Func, gone: Sequence[Block]) -> None:
    """Let what reads a block's result read what the block read."""
    for first, last in _runs(gone):
        if _summed(last.op) is not last:
            func.replace(last, first)
            continue
        skip, before = last.op, first.op
        assert isinstance(skip, SkipRmsNorm | SkipLayerNorm)
        if isinstance(before, SkipRmsNorm | SkipLayerNorm) and _summed(before) is first:
            func.set_operand(skip, "x", before.x)  # the same sum, with the norm of what follows
            func.set_operand(skip, "skip", before.skip)
        else:
            norm = RmsNorm(first, skip.w, skip.eps) if isinstance(skip, SkipRmsNorm) else \
                LayerNorm(first, skip.w, skip.bias, skip.eps)
            func.replace(skip.results[0], Builder(func, before=skip)(norm))
            func.replace(last, first)
    func.drop_dead()


def _runs(gone: Sequence[Block]) -> list[tuple[Value, Value]]:
    """What is read and what is handed on by blocks that follow each other without another between them."""
    lasts = {block.first: block.last for block in gone}
    found: list[tuple[Value, Value]] = []
    for first in [value for value in lasts if value not in lasts.values()]:
        last = lasts[first]
        while last in lasts:
            last = lasts[last]
        found.append((first, last))
    return found
