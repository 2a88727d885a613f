"""Caches in pages (PagedAttention, Kwon et al. 2023, section 4): which page of a pool holds which positions of which row.

A cache [B, G, T, D] lies in memory as pages [P, G, page, D], and a table i32[B, T / page] says where every run of positions is:
the same for all caches of a decoder. Rows take pages as they grow, share those they have in common, and give them back; page 0 is
nobody's, so that what is written for positions without a page harms none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ingot.ir.module import Func
from ingot.ir.ops.attention import CacheWrite
from ingot.ir.value import Value

PAGE = 64
"""Positions of a page: what a block of attention reads at once, so that a row wastes half of that."""


def in_place(func: Func) -> dict[Value, Value]:
    """The written caches that take over the memory of the parameter they are written into."""
    reused = {func.returns[i]: param for i, param in func.reuse.items()}
    return {op.result: op.cache for op in func.ops
            if isinstance(op, CacheWrite) and reused.get(op.result) is op.cache and op.cache.n_uses == 1}


def pageable(func: Func, page: int) -> dict[Value, int]:
    """Positions of a page, by value that lies in pages: all caches before and after new positions are written. Nothing where
    some cannot."""
    found = in_place(func)
    if {*found.values()} != {*func.reuse.values()} or any(isinstance(v.type.dims[2], int) for v in found):
        return {}
    return dict.fromkeys((*found, *found.values()), page)


class PageTable:
    """The pages of rows, as the host knows them. size: positions of a page. rows: by row, its pages in order. users: by page of
    the pool, how many rows hold it; as long as the pool has to be. changed: since `table` was asked for."""

    def __init__(self, rows: int, *, size: int) -> None:
        self.size = size
        self.rows: list[list[int]] = [[] for _ in range(rows)]
        self.users: list[int] = [1]
        self.changed = False
        self._free: list[int] = []

    def reserve(self, row: int, held: int, upto: int) -> list[tuple[int, int]]:
        """Gives a row pages of its own for the positions from `held` up to `upto`, and takes back those beyond.

        Returns pairs (from, to) of pages whose content is to be copied first, because other rows go on using `from`.
        """
        pages, copies = self.rows[row], []
        count = -(-upto // self.size)
        while len(pages) > count:
            self._drop(pages.pop())
        for i in range(held // self.size, len(pages)):
            if self.users[pages[i]] > 1:
                own = self._take()
                if held > i * self.size:
                    copies.append((pages[i], own))
                self._drop(pages[i])
                pages[i] = own
        while len(pages) < count:
            pages.append(self._take())
        return copies

    def select(self, rows: Sequence[int]) -> None:
        """Keeps these rows, in this order. A row kept twice shares its pages."""
        kept = [list(self.rows[row]) for row in rows]
        for page in (page for pages in kept for page in pages):
            self.users[page] += 1
        for page in (page for pages in self.rows for page in pages):
            self._drop(page)
        self.rows = kept

    def table(self, width: int) -> NDArray[np.int32]:
        """i32[rows, width]; 0 where a row has no page."""
        self.changed = False
        table = np.zeros((len(self.rows), width), np.int32)
        for row, pages in enumerate(self.rows):
            table[row, :len(pages)] = pages
        return table

    def _take(self) -> int:
        if not self._free:
            self.users.append(0)
            self._free.append(len(self.users) - 1)
        page = self._free.pop()
        self.users[page] += 1
        self.changed = True
        return page

    def _drop(self, page: int) -> None:
        self.users[page] -= 1
        self.changed = True
        if not self.users[page]:
            self._free.append(page)
