"""Running a module over all calibration text at once, a stretch of ops at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ingot.ir.interpret import solve_dims
from ingot.ir.module import Module
from ingot.ir.op import Op
from ingot.ir.value import Value
from ingot.passes.calibration.calibrate import inputs_for
from ingot.passes.contracts.slices import extract

if TYPE_CHECKING:
    import torch

_AT_ONCE = 2048
"""Tokens run together: the overhead of an op is shared, and what it makes stays small."""


class Track:
    """The values of a module's main func on batches of token ids, as far as it has run.

    live: for each batch, the values computed that are still needed. The module may be changed behind the point it has been
    run to; memory holds the live values of all batches, and the weights of one stretch.
    """

    def __init__(self, module: Module, batches: Sequence[np.ndarray]) -> None:
        import torch

        self.module = module
        self.live: list[dict[Value, torch.Tensor]] = []
        self.sizes: list[dict[str, int]] = []
        self._ran: set[Op] = set()
        params = module.main.params
        for ids in merged(batches):
            given = inputs_for(module, ids, all_logits=True)
            arrays = [given[p.hint or ""] for p in params]
            self.sizes.append(solve_dims([p.type for p in params], [a.shape for a in arrays]))
            self.live.append({p: torch.from_numpy(np.array(a)) for p, a in zip(params, arrays)})

    def advance(self, stop: Op) -> None:
        """Run what stands before `stop` and has not run yet."""
        import torch

        from ingot.backends.torch.executor import Executor

        func = self.module.main
        before = func.ops[:func.ops.index(stop)]
        stretch = [op for op in before if op not in self._ran]
        self._ran.update(stretch)
        made = [v for op in stretch for v in op.results if self._needed(v)]
        names = {v: f"v{i}" for i, v in enumerate(self.live[0])}
        part = extract(self.module, made, stretch, names)
        given = {p.hint or "" for p in part.main.params}
        executor = Executor(part, keep=True)
        with torch.no_grad():
            for live, sizes in zip(self.live, self.sizes):
                outputs = executor.run({names[v]: t for v, t in live.items() if names[v] in given}, sizes=sizes)
                live.update(zip(made, outputs))
                for value in [v for v in live if not self._needed(v)]:
                    del live[value]

    def rows(self, value: Value, batch: int) -> torch.Tensor:
        """A live value of one batch as f32[tokens, channels]."""
        tensor = self.live[batch][value]
        return tensor.reshape(-1, tensor.shape[-1]).float()

    def _needed(self, value: Value) -> bool:
        return any(user not in self._ran for user in value.users)




def merged(batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The same rows of token ids, i64, with neighbours of one length together, up to so many tokens."""
    found: list[np.ndarray] = []
    for ids in batches:
        last = found[-1] if found else None
        if last is not None and last.shape[1] == ids.shape[1] and last.size + ids.size <= _AT_ONCE:
            found[-1] = np.concatenate([last, ids])
        else:
            found.append(np.asarray(ids, np.int64))
    return found
