"""What calibration text shows about values of the graph, through the torch executor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.errors import PassError
from ingot.ir.module import Module
from ingot.ir.value import Value
from ingot.passes.base import Context


def peaks(module: Module, values: Sequence[Value], ctx: Context, *, keep: tuple[int, ...]) -> dict[Value, np.ndarray]:
    """The greatest magnitude of each value over the calibration batches, per position of the axes `keep` (those from
    the end are negative).

    Results have the value's rank, with size one along the other axes (f32). Raises PassError, naming the value, where it is
    not finite.
    """
    import torch

    from ingot.backends.torch.executor import Executor

    wanted = set(values)
    found: dict[Value, np.ndarray] = {}

    def observe(value: Value, tensor: torch.Tensor) -> None:
        if value not in wanted:
            return
        over = [a for a in range(tensor.dim()) if a not in keep and a - tensor.dim() not in keep]
        peak = tensor.abs().amax(over, keepdim=True).float().numpy()
        if not np.isfinite(peak).all():
            raise PassError(f"{value!r} is not finite on the calibration text", where=value.op.loc if value.op else None,
                            hint="the checkpoint is broken, or its element type overflows")
        found[value] = np.maximum(found[value], peak) if value in found else peak

    executor = Executor(module)
    with torch.no_grad():
        for done, ids in enumerate(ctx.calibration):
            ctx.step(done, len(ctx.calibration), "calibrate")
            executor.run(inputs_for(module, np.asarray(ids, np.int64)), observe=observe)
    return found


def inputs_for(module: Module, ids: np.ndarray, *, all_logits: bool = False) -> dict[str, np.ndarray]:
    """The inputs of a decoder without a cache for token ids [b, s]: positions from 0, logits asked at the last one or all."""
    batch, length = ids.shape
    positions = np.broadcast_to(np.arange(length), ids.shape)
    given = {"ids": ids, "pos": positions, "take": positions if all_logits else np.full((batch, 1), length - 1),
             "adapter": np.zeros(batch, np.int64)}
    names = [p.hint or "" for p in module.main.params]
    unknown = [n for n in names if n not in given]
    if unknown:
        raise PassError(f"calibration cannot feed the inputs {', '.join('%' + n for n in unknown)}",
                        hint="calibrating passes go before insert-kv-cache")
    return {n: given[n] for n in names}
