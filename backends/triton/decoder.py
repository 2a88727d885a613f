"""A decoder on the GPU: caches in device memory, prompts fed in chunks, and a decode step recorded as one CUDA graph.

A recorded step takes its token and position from device memory, chooses the next token there and counts on, so that many
steps run without the host. Where there is no CUDA (kernels interpreted on the CPU) the same calls run one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ingot.backends.triton.caches import Caches, Contiguous, Paged
from ingot.backends.triton.module import TritonModule
from ingot.backends.triton.prebuilt import offered
from ingot.backends.triton.sampling import Choice, choose
from ingot.errors import IRError


class Decoder:
    """Rows of tokens being continued by a compiled module.

    The module's func takes ids i64[B, S], pos i64[B, S], take i64[B, N] (where it has that) and caches that it reuses, and
    returns logits [B, N, V] first. batch: rows. capacity: most positions of a row. pos: i64[B, 1], the next position of every
    row. caches: those taken over from another decoder; new ones when not given.
    """

    def __init__(self, compiled: TritonModule, *, batch: int, capacity: int, caches: Caches | None = None) -> None:
        self.compiled = compiled
        self.batch = batch
        func = compiled.func
        self._plain = [p for p in func.params if p not in func.reuse.values()]
        unknown = [p.hint for p in self._plain if p.hint not in ("ids", "pos", "take")]
        if unknown:
            raise IRError(f"a decoder takes ids, pos, take and caches, not {', '.join(f'%{n}' for n in unknown)}")
        device = compiled.device
        self.caches = caches or (Paged if compiled.page else Contiguous)(compiled, batch, capacity)
        self.ids = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        self.pos = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        self.uniform = torch.zeros(batch, device=device)
        self._last = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        self._graphs: dict[Choice | None, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    @property
    def capacity(self) -> int:
        """Most positions of a row."""
        return self.caches.capacity

    def reserve(self, held: Sequence[int], upto: Sequence[int], *, row: int | None = None) -> None:
        """To be called before positions are written: each row, or one, holds so many and is to be written up to others."""
        if self.caches.reserve(range(self.batch) if row is None else [row], held, upto):
            self._graphs.clear()

    def feed(self, ids: torch.Tensor, pos: torch.Tensor, take: torch.Tensor, *, row: int | None = None) -> torch.Tensor:
        """Logits [b, N, V] after tokens ids i64[b, S] at positions pos, of the places take i64[b, N]; of all rows, or one."""
        logits = self.compiled.run(self._inputs(ids, pos, take, row))[0]
        if any(p.hint == "take" for p in self._plain):
            return logits
        return logits.gather(1, take[..., None].expand(-1, -1, logits.shape[-1]))

    def trial(self, tokens: int, *, start: int = 0) -> list[torch.Tensor]:
        """The inputs of a run of `tokens` tokens of every row from position `start`, logits of the last one wanted: for
        measuring, which leaves whatever it writes in the caches."""
        self.reserve([0] * self.batch, [start + tokens] * self.batch)
        ids = torch.zeros((self.batch, tokens), dtype=torch.int64, device=self.compiled.device)
        pos = (start + torch.arange(tokens, device=ids.device)).expand(self.batch, -1).contiguous()
        return self._inputs(ids, pos, torch.full_like(self._last, tokens - 1))

    def _inputs(self, ids: torch.Tensor, pos: torch.Tensor, take: torch.Tensor, row: int | None = None) -> list[torch.Tensor]:
        given = {"ids": ids, "pos": pos, "take": take}
        inputs = [given[p.hint or ""] if p in self._plain else self.caches.of(p, row) for p in self.compiled.func.params]
        return [*inputs, *self.caches.pages(row)]

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

    def select(self, rows: Sequence[int], held: Sequence[int], capacity: int) -> Decoder:
        """A decoder of these rows, in this order, with so many positions kept of each; this one is used up."""
        caches = self.caches.select(rows, held, capacity)
        if caches is self.caches and len(rows) == self.batch:
            return self
        return Decoder(self.compiled, batch=len(rows), capacity=capacity, caches=caches)
