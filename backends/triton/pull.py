"""Writing a value's computation by demand: `pull.at(value, index)` is the source of one element (or a tile of them).

Inputs of the kernel are loaded at the index, elementwise ops apply their scalar expression to what they pull from their
operands, layout ops only change the index. So any chain of them ends up in the kernel that wants it, and nothing is
computed that is not wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import singledispatch

from ingot.backends.triton.errors import NoKernel
from ingot.backends.triton.index import flattened, quotient, remainder, simplified, terms
from ingot.backends.triton.source import Source
from ingot.backends.triton.term import Term, joined, widened
from ingot.ir.dims import Atom, Dim, Div, Sym, sym
from ingot.ir.op import Op
from ingot.ir.types import DType, i64
from ingot.ir.value import Value

Index = tuple[Dim, ...]
MOST_PAGES = 2**31 - 1


@dataclass(frozen=True)
class Axis:
    """A loop axis: its symbol in index expressions, its variable in the source, its bound (exclusive).

    mask: the variable that says which elements of its tile are below the bound, None when all are. level: depth of the
    block in which it is known. start: the axis its tile starts at, where the whole tile lies in one page of a cache.
    """

    name: str
    variable: str
    bound: Dim
    mask: str | None
    level: int = 0
    start: Dim | None = None


@dataclass(frozen=True)
class Guard:
    """A condition under which a value is wanted at all; elsewhere nothing of it may be read."""

    text: str
    axes: frozenset[str]


Guards = tuple[Guard, ...]


@dataclass(frozen=True)
class Buffer:
    """A tensor in memory: the pointer's variable. page: positions of a page where a cache lies in pages (see `paging`), 0
    where it is contiguous."""

    pointer: str
    dims: tuple[Dim, ...]
    dtype: DType
    page: int = 0


@dataclass
class Pull:
    """The state of one kernel being written.

    buffers: what lies in memory. sizes: symbols of sizes used so far. recorded: values of which only the indices at which
    they are wanted are noted, to learn what a kernel has to compute before it is written.
    """

    source: Source
    buffers: dict[Value, Buffer]
    axes: dict[str, Axis] = field(default_factory=dict)
    sizes: dict[str, None] = field(default_factory=dict)
    recorded: dict[Value, list[Index]] = field(default_factory=dict)
    _memo: dict[tuple[Value, Index, Guards], tuple[Term, int]] = field(default_factory=dict)
    _given: dict[Value, list[tuple[Index, Term]]] = field(default_factory=dict)
    _divisions: dict[Div, tuple[Term, int]] = field(default_factory=dict)
    _indirect: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def bounds(self) -> dict[str, Dim]:
        return {name: axis.bound for name, axis in self.axes.items()}

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """A nested block; what was computed in it is forgotten behind it."""
        outer = set(self.axes)
        with self.source.block(head):
            yield
            depth = self.source.depth
            self._memo = {key: kept for key, kept in self._memo.items() if kept[1] < depth}
            self._divisions = {key: kept for key, kept in self._divisions.items() if kept[1] < depth}
            self.axes = {name: axis for name, axis in self.axes.items() if name in outer}

    def axis(self, name: str, variable: str, bound: Dim, mask: str | None, *, start: Dim | None = None) -> Dim:
        """A new loop axis, known from this block on; the index symbol."""
        self.axes[name] = Axis(name, variable, bound, mask, self.source.depth, start)
        return sym(name)

    def give(self, value: Value, index: Index, term: Term) -> None:
        """Says what a value is at an index: an accumulator, the result of a reduction."""
        self._given.setdefault(value, []).append((self._normal(value, index), term))

    def at(self, value: Value, index: Index, guards: Guards = ()) -> Term:
        """The term of a value at an index. Raises NoKernel when it cannot be had in this kernel."""
        index = self._normal(value, index)
        if value in self.recorded:
            self.recorded[value].append(index)
            return Term("y", widened(value.type.dtype), frozenset(self.axes), atomic=True)
        if value in self._given:
            found = next((term for at, term in self._given[value] if at == index), None)
            if found is None:
                raise NoKernel(f"{value!r} is wanted at another index than it is computed at")
            return found
        key = (value, index, guards)
        if key not in self._memo:
            if value in self.buffers:
                term = self._load(value, index, guards)
            elif value.op is not None:
                term = pulled(value.op, self, value, index, guards)
            else:
                raise NoKernel(f"{value!r} is not at hand")
            self._memo[key] = (term, self.level(term.axes))
        return self._memo[key][0]

    def name(self, hint: str, term: Term) -> Term:
        """The term under a variable of its own."""
        if term.atomic and term.text.isidentifier():
            return term
        level = self.level(term.axes)
        return Term(self.source.define(hint, term.text, level=level), term.dtype, term.axes, atomic=True, padded=term.padded)

    def dim(self, dim: Dim) -> Term:
        """An index or a size as a term."""
        return self._spelled(simplified(dim, self.bounds))

    def _spelled(self, dim: Dim) -> Term:
        text = ""
        axes: frozenset[str] = frozenset()
        for monomial, factor in terms(dim):
            parts = [self._atom(a) for a in monomial]
            axes |= joined(*parts)
            words = [p.text for p in parts] + [str(abs(factor))] * (abs(factor) != 1 or not parts)
            sign = "-" if factor < 0 else "+"
            text += f" {sign} {' * '.join(words)}" if text else ("-" if factor < 0 else "") + " * ".join(words)
        text = text or "0"
        return Term(text, i64, axes, atomic=text.isidentifier() or text.isdigit())

    def _atom(self, atom: Atom) -> Term:
        """A symbol, or a division under a name of its own."""
        if isinstance(atom, Sym):
            if atom.name in self.axes:
                return Term(self.axes[atom.name].variable, i64, self._roots(atom.name), atomic=True)
            self.sizes[atom.name] = None
            return Term(atom.name, i64, atomic=True)
        if atom not in self._divisions:
            num, den = self._spelled(atom.num), self._spelled(atom.den)
            term = Term(f"{num.operand} {atom.op} {den.operand}", i64, joined(num, den))
            self._divisions[atom] = (self.name("i", term), self.level(term.axes))
        return self._divisions[atom][0]

    def loaded_index(self, term: Term, size: Dim) -> Dim:
        """A loop axis that stands for a position read from memory; negative ones count from the end."""
        wrapped = f"tl.where({term.text} < 0, {term.text} + {self.dim(size).operand}, {term.text})"
        return self._indirectly(Term(wrapped, term.dtype, term.axes), "position", size)

    def _indirectly(self, term: Term, hint: str, bound: Dim) -> Dim:
        """A loop axis whose values are read from memory."""
        name = f"@{term.text}"
        if name not in self.axes:
            self.axes[name] = Axis(name, self.name(hint, term).text, bound, None, self.level(term.axes))
            self._indirect[name] = term.axes
        return sym(name)

    def place(self, buffer: Buffer, index: Index, guards: Guards = ()) -> Dim:
        """Where an element lies in a buffer, counted in elements from its start."""
        if not buffer.page:
            return flattened(index, buffer.dims)
        row, head, position, feature = index
        bounds, (_, heads, positions, features) = self.bounds, buffer.dims
        tile = next((a.start for a in self.axes.values() if position == sym(a.name)), None)
        run = quotient(position if tile is None else tile, buffer.page, bounds)
        at = self.dim(row * quotient(positions, buffer.page, bounds) + run)
        axes = at.axes.union(*(g.axes for g in guards))
        mask = self.mask(axes, guards)
        where = f"pages_ptr + {self.anchored(at.text, at.axes, axes)}" + (f", mask={mask}, other=0" if mask else "")
        page = self._indirectly(Term(f"device.wide(tl.load({where}), WIDE)", i64, axes), "page", MOST_PAGES)
        inside = remainder(position, buffer.page, bounds)
        return flattened((page, head, inside, feature), (MOST_PAGES, heads, buffer.page, features))

    def guard(self, condition: Term) -> Guard:
        named = self.name("inside", condition)
        return Guard(named.text, named.axes)

    def mask(self, axes: frozenset[str], guards: Guards = ()) -> str:
        """The condition under which elements depending on these axes exist; empty when always."""
        masks = [m for name in sorted(axes) if (m := self.axes[name].mask) is not None]
        return " & ".join([*dict.fromkeys([*masks, *(g.text for g in guards)])])

    def anchored(self, text: str, axes: frozenset[str], wanted: frozenset[str]) -> str:
        """An expression spread over further axes, so that a mask over them fits it."""
        extra = [f"0 * {self.axes[name].variable}" for name in sorted(wanted - axes)]
        return " + ".join([text, *extra])

    def _load(self, value: Value, index: Index, guards: Guards) -> Term:
        buffer = self.buffers[value]
        offset = self.dim(self.place(buffer, index, guards))
        axes = offset.axes.union(*(g.axes for g in guards))
        mask = self.mask(axes, guards)
        pointer = buffer.pointer if offset.text == "0" and not axes else (
            f"{buffer.pointer} + {self.anchored(offset.text, offset.axes, axes)}")
        zero = "0.0" if buffer.dtype.is_float and buffer.dtype.bits == 8 else "0"  # integers do not become small floats
        text = f"tl.load({pointer}, mask={mask}, other={zero})" if mask else f"tl.load({pointer})"
        return self.name(f"{buffer.pointer.removesuffix('_ptr')}_at", Term(text, buffer.dtype, axes, atomic=True, padded=True))

    def _normal(self, value: Value, index: Index) -> Index:
        bounds = self.bounds
        return tuple(0 if size == 1 else simplified(i, bounds) for i, size in zip(index, value.type.dims, strict=True))

    def _roots(self, symbol: str) -> frozenset[str]:
        return self._indirect.get(symbol, frozenset({symbol}))

    def level(self, axes: frozenset[str]) -> int:
        """The depth of the outermost block in which what depends on these axes is known."""
        return max((self.axes[name].level for name in axes if name in self.axes), default=0)


@singledispatch
def pulled(op: Op, pull: Pull, value: Value, index: Index, guards: Guards) -> Term:
    """The term of one result of an op at an index. Rules stand in `pull_pointwise` and `pull_layout`."""
    raise NoKernel(f"{op.name} has no source of its own")
