"""A decoder on the GPU: caches in device memory, prompts fed in chunks, and a decode step recorded as one CUDA graph.

A recorded step takes its token and position from device memory, chooses the next token there and counts on, so that many
steps run without the host. Where there is no CUDA (kernels interpreted on the CPU) the same calls run one by one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ingot.backends.torch.tensors import torch_dtype
from ingot.backends.triton.module import TritonModule
from ingot.backends.triton.prebuilt import offered
from ingot.backends.triton.sampling import Choice, choose
from ingot.errors import IRError
from ingot.ir.dims import evaluate
from ingot.ir.value import Value


class Decoder:
    """Rows of tokens being continued by a compiled module.

    The module's func takes ids i64[B, S], pos i64[B, S], take i64[B, N] (where it has that) and caches that it reuses, and
    returns logits [B, N, V] first. batch: rows. capacity: positions per row. pos: i64[B, 1], the next position of every row.
    """

    def __init__(self, compiled: TritonModule, *, batch: int, capacity: int) -> None:
        self.compiled = compiled
        self.batch = batch
        self.capacity = capacity
        func = compiled.func
        self._plain = [p for p in func.params if p not in func.reuse.values()]
        unknown = [p.hint for p in self._plain if p.hint not in ("ids", "pos", "take")]
        if unknown:
            raise IRError(f"a decoder takes ids, pos, take and caches, not {', '.join(f'%{n}' for n in unknown)}")
        device = compiled.device
        self.caches: dict[Value, torch.Tensor] = {
            p: torch.zeros([evaluate(d, {"B": batch, "T": capacity}) for d in p.type.dims], dtype=torch_dtype(p.type.dtype),
                           device=device) for p in func.reuse.values()}
        self.ids = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        self.pos = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        self.uniform = torch.zeros(batch, device=device)
        self._last = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        self._graphs: dict[Choice | None, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def feed(self, ids: torch.Tensor, pos: torch.Tensor, take: torch.Tensor, *, row: int | None = None) -> torch.Tensor:
        """Logits [b, N, V] after tokens ids i64[b, S] at positions pos, of the places take i64[b, N]; of all rows, or one."""
        logits = self.compiled.run(self._inputs(ids, pos, take, row))[0]
        if any(p.hint == "take" for p in self._plain):
            return logits
        return logits.gather(1, take[..., None].expand(-1, -1, logits.shape[-1]))

    def trial(self, tokens: int, *, start: int = 0) -> list[torch.Tensor]:
        """The inputs of a run of `tokens` tokens of every row from position `start`, logits of the last one wanted: for
        measuring, which leaves whatever it writes in the caches."""
        ids = torch.zeros((self.batch, tokens), dtype=torch.int64, device=self.compiled.device)
        pos = (start + torch.arange(tokens, device=ids.device)).expand(self.batch, -1).contiguous()
        return self._inputs(ids, pos, torch.full_like(self._last, tokens - 1))

    def _inputs(self, ids: torch.Tensor, pos: torch.Tensor, take: torch.Tensor, row: int | None = None) -> list[torch.Tensor]:
        given = {"ids": ids, "pos": pos, "take": take}
        return [given[p.hint or ""] if p in self._plain else self._cache(p, row) for p in self.compiled.func.params]

    def step(self, choice: Choice | None = None) -> torch.Tensor:
        """One token of every row from `self.ids` at `self.pos`: logits [B, V], in a buffer the next step overwrites.

        With a choice the next token goes to `self.ids` (drawn by `self.uniform` unless greedy) and `self.pos` counts on.
        """
        if self.compiled.device.type != "cuda":
            return self._step(choice)
        if choice not in self._graphs:
            self._graphs[choice] = self._record(choice)
        graph, logits = self._graphs[choice]
        graph.replay()
        return logits

    def _step(self, choice: Choice | None) -> torch.Tensor:
        logits = self.feed(self.ids, self.pos, self._last)[:, 0]
        if choice is not None:
            with offered(self.compiled.prebuilt):
                choose(logits, choice, uniform=self.uniform, out=self.ids.view(-1))
            self.pos += 1
        return logits

    def _record(self, choice: Choice | None) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        """The step as a graph. Kernels are compiled and weights uploaded by steps before, whose tokens are taken back."""
        ids, pos = self.ids.clone(), self.pos.clone()
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._step(choice)
                self.ids.copy_(ids)
                self.pos.copy_(pos)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._step(choice)
        # Recording runs nothing, so ids and pos are as they were.
        return graph, logits

    def _cache(self, param: Value, row: int | None) -> torch.Tensor:
        whole = self.caches[param]
        return whole if row is None else whole[row:row + 1]

    def adopt(self, other: Decoder, rows: Mapping[int, int], positions: int) -> None:
        """Takes over cached positions: row `mine` from the other decoder's row `theirs`, for each of rows."""
        for (param, mine), theirs in zip(self.caches.items(), other.caches.values(), strict=True):
            axis = next((i for i, d in enumerate(param.type.dims) if str(d) == "T"), None)
            for to, source in rows.items():
                if axis is None:
                    mine[to] = theirs[source]
                else:
                    mine[to].narrow(axis - 1, 0, positions).copy_(theirs[source].narrow(axis - 1, 0, positions))
