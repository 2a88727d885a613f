"""The caches of a decoder in device memory: in one piece with room for every row, or in pages that rows take as they grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ingot.backends.torch.tensors import torch_dtype
from ingot.backends.triton.module import TritonModule
from ingot.backends.triton.paging import PageTable
from ingot.ir.dims import evaluate
from ingot.ir.value import Value

DOUBLED = 1024
"""Pages up to which a pool that is full becomes twice as large; a larger one grows by a quarter."""


class Caches(Protocol):
    """The tensors of a module's cache parameters. capacity: most positions of a row."""

    tensors: dict[Value, torch.Tensor]
    capacity: int

    def of(self, param: Value, row: int | None) -> torch.Tensor:
        """What a run is given for a parameter: for all rows, or for one."""
        ...

    def pages(self, row: int | None) -> list[torch.Tensor]:
        """The table of pages a run is given, for all rows or for one; none where there are no pages."""
        ...

    def reserve(self, rows: Sequence[int], held: Sequence[int], upto: Sequence[int]) -> bool:
        """Makes sure that each of some rows, which holds so many positions, can be written up to others. Whether tensors moved"""
        ...

    def select(self, rows: Sequence[int], held: Sequence[int], capacity: int) -> Caches:
        """The caches of these rows, in this order, of which so many positions are kept. These here are used up."""
        ...


class Contiguous:
    """[B, G, capacity, D]."""

    def __init__(self, compiled: TritonModule, batch: int, capacity: int) -> None:
        self.compiled, self.capacity = compiled, capacity
        self.tensors = {
            p: torch.zeros([evaluate(d, {"B": batch, "T": capacity}) for d in p.type.dims], dtype=torch_dtype(p.type.dtype),
                           device=compiled.device) for p in compiled.func.reuse.values()}

    def of(self, param: Value, row: int | None) -> torch.Tensor:
        whole = self.tensors[param]
        return whole if row is None else whole[row:row + 1]

    def pages(self, row: int | None) -> list[torch.Tensor]:
        return []

    def reserve(self, rows: Sequence[int], held: Sequence[int], upto: Sequence[int]) -> bool:
        return False

    def select(self, rows: Sequence[int], held: Sequence[int], capacity: int) -> Contiguous:
        made = Contiguous(self.compiled, len(rows), capacity)
        positions = max(held, default=0)
        for (param, mine), theirs in zip(made.tensors.items(), self.tensors.values(), strict=True):
            axis = next((i for i, d in enumerate(param.type.dims) if str(d) == "T"), None)
            for to, source in enumerate(rows):
                if axis is None:
                    mine[to] = theirs[source]
                else:
                    mine[to].narrow(axis - 1, 0, positions).copy_(theirs[source].narrow(axis - 1, 0, positions))
        return made


class Paged:
    """[P, G, page, D] and a table of pages. P grows with what all rows hold together. Rows share pages until they differ."""

    def __init__(self, compiled: TritonModule, batch: int, capacity: int) -> None:
        self.page = compiled.page
        width = -(-capacity // self.page)
        self.capacity = width * self.page
        self.table = PageTable(batch, size=self.page)
        self.tensors = {p: torch.zeros((1, p.type.dims[1], self.page, p.type.dims[3]), dtype=torch_dtype(p.type.dtype),  # type: ignore[arg-type]
                                       device=compiled.device) for p in compiled.func.reuse.values()}
        self._pages = torch.zeros((batch, width), dtype=torch.int32, device=compiled.device)

    def of(self, param: Value, row: int | None) -> torch.Tensor:
        return self.tensors[param]

    def pages(self, row: int | None) -> list[torch.Tensor]:
        return [self._pages if row is None else self._pages[row:row + 1]]

    def reserve(self, rows: Sequence[int], held: Sequence[int], upto: Sequence[int]) -> bool:
        copies = [c for row, old, new in zip(rows, held, upto, strict=True) for c in self.table.reserve(row, old, new)]
        moved = self._grow()
        if copies:
            source, to = torch.tensor(copies, device=self._pages.device).unbind(1)
            for tensor in self.tensors.values():
                tensor[to] = tensor[source]
        if self.table.changed:
            self._tell()
        return moved

    def select(self, rows: Sequence[int], held: Sequence[int], capacity: int) -> Paged:
        self.table.select(rows)
        if len(rows) != len(self._pages):
            self._pages = self._pages.new_zeros((len(rows), self._pages.shape[1]))
        self._tell()
        return self

    def _grow(self) -> bool:
        """Room for every page that is held; where that is not enough, for more than is wanted now. Whether tensors moved."""
        wanted, held = len(self.table.users), min(map(len, self.tensors.values()), default=0)
        if wanted <= held:
            return False
        room = max(wanted, held + max(held // 4, min(held, DOUBLED)))
        for param, tensor in self.tensors.items():
            self.tensors[param] = tensor.new_zeros((room, *tensor.shape[1:]))
            self.tensors[param][:held] = tensor
        return True

    def _tell(self) -> None:
        self._pages.copy_(torch.from_numpy(self.table.table(self._pages.shape[1])))
