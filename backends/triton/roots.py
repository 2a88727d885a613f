"""What a kernel stores: results at an index, or new rows scattered into a cache."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ingot.backends.triton.index import flattened
from ingot.backends.triton.kernel import Pointer
from ingot.backends.triton.outline import Outlined
from ingot.backends.triton.pull import Buffer, Guards, Index, Pull
from ingot.backends.triton.source import Source
from ingot.backends.triton.term import storable, stored
from ingot.ir.dims import Dim
from ingot.ir.ops.attention import CacheWrite
from ingot.ir.types import bool_
from ingot.ir.value import Value

PAGES = Pointer("pages_ptr", "i32", "pages")
"""The page of every row's runs of positions, i32[B, T / page]."""


@dataclass(frozen=True)
class Root:
    """result: the func's return. computed: the value whose elements are stored, one by one."""

    result: Value
    computed: Value
    pointer: Pointer

    def offset(self, pull: Pull, index: Index, guards: Guards = ()) -> Dim:
        """Where the element of `computed` at an index is stored."""
        op = self.result.op
        if not isinstance(op, CacheWrite):
            return flattened(index, self.result.type.dims)
        at = pull.loaded_index(pull.at(op.pos, (index[0], index[2]), guards), op.cache.type.dims[2])
        cache = pull.buffers.get(op.cache) or Buffer("", op.cache.type.dims, op.cache.type.dtype)
        return pull.place(cache, (index[0], index[1], at, index[3]), guards)


@dataclass(frozen=True)
class Opened:
    """A kernel begun: its text so far, its inputs by value, its outputs."""

    pull: Pull
    inputs: dict[Value, Pointer]
    roots: tuple[Root, ...]

    def pointers(self, body: str, *more: Pointer) -> tuple[Pointer, ...]:
        """The parameters the body uses: inputs (and `more`) that are read, and outputs."""
        read = [p for p in (*self.inputs.values(), PAGES, *more) if re.search(rf"\b{p.name}\b", body)]
        return (*read, *(r.pointer for r in self.roots))

    def store(self, root: Root, index: Index) -> None:
        """Writes the store of one root's element (tile) at an index, on the level of the loop it is in."""
        pull = self.pull
        term = pull.at(root.computed, index)
        offset = pull.dim(root.offset(pull, index))
        mask = pull.mask(offset.axes)
        value = term.text if root.result.type.dtype.kind != "bool" else term.to(bool_).text
        pointer = f"{root.pointer.name} + {offset.text}"
        pull.source.line(f"tl.store({pointer}, {value}{f', mask={mask}' if mask else ''})")


def opened(outlined: Outlined) -> Opened:
    """Names for the inputs and outputs of a kernel over an outlined func (whose composite ops are expanded already)."""
    source = Source()
    source.names.take(PAGES.name)
    func = outlined.func
    inputs = {p: Pointer(source.names.take(f"{p.hint}_ptr"), stored(p.type.dtype), "in", i) for i, p in enumerate(func.params)
              if storable(p.type.dtype)}
    roots = []
    for i, value in enumerate(func.returns):
        computed = value.op.new if isinstance(value.op, CacheWrite) else value
        hint = "out" if len(func.returns) == 1 else f"{value.hint}_out"
        roots.append(Root(value, computed, Pointer(source.names.take(f"{hint}_ptr"), stored(value.type.dtype), "out", i)))
    buffers = {v: Buffer(p.name, v.type.dims, v.type.dtype, outlined.paged.get(v, 0)) for v, p in inputs.items()}
    return Opened(Pull(source, buffers), inputs, tuple(roots))
